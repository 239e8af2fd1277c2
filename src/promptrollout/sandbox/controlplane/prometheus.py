"""A real Prometheus that finds pods through the API server, as an account that may only list and watch them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.sandbox.controlplane.pki import write_secret
from promptrollout.sandbox.processes import Service, free_ports
from promptrollout.sandbox.settings import READY_SECONDS, SANDBOX_NAMESPACE, Layout, SandboxError

logger = logging.getLogger(__name__)

_ACCOUNT = "prometheus"
_TOKEN_SECONDS = 365 * 24 * 3600
_META = "__meta_kubernetes_pod_"


class Prometheus:
    """One Prometheus process; stopping and starting it keeps its data, as an outage does."""

    def __init__(self, layout: Layout, binary: Path, scrape_interval_seconds: float) -> None:
        self._layout = layout
        self._interval = f"{round(scrape_interval_seconds * 1000)}ms"
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._token_file = layout.prometheus / "token"
        self.service = Service(
            "prometheus",
            [
                str(binary),
                f"--config.file={layout.prometheus / 'prometheus.yaml'}",
                f"--storage.tsdb.path={layout.prometheus / 'data'}",
                "--storage.tsdb.retention.time=2d",
                f"--web.listen-address=127.0.0.1:{port}",
                # the default of 5 s would be most of a pod's first ten seconds
                "--scrape.discovery-reload-interval=1s",
                "--log.level=warn",
            ],
            marker=layout.root,
            logs=layout.logs,
        )

    async def start(self, api: ApiClient, server: str, ca_file: Path) -> None:
        """Create the service account, write the configuration and wait until queries are answered."""
        token = await _service_account(api)
        self._configure(token, server, ca_file)
        await self.service.start()
        await self.wait_ready()

    async def wait_ready(self, timeout_seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + timeout_seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < deadline:
                self.service.check()
                try:
                    async with session.get(f"{self.url}/-/ready") as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    logger.debug("Prometheus does not answer yet")
                await asyncio.sleep(0.1)
        raise SandboxError(f"Prometheus was not ready within {timeout_seconds:.0f} s; see {self.service.log}")

    def _configure(self, token: str, server: str, ca_file: Path) -> None:
        self._layout.prometheus.mkdir(parents=True, exist_ok=True)
        write_secret(self._token_file, token)
        config = configuration(self._interval, server, ca_file, self._token_file)
        # JSON is YAML
        (self._layout.prometheus / "prometheus.yaml").write_text(json.dumps(config, indent=1))


def configuration(interval: str, api_server: str, ca_file: Path, token_file: Path) -> dict[str, Any]:
    """The scrape configuration: annotated pods, as in most clusters."""

    def replace(source: list[str], target: str, regex: str = "(.+)", replacement: str = "$1") -> dict[str, Any]:
        return {
            "source_labels": source,
            "regex": regex,
            "target_label": target,
            "replacement": replacement,
        }

    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "scrape_configs": [
            {
                "job_name": "pods",
                "honor_labels": False,
                "kubernetes_sd_configs": [
                    {
                        "role": "pod",
                        "api_server": api_server,
                        "tls_config": {"ca_file": str(ca_file)},
                        "authorization": {"credentials_file": str(token_file)},
                    }
                ],
                "relabel_configs": [
                    {
                        "source_labels": [_META + "annotation_prometheus_io_scrape"],
                        "regex": "true",
                        "action": "keep",
                    },
                    {"source_labels": [_META + "phase"], "regex": "Running", "action": "keep"},
                    replace(
                        [_META + "ip", _META + "annotation_prometheus_io_port"],
                        "__address__",
                        r"([^;]+);(\d+)",
                        "$1:$2",
                    ),
                    replace([_META + "annotation_prometheus_io_path"], "__metrics_path__"),
                    replace(["__meta_kubernetes_namespace"], "namespace"),
                    replace([_META + "name"], "pod"),
                    replace([_META + "label_promptrollout_dev_gateway"], "gateway"),
                ],
            }
        ],
    }


async def _service_account(api: ApiClient) -> str:
    """Make Prometheus' identity and return a token of it."""
    core, rbac = "/api/v1", "/apis/rbac.authorization.k8s.io/v1"
    name = f"{SANDBOX_NAMESPACE}:{_ACCOUNT}"
    manager = "promptrollout-sandbox"
    await cluster.apply(
        api,
        f"{core}/namespaces/{SANDBOX_NAMESPACE}",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SANDBOX_NAMESPACE}},
        manager,
    )
    account = f"{core}/namespaces/{SANDBOX_NAMESPACE}/serviceaccounts/{_ACCOUNT}"
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": _ACCOUNT}}
    await cluster.apply(api, account, body, manager)
    await cluster.apply(
        api,
        f"{rbac}/clusterroles/{name}",
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
        },
        manager,
    )
    await cluster.apply(
        api,
        f"{rbac}/clusterrolebindings/{name}",
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": _ACCOUNT, "namespace": SANDBOX_NAMESPACE}],
        },
        manager,
    )
    request = {"spec": {"expirationSeconds": _TOKEN_SECONDS}}
    answer = await cluster.request(api, "POST", f"{account}/token", body=request)
    return str(answer["status"]["token"])
