"""A gateway's pods: those of its own Deployment that take requests."""

from __future__ import annotations

from typing import Any

from promptrollout.api.names import LABEL_GATEWAY
from promptrollout.operator.cluster.store import Store

Object = dict[str, Any]


def deployment_name(gateway: str) -> str:
    """Of a PromptGateway's Deployment, Service, ServiceAccount and so on. Not the bare name: every namespace has a
    ServiceAccount `default`."""
    return f"{gateway}-gateway"


def own_pods(store: Store, namespace: str, gateway: str) -> list[Object]:
    """Pods of the gateway's own Deployment, of all its ReplicaSets, by name."""
    return sorted(
        (
            pod
            for pod in store.in_namespace("Pod", namespace)
            if (pod["metadata"].get("labels") or {}).get(LABEL_GATEWAY) == gateway
            and _belongs(pod, deployment_name(gateway))
        ),
        key=lambda pod: str(pod["metadata"]["name"]),
    )


def serving_pods(store: Store, namespace: str, gateway: str) -> list[Object]:
    """Those that are ready."""
    return [pod for pod in own_pods(store, namespace, gateway) if is_ready(pod)]


def _belongs(pod: Object, deployment: str) -> bool:
    """By its controller: a ReplicaSet is named after its Deployment and the hash of the pod's template."""
    template = (pod["metadata"].get("labels") or {}).get("pod-template-hash", "")
    return any(
        owner.get("controller")
        and owner.get("kind") == "ReplicaSet"
        and owner.get("name") == f"{deployment}-{template}"
        for owner in pod["metadata"].get("ownerReferences") or []
    )


def is_ready(pod: Object) -> bool:
    status = pod.get("status") or {}
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
    return ready and not pod["metadata"].get("deletionTimestamp") and bool(status.get("podIP"))
