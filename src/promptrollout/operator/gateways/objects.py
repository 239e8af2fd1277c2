"""The objects of a PromptGateway: what its serving pods need, and nothing that the `restricted` standard refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from promptrollout.api.gateway import Auth, GatewaySpec, Limits, SecretName
from promptrollout.api.meta import ConfigMapKeyRef, SecretKeyRef
from promptrollout.api.names import (
    API_VERSION,
    CALLER_KEYS_DIR,
    LABEL_GATEWAY,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    PORT_ADMIN,
    PORT_HTTP,
    PROVIDER_KEYS_DIR,
    STATE_DIR,
)
from promptrollout.operator.gateways.pods import deployment_name
from promptrollout.operator.gateways.provider_files import Files, Ref

Object = dict[str, Any]
UID = 65532
_FILE_VOLUME = "provider-keys"
_CALLERS_VOLUME = "caller-keys"


def gateway_objects(
    gateway: Object,
    spec: GatewaySpec,
    image: str,
    files: Files,
    cluster_role: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[tuple[str, Object]]:
    """(kind, object), in the order in which they are needed. `cluster_role`: what its pods may do; `environment`: what
    they are told of the operator's configuration."""
    namespace, name = gateway["metadata"]["namespace"], gateway["metadata"]["name"]
    own = deployment_name(name)
    labels = {
        "app.kubernetes.io/name": "promptrollout-gateway",
        "app.kubernetes.io/instance": name,
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_GATEWAY: name,
    }
    selector = {"app.kubernetes.io/name": "promptrollout-gateway", LABEL_GATEWAY: name}
    owner = {
        "apiVersion": API_VERSION,
        "kind": "PromptGateway",
        "name": name,
        "uid": gateway["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }

    def made(kind: str, api_version: str, content: Object) -> tuple[str, Object]:
        metadata = {"name": own, "namespace": namespace, "labels": labels, "ownerReferences": [owner]}
        return kind, {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}

    deployment = _deployment(name, own, spec, image, files, labels, selector)
    (container,) = deployment["template"]["spec"]["containers"]
    container["env"] += [{"name": variable, "value": value} for variable, value in sorted(environment.items())]
    return [
        made("ServiceAccount", "v1", {"automountServiceAccountToken": False}),
        made(
            "RoleBinding",
            "rbac.authorization.k8s.io/v1",
            {
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_role},
                "subjects": [{"kind": "ServiceAccount", "name": own, "namespace": namespace}],
            },
        ),
        made("Deployment", "apps/v1", {"spec": deployment}),
        made(
            "Service",
            "v1",
            {
                "spec": {
                    "selector": selector,
                    "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
                }
            },
        ),
        made(
            "PodDisruptionBudget",
            "policy/v1",
            {
                "spec": {
                    "maxUnavailable": 1,
                    "selector": {"matchLabels": selector},
                    # pods that fail take no requests: they must not keep a node from being drained
                    "unhealthyPodEvictionPolicy": "AlwaysAllow",
                }
            },
        ),
        made("NetworkPolicy", "networking.k8s.io/v1", {"spec": _network_policy(selector)}),
    ]


def _deployment(
    name: str,
    own: str,
    spec: GatewaySpec,
    image: str,
    files: Files,
    labels: dict[str, str],
    selector: dict[str, str],
) -> Object:
    return {
        "replicas": spec.replicas,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": {
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": str(PORT_ADMIN),
                    "prometheus.io/path": "/metrics",
                },
            },
            "spec": {
                "serviceAccountName": own,
                "automountServiceAccountToken": True,
                "terminationGracePeriodSeconds": spec.drain_seconds + 10,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": UID,
                    "runAsGroup": UID,
                    "fsGroup": UID,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "topologySpreadConstraints": [
                    {
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": selector},
                    }
                ],
                "containers": [_container(name, spec, image)],
                "volumes": _volumes(files, _keys_ref(spec)),
            },
        },
    }


def _container(name: str, spec: GatewaySpec, image: str) -> Object:
    def by_field(variable: str, path: str) -> Object:
        return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def probe(path: str, **times: int) -> Object:
        return {"httpGet": {"path": path, "port": "admin"}, **times}

    resources = {part: values for part, values in spec.resources.dump().items() if values}
    return {
        "name": "gateway",
        "image": image,
        "args": ["gateway"],
        "env": [
            {"name": "PROMPTROLLOUT_GATEWAY", "value": name},
            by_field("POD_NAME", "metadata.name"),
            by_field("POD_NAMESPACE", "metadata.namespace"),
            by_field("POD_IP", "status.podIP"),
            {"name": "PROMPTROLLOUT_STATE_DIR", "value": STATE_DIR},
            {"name": "PROMPTROLLOUT_PROVIDER_KEYS_DIR", "value": PROVIDER_KEYS_DIR},
            *_limits(spec.limits),
            {"name": "PROMPTROLLOUT_DRAIN_SECONDS", "value": str(spec.drain_seconds)},
            *_auth(spec.auth),
        ],
        "ports": [
            {"name": "http", "containerPort": PORT_HTTP, "protocol": "TCP"},
            {"name": "admin", "containerPort": PORT_ADMIN, "protocol": "TCP"},
        ],
        "startupProbe": probe("/healthz", periodSeconds=1, failureThreshold=60),
        "readinessProbe": probe("/readyz", periodSeconds=2, failureThreshold=2),
        "livenessProbe": probe("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "state", "mountPath": STATE_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": _FILE_VOLUME, "mountPath": PROVIDER_KEYS_DIR, "readOnly": True},
            *([{"name": _CALLERS_VOLUME, "mountPath": CALLER_KEYS_DIR, "readOnly": True}] if _keys_ref(spec) else []),
        ],
    }


