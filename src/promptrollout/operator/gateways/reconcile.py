"""Reconcile a PromptGateway: make its objects, hold its pods while a canary runs, report what is ready."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import ValidationError

from promptrollout.api.conditions import ConditionReason, ConditionType
from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.invalid import first_problem
from promptrollout.api.provider import ProviderSpec
from promptrollout.api.text import first_few
from promptrollout.operator.cluster.api import WATCHED, Api
from promptrollout.operator.cluster.conditions import conditions, same_status
from promptrollout.operator.cluster.events import announce
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.gateways.conditions import (
    SHOWN,
    Reported,
    authenticated,
    provider_keys_bound,
    providers_answer,
)
from promptrollout.operator.gateways.objects import gateway_objects, held_template, mounted_files
from promptrollout.operator.gateways.pods import deployment_name
from promptrollout.operator.gateways.provider_files import Files, files_of, kept, provider_of, without_late

logger = logging.getLogger(__name__)
Object = dict[str, Any]


OWNED_MAPS = ("resources", "requests", "limits", "selector", "podSelector", "matchLabels")
"""Maps that we own as a whole: a limit that the PromptGateway no longer sets is removed."""


class NameTaken(Exception):
    """An object with a name that we need belongs to another owner."""


class GatewayReconciler:
    """Server-side apply of the owned objects, only where the cluster's differ."""

    def __init__(
        self,
        api: Api,
        store: Store,
        default_image: str,
        sources: Collection[str],
        cluster_role: str,
        reported: Callable[[str, str], Reported | None] = lambda namespace, name: None,
        instance: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`reported`: problems that the pods of a gateway report. `instance`: this operator's pod, in Events.
        `environment`: what pods are given of its configuration."""
        self._api = api
        self._store = store
        self._default_image = default_image
        self._sources = sources
        self._cluster_role = cluster_role
        self._reported = reported
        self._instance = instance
        self._environment = environment or {}
        self._settled: dict[tuple[str, str, str], tuple[str, str]] = {}

    async def reconcile(self, key: Key, item: Object) -> None:
        try:
            spec = GatewaySpec.model_validate(item.get("spec") or {})
        except ValidationError as error:
            await self._write_status(
                key, item, None, "", (ConditionReason.INVALID_SPEC, f"spec.{first_problem(error)}")
            )
            return
        live = self._store.get("Deployment", key.namespace, deployment_name(key.name))
        if live is None:
            # providers that were applied with it may not be watched yet, and their keys would replace its pods
            for provider in await self._api.list("ModelProvider", key.namespace):
                self._store.put("ModelProvider", provider)
        mounted = mounted_files(live) if live is not None else {}
        image, files = spec.image or self._default_image, self._files(key, mounted)
        in_progress = self._in_progress(key)
        held = live is not None and bool(in_progress) and _is_serving(live)
        problems, waits = [], ""
        for kind, wanted in gateway_objects(item, spec, image, files, self._cluster_role, self._environment):
            if kind == "Deployment" and live is not None and held:
                providers = {config["name"] for config in self._in_use(key)}
                in_use = {path: ref for path, ref in files.items() if provider_of(path) in providers}
                template = held_template(live, mounted | without_late(in_use, mounted))
                if not self._is_settled(kind, live, wanted) and not covers(template, wanted["spec"]["template"]):
                    waits = f"; pods are replaced once these rollouts are complete: {in_progress}"
                wanted["spec"]["template"] = template
                image = str(template["spec"]["containers"][0]["image"])
            try:
                await self._ensure(kind, key.namespace, wanted)
            except NameTaken as problem:
                logger.error("%s: %s", key, problem)
                problems.append(str(problem))
        await self._write_status(
            key,
            item,
            spec,
            image,
            (ConditionReason.OBJECT_IN_THE_WAY, "; ".join(problems)) if problems else None,
            waits,
        )

    # ------------------------------------------------------------ objects

    def _in_progress(self, key: Key) -> str:
        """Names of its rollouts with a canary, for a message; empty: none. A rollout that now names another gateway may
        still be served here."""
        names = {rollout["metadata"]["name"] for rollout in self._rollouts(key)}
        for delivery in self._store.in_namespace("PromptDelivery", key.namespace):
            if delivery["spec"].get("gateway") == key.name:
                names.add(delivery["metadata"]["name"])
        found = {name: self._store.get("PromptRollout", key.namespace, name) or {} for name in names}
        busy = (
            name for name, rollout in found.items() if (rollout.get("status") or {}).get("stage") not in (None, "Idle")
        )
        return first_few(busy, SHOWN)

    def _rollouts(self, key: Key) -> list[Object]:
        return [
            rollout
            for rollout in self._store.in_namespace("PromptRollout", key.namespace)
            if (rollout.get("spec") or {}).get("gatewayRef", {}).get("name") == key.name
        ]

    def _in_use(self, key: Key) -> list[Object]:
        """The providers in this gateway's deliveries."""
        return [
            each["provider"]
            for delivery in self._store.in_namespace("PromptDelivery", key.namespace)
            if delivery["spec"].get("gateway") == key.name and not delivery["spec"].get("retiredAt")
            for arm in (delivery["spec"].get("stable"), delivery["spec"].get("canary"))
            if arm
            for each in (arm, *arm.get("fallbacks", ()))
        ]

    def _files(self, key: Key, mounted: Files) -> Files:
        """Where each provider's key and CA come from. A provider that was deleted or recreated while a rollout uses it
        keeps its files, in a folder of its own: the new one of its name does not get them."""
        in_use = self._in_use(key)
        names = {config["name"] for config in in_use}
        found = {path: ref for path, ref in mounted.items() if provider_of(path) in names}
        for item in self._store.in_namespace("ModelProvider", key.namespace):
            name = item["metadata"]["name"]
            elsewhere = [config for config in in_use if config["name"] == name and not _is_at(config, item)]
            sources = (each for config in elsewhere for each in (config.get("keySource"), _ca_source(config)))
            served = kept(mounted, ((name, source) for source in sources if source))
            found = {path: ref for path, ref in found.items() if provider_of(path) != name} | served
            try:
                spec = ProviderSpec.model_validate(item.get("spec") or {})
            except ValidationError:
                continue  # its own status says so
            found |= files_of(name, spec)
        return found

    async def _ensure(self, kind: str, namespace: str, wanted: Object) -> None:
        """Apply unless nothing differs. Read first: an apply without effect is still a write."""
        name = wanted["metadata"]["name"]
        live = self._store.get(kind, namespace, name) if kind in WATCHED else None
        if live is None:
            live = await self._api.get(kind, namespace, name)
        # items of a list do not say what they are
        content = {field: value for field, value in wanted.items() if field not in ("apiVersion", "kind")}
        if live is not None and (covers(live, content) or self._is_settled(kind, live, wanted)):
            return
        if live is not None and not _ours(live, wanted):
            raise NameTaken(f"{kind} {name} does not belong to this PromptGateway: delete or rename it")
        if live is not None and kind == "RoleBinding" and not covers(live["roleRef"], wanted["roleRef"]):
            await self._api.delete(kind, live)  # the role of a RoleBinding can never be changed
        answer = await self._api.apply(kind, namespace, name, wanted)
        if surplus := _surplus(answer.get("spec") or {}, wanted.get("spec") or {}):
            # fields of other managers, which an apply leaves alone
            answer = await self._api.merge(kind, namespace, name, {"spec": surplus})
        # the server may write a value in another form (1000m for 1): that is no difference
        self._settled[kind, namespace, name] = (_hash(wanted), _hash(answer))
        if kind in WATCHED:
            self._store.put(kind, answer, quiet=True)

    def _is_settled(self, kind: str, live: Object, wanted: Object) -> bool:
        place = (kind, wanted["metadata"]["namespace"], wanted["metadata"]["name"])
        return self._settled.get(place) == (_hash(wanted), _hash(live))

    # ------------------------------------------------------------ status

    async def _write_status(
        self,
        key: Key,
        item: Object,
        spec: GatewaySpec | None,
        image: str,
        problem: tuple[ConditionReason, str] | None = None,
        waits: str = "",
    ) -> None:
        """`problem`: reason and message if it is not ready."""
        deployment = self._store.get("Deployment", key.namespace, deployment_name(key.name)) or {}
        found = deployment.get("status") or {}
        ready = int(found.get("readyReplicas", 0))
        wanted = spec.replicas if spec is not None else 0
        if problem:
            truth, (reason, message) = False, problem
        elif spec is not None and spec.metrics_source not in self._sources:
            known = ", ".join(sorted(self._sources)) or "none"
            truth, reason = False, ConditionReason.UNKNOWN_METRICS_SOURCE
            message = f"spec.metricsSource: the operator has no source {spec.metrics_source} (it has: {known})"
        elif ready >= wanted:
            truth, reason, message = True, ConditionReason.AVAILABLE, f"{ready} of {wanted} pods are ready{waits}"
        else:
            truth, reason, message = (
                False,
                ConditionReason.WAITING_FOR_PODS,
                f"{ready} of {wanted} pods are ready{waits}",
            )
        before = {c.get("type"): c for c in (item.get("status") or {}).get("conditions") or []}
        reported = self._reported(key.namespace, key.name)
        truths = {
            ConditionType.READY: (truth, reason, message),
            **authenticated(spec, deployment, reported, before.get(ConditionType.AUTHENTICATED, {})),
            **providers_answer(reported, before.get(ConditionType.PROVIDERS_ANSWER, {})),
            **provider_keys_bound(reported, before.get(ConditionType.PROVIDER_KEYS_BOUND, {})),
        }
        status = {
            "observedGeneration": item["metadata"].get("generation", 0),
            "replicas": int(found.get("replicas", 0)),
            "readyReplicas": ready,
            "rollouts": len(self._rollouts(key)),
            "image": image,
            "conditions": conditions(item, truths, time.time()),
        }
        if not same_status(item, status):
            self._store.put("PromptGateway", await self._api.apply_status("PromptGateway", item, status), quiet=True)
            await announce(self._api, "PromptGateway", item, status["conditions"], self._instance)


def _is_at(config: Object, provider: Object) -> bool:
    """Whether a delivery's provider has the address of the present ModelProvider of its name. If so, the delivery
    follows changes of its key and CA."""
    spec = provider.get("spec") or {}
    return all(
        config.get(field) == spec.get(field, default) for field, default in (("type", "OpenAI"), ("baseURL", ""))
    )


def _ca_source(config: Object) -> str | None:
    found: str | None = (config.get("tls") or {}).get("caSource")
    return found


def covers(live: Any, wanted: Any) -> bool:
    """Is all of `wanted` in `live`? Lists must have the same length and order, and OWNED_MAPS no other keys. Other
    fields that the server filled in do not matter."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            (covers(live.get(name), value) or (value in ({}, []) and live.get(name) is None))
            and not (name in OWNED_MAPS and _others(live.get(name), value))
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(a, b) for a, b in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def _others(live: Any, wanted: Any) -> list[str]:
    """Keys of other managers in a map that we own."""
    return sorted(set(live or {}) - set(wanted)) if isinstance(wanted, dict) and isinstance(live, dict | None) else []


def _surplus(live: Any, wanted: Any) -> Object:
    """A merge patch that removes what is not wanted. A list with more than is wanted is sent as a whole."""
    patch: Object = {}
    for name, value in wanted.items():
        found = live.get(name)
        if isinstance(value, dict) and isinstance(found, dict):
            inner = _surplus(found, value)
            if name in OWNED_MAPS:
                inner |= dict.fromkeys(_others(found, value))
            if inner:
                patch[name] = inner
        elif isinstance(value, list) and isinstance(found, list) and _has_more(found, value):
            patch[name] = value
    return patch


def _has_more(live: list[Any], wanted: list[Any]) -> bool:
    if len(live) != len(wanted):
        return True
    pairs = zip(live, wanted, strict=True)
    return any(isinstance(a, dict) and isinstance(b, dict) and bool(_surplus(a, b)) for a, b in pairs)


def _is_serving(deployment: Object) -> bool:
    """Has it pods that serve callers? Not if none is ready, or if the present ones never become ready: a correction
    must not wait for a rollout that waits for these pods."""
    status = deployment.get("status") or {}
    stuck = any(c.get("type") == "Progressing" and c.get("status") == "False" for c in status.get("conditions") or [])
    return not stuck and int(status.get("readyReplicas", 0)) > 0


def _ours(live: Object, wanted: Object) -> bool:
    uid = wanted["metadata"]["ownerReferences"][0]["uid"]
    owners = live["metadata"].get("ownerReferences") or []
    # an object of a deleted gateway of the same name is garbage-collected, and then made again
    return any(owner.get("uid") == uid for owner in owners)


def _hash(item: Object) -> str:
    volatile = ("managedFields", "resourceVersion", "generation")
    metadata = {name: value for name, value in item["metadata"].items() if name not in volatile}
    # the deployment controller counts revisions in an annotation
    metadata.pop("annotations", None)
    content = {name: value for name, value in item.items() if name not in ("status", "metadata", "apiVersion", "kind")}
    return hashlib.sha256(json.dumps([metadata, content], sort_keys=True).encode()).hexdigest()
