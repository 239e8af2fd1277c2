"""etcd, kube-apiserver and kube-controller-manager on loopback, with RBAC, Pod Security and real tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from pathlib import Path

from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.cluster import ApiException, ApiUnavailable
from promptrollout.sandbox.assets.inventory import Binaries
from promptrollout.sandbox.controlplane.pki import Authority, write_secret
from promptrollout.sandbox.processes import Service, free_ports
from promptrollout.sandbox.settings import NODE_NAME, READY_SECONDS, Layout, SandboxError

logger = logging.getLogger(__name__)

ISSUER = "https://kubernetes.default.svc"

# No endpointslice controller: it refuses loopback addresses, and services.py picks ready pods itself.
CONTROLLERS = (
    "clusterrole-aggregation",
    "cronjob",
    "deployment",
    "disruption",
    "garbage-collector",
    "horizontal-pod-autoscaler",
    "job",
    "namespace",
    "pod-garbage-collector",
    "replicaset",
    "root-ca-certificate-publisher",
    "serviceaccount",
    "statefulset",
)


class ControlPlane:
    """The three processes, their keys and the ways in."""

    def __init__(self, layout: Layout, binaries: Binaries) -> None:
        self.layout = layout
        etcd_port, peer_port, self.port, self.kubelet_port = free_ports(4)
        self.server = f"https://127.0.0.1:{self.port}"
        authority = Authority(layout.pki)
        self.ca_file = authority.ca_file
        serving = authority.issue(
            "apiserver",
            common_name="kube-apiserver",
            addresses=("127.0.0.1", "10.96.0.1"),
            dns_names=("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"),
        )
        self.kubelet_serving = authority.issue("kubelet", common_name=NODE_NAME, addresses=("127.0.0.1",))
        self.admission_serving = authority.issue("admission", common_name="admission", addresses=("127.0.0.1",))
        self.kubelet_client = authority.issue("apiserver-kubelet-client", common_name="kube-apiserver")
        # access to etcd bypasses RBAC: only the API server may have it
        etcd_serving = authority.issue("etcd", common_name="etcd", addresses=("127.0.0.1",))
        etcd_client = authority.issue("apiserver-etcd-client", common_name="kube-apiserver")
        signing_key = authority.signing_key("service-account")
        self._tokens = {user: secrets.token_urlsafe(32) for user in ("admin", "node", "controller-manager")}
        write_secret(
            layout.pki / "tokens.csv",
            f"{self._tokens['admin']},kubernetes-admin,admin,system:masters\n"
            f"{self._tokens['node']},system:node:{NODE_NAME},node,system:masters\n"
            f"{self._tokens['controller-manager']},system:kube-controller-manager,controller-manager\n",
        )
        self._write_kubeconfig(layout.kubeconfig, "admin")
        self._write_kubeconfig(layout.pki / "controller-manager.kubeconfig", "controller-manager")

        etcd_url, peer_url = f"https://127.0.0.1:{etcd_port}", f"https://127.0.0.1:{peer_port}"
        self.etcd = self._service(
            "etcd",
            binaries.etcd,
            [
                f"--data-dir={layout.etcd}",
                f"--listen-client-urls={etcd_url}",
                f"--advertise-client-urls={etcd_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                *(
                    f"--{side}{flag}"
                    for side in ("", "peer-")
                    for flag in (
                        "client-cert-auth",
                        f"trusted-ca-file={self.ca_file}",
                        f"cert-file={etcd_serving[0]}",
                        f"key-file={etcd_serving[1]}",
                    )
                ),
                "--unsafe-no-fsync",  # a sandbox's data need not survive the machine
                "--log-level=warn",
            ],
        )
        self.apiserver = self._service(
            "kube-apiserver",
            binaries.kube_apiserver,
            [
                f"--etcd-servers={etcd_url}",
                f"--etcd-cafile={self.ca_file}",
                f"--etcd-certfile={etcd_client[0]}",
                f"--etcd-keyfile={etcd_client[1]}",
                "--bind-address=127.0.0.1",
                f"--secure-port={self.port}",
                f"--tls-cert-file={serving[0]}",
                f"--tls-private-key-file={serving[1]}",
                f"--cert-dir={layout.pki}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--endpoint-reconciler-type=none",  # endpoints may not be loopback addresses
                f"--token-auth-file={layout.pki / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--service-account-issuer={ISSUER}",
                f"--api-audiences={ISSUER}",
                f"--service-account-key-file={signing_key}",
                f"--service-account-signing-key-file={signing_key}",
                f"--kubelet-certificate-authority={self.ca_file}",
                f"--kubelet-client-certificate={self.kubelet_client[0]}",
                f"--kubelet-client-key={self.kubelet_client[1]}",
                "--kubelet-preferred-address-types=InternalIP",
                "--allow-privileged=true",  # as in clusters: Pod Security decides, by namespace
            ],
        )
        self.controller_manager = self._service(
            "kube-controller-manager",
            binaries.kube_controller_manager,
            [
                f"--kubeconfig={layout.pki / 'controller-manager.kubeconfig'}",
                "--leader-elect=false",
                f"--service-account-private-key-file={signing_key}",
                f"--root-ca-file={self.ca_file}",
                "--secure-port=0",
                "--use-service-account-credentials",
                f"--cert-dir={layout.pki}",
                "--controllers=" + ",".join(f"{name}-controller" for name in CONTROLLERS),
            ],
        )

    def connect(self, user: str) -> ApiClient:
        """As `admin` or `node`. Close it (`async with`) when done."""
        return cluster.connect_with_token(self.server, self._tokens[user], self.ca_file)

    async def start(self) -> None:
        """Start all three; returns when the API server is ready (the controllers may still be warming up)."""
        await asyncio.gather(self.etcd.start(), self.apiserver.start())
        await self.wait_ready()
        await self.controller_manager.start()

    async def stop(self) -> None:
        # etcd last: an API server that loses it first was seen to keep its port for tens of seconds
        await self.controller_manager.stop(grace_seconds=3)
        await self.apiserver.stop(grace_seconds=5)
        await self.etcd.stop(grace_seconds=5)

    async def wait_ready(self, timeout_seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + timeout_seconds
        problem = "no answer yet"
        async with self.connect("admin") as api:
            while time.monotonic() < deadline:
                self.etcd.check()
                self.apiserver.check()
                try:
                    await cluster.text(api, "/readyz")
                    return
                except (ApiException, ApiUnavailable) as error:
                    problem = str(error)
                await asyncio.sleep(0.1)
        raise SandboxError(
            f"the API server was not ready within {timeout_seconds:.0f} s ({problem}); see {self.apiserver.log}"
        )

    def _service(self, name: str, binary: Path, arguments: list[str]) -> Service:
        return Service(name, [str(binary), *arguments], marker=self.layout.root, logs=self.layout.logs)

    def _write_kubeconfig(self, path: Path, user: str) -> None:
        # JSON is YAML; it needs no quoting rules
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "sandbox",
                    "cluster": {"server": self.server, "certificate-authority": str(self.ca_file)},
                }
            ],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": user}}],
            "current-context": "sandbox",
        }
        write_secret(path, json.dumps(config, indent=1))
