"""The files of one node: certificates, kubeconfigs, and the configuration of what runs on it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import yaml

from promptrollout.sandbox.controlplane.pki import Authority, write_secret

NAME = "node"
ADDRESS = "10.200.0.1"
SERVER = f"https://{ADDRESS}:6443"
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"

#: User and group of each static token; `admin` is the one that tests use.
_USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "coredns": ("coredns", "system:masters"),
    "kubelet": (f"system:node:{NAME}", "system:nodes"),
    "netpol": ("netpol", "system:masters"),
    "proxy": ("system:kube-proxy", ""),
    "scheduler": ("system:kube-scheduler", ""),
}
#: The API server's name towards the kubelet, which asks whether it may read logs and run commands in pods.
KUBELET_CLIENT = "kube-apiserver-kubelet-client"

_CONTAINERD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true   # in a container nothing may lower its oom_score_adj
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
"""
_COREDNS = """
.:53 {{
  bind {address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig}
    pods insecure
  }}
  cache 5
}}
"""
_PODS_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "dataDir": "/run/cni-ipam"},
        }
    ],
}


def write(directory: Path, pause_image: str) -> None:
    """Everything below `directory`/etc and `directory`/pki."""
    etc = directory / "etc"
    (etc / "cni").mkdir(parents=True)
    _write_certificates(directory / "pki")
    ca = directory / "pki" / "ca.crt"
    _write_users(etc, ca)
    (etc / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
    (etc / "cni" / "10-pods.conflist").write_text(json.dumps(_PODS_NETWORK))
    (etc / "containerd.toml").write_text(_CONTAINERD.format(pause=pause_image))
    (etc / "Corefile").write_text(_COREDNS.format(address=ADDRESS, kubeconfig=kubeconfig(directory, "coredns")))
    for name, content in (
        ("kubelet", _kubelet(directory, ca)),
        ("proxy", _proxy(directory)),
        ("scheduler", _scheduler(directory)),
    ):
        (etc / f"{name}.yaml").write_text(yaml.safe_dump(content))


def kubeconfig(directory: Path, user: str) -> Path:
    return directory / "etc" / f"{user}.kubeconfig"


def _write_certificates(pki: Path) -> None:
    authority = Authority(pki)
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
    authority.issue(
        "apiserver",
        common_name="kube-apiserver",
        addresses=(ADDRESS, SERVICES.replace("0.0/16", "0.1"), "127.0.0.1"),
        dns_names=names,
    )
    authority.issue("kubelet-client", common_name=KUBELET_CLIENT)
    authority.signing_key("service-accounts")


def _write_users(etc: Path, ca: Path) -> None:
    tokens = []
    for name, (user, group) in _USERS.items():
        token = secrets.token_urlsafe(24)
        tokens.append(f'{token},{user},{user},"{group}"')
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "node", "cluster": {"server": SERVER, "certificate-authority": str(ca)}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": name}}],
            "current-context": "node",
        }
        write_secret(etc / f"{name}.kubeconfig", yaml.safe_dump(content))
    write_secret(etc / "tokens.csv", "\n".join(tokens) + "\n")


def _kubelet(directory: Path, ca: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,  # there are machines whose controllers are bound to v1 hierarchies
        "failSwapOn": False,
        "clusterDNS": [ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": str(directory / "etc" / "resolv.conf"),
        "imageGCHighThresholdPercent": 100,
        # this machine's disk may be full for reasons of its own
        "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%", "memory.available": "100Mi"},
    }


def _proxy(directory: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig(directory, "proxy"))},
        "clusterCIDR": PODS,
        "hostnameOverride": NAME,
        # zero: left as they are on this machine
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _scheduler(directory: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(kubeconfig(directory, "scheduler"))},
    }
