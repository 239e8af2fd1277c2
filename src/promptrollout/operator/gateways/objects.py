"""The objects of a PromptGateway: what its pods need, within the `restricted` Pod Security Standard."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from promptrollout.api.gateway import GatewaySpec, SecretName
from promptrollout.api.meta import ConfigMapKeyRef, SecretKeyRef
from promptrollout.api.names import API_VERSION, LABEL_GATEWAY, LABEL_MANAGED_BY, MANAGED_BY
from promptrollout.api.pod_settings import (
    CALLER_KEYS_DIR,
    PORT_ADMIN,
    PORT_HTTP,
    PROVIDER_KEYS_DIR,
    STATE_DIR,
    PodSettings,
    from_pod,
    variable,
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
    they are given of the operator's configuration."""
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
    def probe(path: str, **times: int) -> Object:
        return {"httpGet": {"path": path, "port": "admin"}, **times}

    resources = {part: values for part, values in spec.resources.dump().items() if values}
    return {
        "name": "gateway",
        "image": image,
        "args": ["gateway"],
        "env": _environment(pod_settings(name, spec)),
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


def pod_settings(name: str, spec: GatewaySpec) -> PodSettings:
    """What the pods of the gateway `name` are given. What is not set here is not written into their Deployment."""
    limits, auth = spec.limits, spec.auth
    values: Object = {
        "gateway": name,
        "state_dir": STATE_DIR,
        "provider_keys_dir": PROVIDER_KEYS_DIR,
        "drain_seconds": spec.drain_seconds,
    } | dict(limits)
    if limits.requests_per_minute_per_key is None:
        del values["requests_per_minute_per_key"], values["burst_per_key"]
    if auth.mode != "None":
        values |= {"auth_mode": auth.mode, "caller_keys_dir": CALLER_KEYS_DIR}
        if auth.mode != "Keys":
            values |= {"auth_audience": auth.audience, "auth_service_accounts": auth.service_accounts}
    return PodSettings.model_validate(values)


def _environment(settings: PodSettings) -> list[Object]:
    values = settings.environment()
    found: list[Object] = []
    for name, field in PodSettings.model_fields.items():
        if (source := from_pod(field)) is not None:
            reference = {"fieldRef": {"fieldPath": source.field_path}}
            found.append({"name": source.variable, "valueFrom": reference})
        elif variable(name) in values:
            found.append({"name": variable(name), "value": values[variable(name)]})
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
        # optional: without it every caller is rejected, but the pod starts and reports it
        found.append({"name": _CALLERS_VOLUME, "secret": {"secretName": callers.name, "optional": True}})
    return found


def _sources(files: Files) -> list[Object]:
    """Keys come as files: neither operator nor gateway may read Secrets through the API. A missing one is optional, so
    that pods start, and report which file is missing."""
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
