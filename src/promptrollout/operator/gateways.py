"""Reconcile a PromptGateway: make its objects, hold its image while a canary runs, report what is ready."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.meta import SecretKeyRef
from promptrollout.api.provider import ProviderSpec
from promptrollout.operator.acknowledge import deployment_name
from promptrollout.operator.cluster_api import WATCHED, Api
from promptrollout.operator.conditions import conditions, same_status
from promptrollout.operator.gateway_objects import gateway_objects, mounted_keys
from promptrollout.operator.queue import Key
from promptrollout.operator.store import Store

logger = logging.getLogger(__name__)
Object = dict[str, Any]


class GatewayReconciler:
    """Server-side apply of the owned objects, only where the cluster's differ."""

    def __init__(self, api: Api, store: Store, default_image: str, sources: Collection[str]) -> None:
        self._api = api
        self._store = store
        self._default_image = default_image
        self._sources = sources
        self._settled: dict[tuple[str, str, str], tuple[str, str]] = {}

    async def reconcile(self, key: Key, item: Object) -> None:
        try:
            spec = GatewaySpec.model_validate(item.get("spec") or {})
        except ValidationError as error:
            await self._write_status(key, item, None, "", str(error.errors()[0]["msg"]))
            return
        image = self._image(key, spec)
        if self._store.get("Deployment", key.namespace, deployment_name(key.name)) is None:
            # applied together with it, but of another watch: without this its pods would soon be replaced
            for provider in await self._api.list("ModelProvider", key.namespace):
                self._store.put("ModelProvider", provider)
        for kind, wanted in gateway_objects(item, spec, image, self._keys(key)):
            await self._ensure(kind, key.namespace, wanted)
        await self._write_status(key, item, spec, image)

    # ------------------------------------------------------------ objects

    def _image(self, key: Key, spec: GatewaySpec) -> str:
        """A new default is taken over only while no rollout of this gateway is in progress."""
        if spec.image:
            return spec.image
        deployment = self._store.get("Deployment", key.namespace, deployment_name(key.name))
        if deployment is None:
            return self._default_image
        running = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
        return running if self._busy(key) else self._default_image

    def _busy(self, key: Key) -> bool:
        return any((rollout.get("status") or {}).get("stage") not in (None, "Idle") for rollout in self._rollouts(key))

    def _rollouts(self, key: Key) -> list[Object]:
        return [
            rollout
            for rollout in self._store.in_namespace("PromptRollout", key.namespace)
            if (rollout.get("spec") or {}).get("gatewayRef", {}).get("name") == key.name
        ]

    def _keys(self, key: Key) -> dict[str, SecretKeyRef]:
        """Which Secret each provider's key comes from. One that was deleted while a rollout is served with it stays."""
        deployment = self._store.get("Deployment", key.namespace, deployment_name(key.name))
        in_use = {
            arm["provider"]["name"]
            for delivery in self._store.in_namespace("PromptDelivery", key.namespace)
            if delivery["spec"].get("gateway") == key.name and not delivery["spec"].get("retiredAt")
            for arm in (delivery["spec"].get("stable"), delivery["spec"].get("canary"))
            if arm
        }
        mounted = mounted_keys(deployment) if deployment is not None else {}
        found = {name: ref for name, ref in mounted.items() if name in in_use}
        for item in self._store.in_namespace("ModelProvider", key.namespace):
            name = item["metadata"]["name"]
            found.pop(name, None)
            try:
                ref = ProviderSpec.model_validate(item.get("spec") or {}).api_key_secret_ref
            except ValidationError:
                continue  # its own status says so
            if ref is not None:
                found[name] = ref
        return found

    async def _ensure(self, kind: str, namespace: str, wanted: Object) -> None:
        """Apply unless everything that we want is there. Read first: an apply without effect is still a write."""
        name = wanted["metadata"]["name"]
        live = self._store.get(kind, namespace, name) if kind in WATCHED else None
        if live is None:
            live = await self._api.get(kind, namespace, name)
        place = (kind, namespace, name)
        # items of a list do not say what they are
        content = {field: value for field, value in wanted.items() if field not in ("apiVersion", "kind")}
        if live is not None and (covers(live, content) or self._settled.get(place) == (_hash(wanted), _hash(live))):
            return
        if live is not None and not _ours(live, wanted):
            logger.error(
                "%s %s/%s is in the way: it does not belong to the PromptGateway; delete or rename it",
                kind,
                namespace,
                name,
            )
            return
        answer = await self._api.apply(kind, namespace, name, wanted)
        # the server may write a value in another way than we do (1000m for 1): that is settled, and no reason to write
        self._settled[place] = (_hash(wanted), _hash(answer))
        if kind in WATCHED:
            self._store.put(kind, answer, quiet=True)

    # ------------------------------------------------------------ status

    async def _write_status(
        self, key: Key, item: Object, spec: GatewaySpec | None, image: str, problem: str = ""
    ) -> None:
        deployment = self._store.get("Deployment", key.namespace, deployment_name(key.name)) or {}
        found = deployment.get("status") or {}
        ready = int(found.get("readyReplicas", 0))
        wanted = spec.replicas if spec is not None else 0
        if problem:
            truth, reason, message = False, "InvalidSpec", problem
        elif spec is not None and spec.metrics_source not in self._sources:
            known = ", ".join(sorted(self._sources)) or "none"
            truth, reason = False, "UnknownMetricsSource"
            message = f"spec.metricsSource: the operator has no source {spec.metrics_source} (it has: {known})"
        elif ready >= wanted:
            truth, reason, message = True, "Available", f"{ready} of {wanted} pods are ready"
        else:
            truth, reason, message = False, "WaitingForPods", f"{ready} of {wanted} pods are ready"
        status = {
            "observedGeneration": item["metadata"].get("generation", 0),
            "replicas": int(found.get("replicas", 0)),
            "readyReplicas": ready,
            "rollouts": len(self._rollouts(key)),
            "image": image,
            "conditions": conditions(item, {"Ready": (truth, reason, message)}, time.time()),
        }
        if not same_status(item, status):
            self._store.put("PromptGateway", await self._api.apply_status("PromptGateway", item, status), quiet=True)


def covers(live: Any, wanted: Any) -> bool:
    """Is all of `wanted` in `live`? Lists must agree in length and order; what the server filled in does not matter."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            covers(live.get(name), value) or (value in ({}, []) and live.get(name) is None)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(a, b) for a, b in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def _ours(live: Object, wanted: Object) -> bool:
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    owners = live["metadata"].get("ownerReferences") or []
    # an object that is left of a gateway of the same name that is being deleted goes by itself, and then comes anew
    return any(owner.get("uid") == uid for owner in owners)


def _hash(item: Object) -> str:
    volatile = ("managedFields", "resourceVersion", "generation")
    metadata = {name: value for name, value in item["metadata"].items() if name not in volatile}
    # the deployment controller counts revisions in an annotation
    metadata.pop("annotations", None)
    content = {name: value for name, value in item.items() if name not in ("status", "metadata", "apiVersion", "kind")}
    return hashlib.sha256(json.dumps([metadata, content], sort_keys=True).encode()).hexdigest()
