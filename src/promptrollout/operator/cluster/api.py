"""Calls to the API server that the operator makes: the kinds it knows, counted writes, lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.api.names import (
    API_VERSION,
    FIELD_MANAGER_OPERATOR,
    FIELD_MANAGER_STATUS,
    LABEL_GATEWAY,
    LABEL_MANAGED_BY,
    LABEL_OVERRIDE,
    MANAGED_BY,
)
from promptrollout.cluster import APPLY_PATCH, MERGE_PATCH, ApiException, ApiUnavailable
from promptrollout.operator.cluster.metrics import Metrics

Object = dict[str, Any]


class Stale(Exception):
    """Another client wrote the object meanwhile: it was read again, and is planned again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`selector`: only objects with these labels are watched."""

    name: str
    api_version: str
    plural: str
    selector: str = ""


def _own(name: str, plural: str) -> Kind:
    return Kind(name, API_VERSION, plural)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _own("PromptRollout", "promptrollouts"),
        _own("PromptVersion", "promptversions"),
        _own("ModelProvider", "modelproviders"),
        _own("PromptGateway", "promptgateways"),
        _own("PromptSLO", "promptslos"),
        _own("PromptDelivery", "promptdeliveries"),
        _own("PromptSigningKey", "promptsigningkeys"),
        Kind("Pod", "v1", "pods", LABEL_GATEWAY),
        Kind("ConfigMap", "v1", "configmaps", LABEL_OVERRIDE),
        Kind("Deployment", "apps/v1", "deployments", f"{LABEL_MANAGED_BY}={MANAGED_BY}"),
        Kind("Service", "v1", "services"),
        Kind("ServiceAccount", "v1", "serviceaccounts"),
        Kind("RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings"),
        Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
        Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
        Kind("Event", "events.k8s.io/v1", "events"),
    )
}
WATCHED = (
    "PromptGateway",
    "ModelProvider",
    "PromptVersion",
    "PromptSLO",
    "PromptSigningKey",
    "PromptDelivery",
    "PromptRollout",
    "Deployment",
    "ConfigMap",
    "Pod",
)


def path_of(kind: str, namespace: str | None = None, name: str | None = None) -> str:
    known = KINDS[kind]
    path = f"/apis/{known.api_version}" if "/" in known.api_version else f"/api/{known.api_version}"
    if namespace is not None:
        path += f"/namespaces/{namespace}"
    path += f"/{known.plural}"
    return path if name is None else f"{path}/{quote(name, safe='')}"


def error_text(error: ApiException | ApiUnavailable) -> str:
    """For a log."""
    return f"HTTP {error.status}: {error.reason}" if isinstance(error, ApiException) else str(error)


class Api:
    """The operator's calls to the API server. Methods raise ApiException (an error as answer) and ApiUnavailable."""

    def __init__(self, client: ApiClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    # ------------------------------------------------------------ reading

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """None if it does not exist."""
        try:
            return await cluster.request(self._client, "GET", path_of(kind, namespace, name))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: str, namespace: str | None = None, selector: str | None = None) -> list[Object]:
        """All pages; by default of the objects that are watched."""
        label_selector = KINDS[kind].selector if selector is None else selector
        params = {"labelSelector": label_selector} if label_selector else {}
        items, _ = await cluster.list_all(self._client, path_of(kind, namespace), params)
        return items

    async def served_plurals(self) -> set[str]:
        """Resources of our group that the API server knows: the CRDs that are established."""
        try:
            answer = await cluster.request(self._client, "GET", f"/apis/{API_VERSION}")
        except ApiException as error:
            if error.status == 404:
                return set()
            raise
        return {resource["name"] for resource in answer.get("resources") or []}

    # ------------------------------------------------------------ writing

    async def create(self, kind: str, namespace: str, body: Object) -> Object:
        """409 if an object of this name exists."""
        return await self._write("create", kind, "POST", path_of(kind, namespace), body, {}, "application/json")

    async def apply(self, kind: str, namespace: str, name: str, body: Object) -> Object:
        """Server-side apply of an object that we own, over other managers of its fields."""
        return await self._write(
            "apply", kind, "PATCH", path_of(kind, namespace, name), body, {"force": "true"}, APPLY_PATCH
        )

    async def apply_status(self, kind: str, subject: Object, status: Object) -> Object:
        """The whole status, refused with 409 unless the object still is what `subject` says.

        Fields that another field manager set and that we do not are removed: a mixed status would be wrong.
        """
        body: Object = {
            "apiVersion": KINDS[kind].api_version,
            "kind": kind,
            "metadata": _identity(subject, version=True),
            "status": status,
        }
        namespace, name = subject["metadata"].get("namespace", ""), subject["metadata"]["name"]
        path = path_of(kind, namespace, name) + "/status"
        params = {"force": "true", "fieldManager": FIELD_MANAGER_STATUS}
        answer = await self._write("status", kind, "PATCH", path, body, params, APPLY_PATCH)
        left_over = _left_over(status, answer.get("status") or {})
        if left_over:
            body = {"metadata": _identity(answer, version=True), "status": left_over}
            answer = await self._write("status", kind, "PATCH", path, body, {}, MERGE_PATCH)
        return answer

    async def merge(self, kind: str, namespace: str, name: str, body: Object) -> Object:
        return await self._write("merge", kind, "PATCH", path_of(kind, namespace, name), body, {}, MERGE_PATCH)

    async def delete(self, kind: str, subject: Object) -> None:
        """An object that is gone is deleted; another one of its name is left alone."""
        metadata = subject["metadata"]
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": metadata["uid"]}}
        path = path_of(kind, metadata.get("namespace", ""), metadata["name"])
        try:
            await self._write("delete", kind, "DELETE", path, body, {}, "application/json")
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    async def evict(self, namespace: str, pod: str) -> bool:
        """False if a PodDisruptionBudget forbids it now."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        try:
            path = path_of("Pod", namespace, pod) + "/eviction"
            await self._write("evict", "Pod", "POST", path, body, {}, "application/json")
        except ApiException as error:
            if error.status not in (404, 429):
                raise
            return bool(error.status == 404)
        return True

    async def _write(
        self, verb: str, kind: str, method: str, path: str, body: Object, params: dict[str, str], content_type: str
    ) -> Object:
        if method != "DELETE":
            params = {"fieldManager": FIELD_MANAGER_OPERATOR} | params
        try:
            answer = await cluster.request(
                self._client, method, path, params=params, body=body, content_type=content_type
            )
        except ApiException as error:
            self._metrics.writes.labels(kind, verb, str(error.status)).inc()
            raise
        except ApiUnavailable:
            self._metrics.writes.labels(kind, verb, "unavailable").inc()
            raise
        self._metrics.writes.labels(kind, verb, "ok").inc()
        return answer


def _identity(subject: Object, *, version: bool) -> Object:
    metadata = subject["metadata"]
    identity = {"name": metadata["name"], "uid": metadata["uid"]}
    if metadata.get("namespace"):
        identity["namespace"] = metadata["namespace"]
    if version:
        identity["resourceVersion"] = metadata["resourceVersion"]
    return identity


def _left_over(wanted: Object, found: Object) -> Object:
    """A merge patch that takes out what `found` has beyond `wanted`; lists of ours are whole already."""
    patch: Object = {}
    for name, value in found.items():
        if name not in wanted:
            patch[name] = None
        elif isinstance(value, dict) and isinstance(wanted[name], dict):
            if inner := _left_over(wanted[name], value):
                patch[name] = inner
        elif name == "conditions" and len(value) != len(wanted[name]):
            patch[name] = wanted[name]
    return patch
