"""A sandbox for benchmarks: many gateway pods, many rollouts, and what they made of the API server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from promptrollout.sandbox.assets.inventory import find_kubectl
from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE, Settings

NAMESPACE = "bench"
TICKS = os.sysconf("SC_CLK_TCK")


class Cluster:
    """kubectl and measurements against one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._kubectl = [str(find_kubectl(os.environ)), "--kubeconfig", sandbox.kubeconfig, "-n", NAMESPACE]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run([*self._kubectl, *arguments], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *manifests: dict[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    def wait(self, what: str, test: Callable[[], Any], seconds: float = 120.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := test()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.2)
        return value

    def gateway_pods(self) -> list[dict[str, Any]]:
        """Ready ones."""
        items = self.get("pods", "-l", "promptrollout.dev/gateway=default")["items"]
        return [
            p
            for p in items
            if "deletionTimestamp" not in p["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))
        ]

    def scale(self, replicas: int) -> list[str]:
        """Addresses of the gateway's admin ports once that many pods are ready."""
        gateway = {"replicas": replicas, "drainSeconds": 0, "resources": {"requests": {"cpu": "10m"}}}
        self.apply(ours("PromptGateway", "default", gateway))
        self.wait(f"{replicas} gateway pods", lambda: len(self.gateway_pods()) == replicas, 300)
        return [f"http://{p['status']['podIP']}:9090" for p in self.gateway_pods()]

    def operator_pid(self) -> int:
        pods = json.loads(
            self.kubectl(
                "-n", OPERATOR_NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "json"
            )
        )["items"]
        return self.sandbox.pid(OPERATOR_NAMESPACE, pods[0]["metadata"]["name"])

    @contextlib.contextmanager
    def operator_away(self) -> Iterator[None]:
        """Scaled to nothing, so that nobody else writes."""
        deployment = ("-n", OPERATOR_NAMESPACE, "scale", "deployment/promptrollout-operator")
        self.kubectl(*deployment, "--replicas=0")
        selector = ("-n", OPERATOR_NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "name")
        self.wait("the operator's end", lambda: not self.kubectl(*selector))
        try:
            yield
        finally:
            self.kubectl(*deployment, "--replicas=1")
            status = ("rollout", "status", "deployment/promptrollout-operator", "--timeout=60s")
            self.kubectl("-n", OPERATOR_NAMESPACE, *status)

    def patch(self, client: httpx.Client, path: str, body: dict[str, Any]) -> None:
        """A merge patch without the start of a kubectl in between."""
        client.patch(
            f"/apis/promptrollout.dev/v1alpha1/namespaces/{NAMESPACE}/{path}",
            content=json.dumps(body),
            headers={"content-type": "application/merge-patch+json"},
        ).raise_for_status()

    def client(self) -> httpx.Client:
        """To the API server, as the sandbox's administrator."""
        config = yaml.safe_load(Path(self.sandbox.kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        if "certificate-authority-data" in cluster:
            context = ssl.create_default_context(
                cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
            )
        else:
            context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        return httpx.Client(
            base_url=cluster["server"], verify=context, headers={"authorization": f"Bearer {user['token']}"}
        )

    def writes(self) -> float:
        """Writes so far to the project's objects, to what the operator makes, and Events, by anyone."""
        text = self.kubectl("get", "--raw", "/metrics")
        total = 0.0
        for line in text.splitlines():
            if not line.startswith("apiserver_request_total{"):
                continue
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] not in ("APPLY", "CREATE", "DELETE", "PATCH", "POST", "PUT", "UPDATE"):
                continue
            ours_or_made = labels["group"] == "promptrollout.dev" or labels["resource"] in (
                "deployments",
                "services",
                "serviceaccounts",
                "rolebindings",
                "poddisruptionbudgets",
                "networkpolicies",
                "events",
            )
            if ours_or_made and labels.get("subresource") not in ("token",):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextlib.contextmanager
def running(scrape_interval_seconds: float = 1.0) -> Iterator[Cluster]:
    """A fresh sandbox with operator, a namespace, a provider; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="promptrollout-bench-") as folder:
        sandbox = Sandbox(Path(folder), Settings(scrape_interval_seconds=scrape_interval_seconds))
        sandbox.up(lambda line: print(f"  {line}", flush=True))
        try:
            cluster = Cluster(sandbox)
            cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
            prices = [{"model": "small", "inputPerMillionUsd": "1", "outputPerMillionUsd": "4"}]
            cluster.apply(ours("ModelProvider", "model", {"baseURL": f"{sandbox.model_url}/v1", "prices": prices}))
            yield cluster
        finally:
            sandbox.down()


def ours(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "promptrollout.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def rollout(
    name: str, text: str, *, interval_seconds: int = 15, steps: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    objective = {
        "name": "errors",
        "signal": "ErrorRate",
        "versusStable": {"maxIncreasePercent": 50},
        "negligibleRate": "0.05",
        "minSamples": 30,
    }
    spec = {
        "gatewayRef": {"name": "default"},
        "template": {
            "providerRef": {"name": "model"},
            "model": "small",
            "messages": [{"role": "system", "content": text}],
        },
        "strategy": {"canary": {"steps": steps or [{"weight": 10, "minDurationSeconds": 3600}], "bakeSeconds": 1}},
        "analysis": {"intervalSeconds": interval_seconds, "objectives": [objective]},
    }
    return ours("PromptRollout", name, spec)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid: int) -> float:
    """Resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no process {pid}")


def report_of(client: httpx.Client, address: str, name: str) -> dict[str, Any] | None:
    """What one gateway pod says of one rollout."""
    rollouts = client.get(f"{address}/rollouts", params={"name": name}).json()["rollouts"]
    return rollouts[0] if rollouts else None
