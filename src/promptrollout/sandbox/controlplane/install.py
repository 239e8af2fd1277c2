"""Installs the operator: renders the Helm chart and applies it, as a person would on a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.cluster import ApiException, ApiUnavailable, Object
from promptrollout.sandbox.assets.inventory import Binaries
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE, Layout, SandboxError

RELEASE = "promptrollout"
_CHART_VARIABLE = "PROMPTROLLOUT_CHART"
_HOPELESS_RESTARTS = 3


def find_chart(environ: Mapping[str, str] | None = None) -> Path:
    """The chart: PROMPTROLLOUT_CHART, or charts/promptrollout of the checkout this package runs from."""
    environ = os.environ if environ is None else environ
    if override := environ.get(_CHART_VARIABLE):
        if not (Path(override) / "Chart.yaml").is_file():
            raise SandboxError(f"{_CHART_VARIABLE}={override}: no Chart.yaml there")
        return Path(override)
    for parent in Path(__file__).resolve().parents:
        candidate = parent / "charts" / "promptrollout"
        if (candidate / "Chart.yaml").is_file():
            return candidate
    raise SandboxError(f"no Helm chart found: run from a checkout, or set {_CHART_VARIABLE} to the chart's directory")


def chart_values(prometheus_url: str) -> dict[str, Any]:
    """What the sandbox sets in the chart; all else is the chart's default."""
    return {
        "metricsSources": [{"name": "default", "url": prometheus_url}],
        # its pods and its model are on loopback
        "gateway": {"allowedProviderNetworks": ["127.0.0.0/8"]},
    }


def require_values(file: Path) -> None:
    """Raises SandboxError for a values file that helm would not take."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SandboxError(f"--values {file}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SandboxError(f"--values {file}: not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise SandboxError(f"--values {file}: values are a mapping, as in the chart's values.yaml")


async def render(binaries: Binaries, layout: Layout, prometheus_url: str, values: Sequence[str] = ()) -> str:
    """`helm template` of the chart. What a later file of `values` says holds against earlier ones and our own."""
    layout.values.write_text(json.dumps(chart_values(prometheus_url), indent=1))
    command = [str(binaries.helm), "template", RELEASE, str(find_chart()), "--namespace", OPERATOR_NAMESPACE]
    return await run([*command, *(part for file in (str(layout.values), *values) for part in ("--values", file))])


async def apply(binaries: Binaries, layout: Layout, api: ApiClient, manifests: str) -> None:
    """Create the restricted namespace and apply the rendered chart with server-side apply."""
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/warn": "restricted",
    }
    await cluster.apply(
        api,
        f"/api/v1/namespaces/{OPERATOR_NAMESPACE}",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE, "labels": labels}},
        "promptrollout-sandbox",
    )
    command = [str(binaries.kubectl), "--kubeconfig", str(layout.kubeconfig), "apply", "--server-side", "-f", "-"]
    await run([*command, "--namespace", OPERATOR_NAMESPACE], stdin=manifests)


async def wait_available(binaries: Binaries, layout: Layout, api: ApiClient, timeout_seconds: float = 90.0) -> None:
    """Until every Deployment of the release is available; the error carries the end of a pod's log."""
    path = f"/apis/apps/v1/namespaces/{OPERATOR_NAMESPACE}/deployments"
    deadline = time.monotonic() + timeout_seconds
    problem = "the chart has no Deployment"
    while time.monotonic() < deadline:
        try:
            deployments = (await cluster.request(api, "GET", path))["items"]
        except (ApiException, ApiUnavailable) as error:
            problem = str(error)
        else:
            late = [d["metadata"]["name"] for d in deployments if not _available(d)]
            if deployments and not late:
                return
            problem = f"not available: {', '.join(late)}" if late else problem
            if late and await _crash_loops(api):
                problem = f"{', '.join(late)} crashes again and again"
                break
        await asyncio.sleep(0.2)
    raise SandboxError(f"the operator did not come up: {problem}\n{await _explain(binaries, layout)}")


async def _crash_loops(api: ApiClient) -> bool:
    """Whether a pod has crashed so often that it will not become ready."""
    pods = (await cluster.request(api, "GET", f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods"))["items"]
    statuses = [s for pod in pods for s in (pod.get("status") or {}).get("containerStatuses") or []]
    return any(s["restartCount"] >= _HOPELESS_RESTARTS and "waiting" in s["state"] for s in statuses)


def _available(deployment: Object) -> bool:
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return False
    return any(c["type"] == "Available" and c["status"] == "True" for c in status.get("conditions") or [])


async def _explain(binaries: Binaries, layout: Layout) -> str:
    kubectl = [str(binaries.kubectl), "--kubeconfig", str(layout.kubeconfig), "--namespace", OPERATOR_NAMESPACE]
    parts = []
    for arguments in (
        ["get", "pods"],
        ["get", "events", "--field-selector", "type=Warning"],
        ["logs", "--selector", "app.kubernetes.io/name=promptrollout", "--tail", "30", "--prefix"],
    ):
        try:
            parts.append(f"$ kubectl {' '.join(arguments)}\n{await run([*kubectl, *arguments])}")
        except SandboxError as error:
            parts.append(str(error))
    return "\n".join(parts)


async def run(command: list[str], stdin: str | None = None) -> str:
    """Output of a command; its error output becomes the exception's message."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode() if stdin is not None else None)
    if process.returncode:
        name = Path(command[0]).name
        raise SandboxError(f"{name} {' '.join(command[1:4])} … failed:\n{err.decode(errors='replace').strip()}")
    return out.decode()