def _limits(limits: Limits) -> list[Object]:
    values = {
        "MAX_REQUEST_BYTES": limits.max_request_bytes,
        "MAX_CONCURRENT_REQUESTS": limits.max_concurrent_requests,
        "MAX_QUEUED_REQUESTS": limits.max_queued_requests,
        "MAX_QUEUE_MILLISECONDS": limits.max_queue_milliseconds,
    }
    if limits.requests_per_minute_per_key is not None:
        values["REQUESTS_PER_MINUTE_PER_KEY"] = limits.requests_per_minute_per_key
        values["BURST_PER_KEY"] = limits.burst_per_key
    return [{"name": f"PROMPTROLLOUT_{name}", "value": str(value)} for name, value in values.items()]


def _auth(auth: Auth) -> list[Object]:
    if auth.mode == "None":
        return []
    found = [
        {"name": "PROMPTROLLOUT_AUTH_MODE", "value": auth.mode},
        {"name": "PROMPTROLLOUT_CALLER_KEYS_DIR", "value": CALLER_KEYS_DIR},
    ]
    if auth.mode != "Keys":
        accounts = json.dumps([one.dump() for one in auth.service_accounts], sort_keys=True)
        found.append({"name": "PROMPTROLLOUT_AUTH_AUDIENCE", "value": auth.audience})
        found.append({"name": "PROMPTROLLOUT_AUTH_SERVICE_ACCOUNTS", "value": accounts})
    return found


def _keys_ref(spec: GatewaySpec) -> SecretName | None:
    return spec.auth.keys_secret_ref if spec.auth.mode in ("Keys", "KeysAndServiceAccounts") else None


def _volumes(files: Files, callers: SecretName | None) -> list[Object]:
    found: list[Object] = [
        {"name": "state", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": _FILE_VOLUME, "projected": {"sources": _sources(files)}},
    ]
    if callers is not None:
        # optional: without it nobody is let in, but the pod starts and says so
        found.append({"name": _CALLERS_VOLUME, "secret": {"secretName": callers.name, "optional": True}})
    return found


def _sources(files: Files) -> list[Object]:
    """Keys come as files: neither operator nor gateway may read Secrets through the API. A missing one is optional, so
    that it keeps no pod from starting; the pod says which file it lacks."""
    return [
        {
            "secret" if isinstance(ref, SecretKeyRef) else "configMap": {
                "name": ref.name,
                "items": [{"key": ref.key, "path": path}],
                "optional": True,
            }
        }
        for path, ref in sorted(files.items())
    ]


def held_template(deployment: Object, files: Files) -> Object:
    """The pod template of a Deployment as it runs, with these files: nothing else of it changes, so that at most a
    missing one replaces pods."""
    template: Object = copy.deepcopy(deployment["spec"]["template"])
    template.get("metadata", {}).pop("creationTimestamp", None)
    if mounted_files(deployment) != files:
        for volume in template["spec"].get("volumes") or []:
            if volume["name"] == _FILE_VOLUME:
                volume["projected"]["sources"] = _sources(files)
    return template


def _network_policy(selector: dict[str, str]) -> Object:
    return {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"ports": [{"protocol": "TCP", "port": PORT_HTTP}]},
            # operator and Prometheus, in whichever namespace; not from outside the cluster
            {"ports": [{"protocol": "TCP", "port": PORT_ADMIN}], "from": [{"namespaceSelector": {}}]},
        ],
        "egress": [{}],
    }


def mounted_files(deployment: Object) -> dict[str, Ref]:
    """The providers' files that a Deployment of ours mounts."""
    found: dict[str, Ref] = {}
    for volume in deployment["spec"]["template"]["spec"].get("volumes") or []:
        if volume["name"] != _FILE_VOLUME:
            continue
        for source in (volume.get("projected") or {}).get("sources") or []:
            for kind, ref in (("secret", SecretKeyRef), ("configMap", ConfigMapKeyRef)):
                for item in (source.get(kind) or {}).get("items") or []:
                    found[item["path"]] = ref(name=source[kind]["name"], key=item["key"])
    return found
