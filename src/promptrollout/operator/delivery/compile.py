"""Compile a PromptDelivery for the gateway pods, and number it."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from promptrollout.api.delivery import (
    ArmConfig,
    DeliverySpec,
    FallbackConfig,
    Memory,
    ProviderConfig,
    TLSConfig,
    VersionRef,
)
from promptrollout.api.names import (
    API_VERSION,
    FORMAT_VERSION,
    LABEL_GATEWAY,
    LABEL_MANAGED_BY,
    LABEL_ROLLOUT,
    MANAGED_BY,
    METRIC_REQUESTS,
    shard_metric,
)
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.provider import TLS, ProviderSpec
from promptrollout.api.rollout import RolloutSpec, Snapshot
from promptrollout.engine.lifecycle.facts import DeliveryIntent
from promptrollout.engine.objectives.signals import edge_seconds, signal_of
from promptrollout.operator.cluster.identity import OncePerObject
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.copies import digest_if_any, prompt_of
from promptrollout.operator.delivery.signing_keys import drawn
from promptrollout.operator.gateways.provider_files import ca_source, key_source

Object = dict[str, Any]

_OF_THE_ENDPOINT = ("type", "base_url", "needs_key", "key_source", "auth", "tls")
"""Fields that belong to one endpoint, and not to another of the same name."""


class CannotCompile(Exception):
    """An object that an arm needs is missing; the last good configuration stays in force."""


def read(item: Object | None) -> DeliverySpec | None:
    """What a PromptDelivery object says; None if there is none or it cannot be read (it is then written anew)."""
    return None if item is None else _parse(item)


def _validated(item: Object) -> DeliverySpec | None:
    try:
        return DeliverySpec.model_validate(item.get("spec") or {})
    except ValidationError:
        return None


_parse: OncePerObject[DeliverySpec | None] = OncePerObject("PromptDelivery", _validated)


def compile_delivery(
    namespace: str,
    uid: str,
    spec: RolloutSpec,
    intent: DeliveryIntent,
    snapshots: Collection[Snapshot | None],
    existing: DeliverySpec | None,
    store: Store,
    at_least: int = 1,
    gateway: str = "",
    pods_read_keys: bool | None = None,
) -> DeliverySpec:
    """The delivery of `intent`. Its sequence grows only when pods have something new to take over.

    `snapshots`: whose objectives need histogram edges and shards. `at_least`: a sequence that no pod has gone beyond.
    `gateway`: whose pods are to serve it, if that is not yet the one that the spec names. `pods_read_keys`: all of them
    have its PromptSigningKey (True), or one cannot read any (False); None: not known, so what stands there stays.
    Raises CannotCompile.
    """
    gateway = gateway or spec.gateway_ref.name
    if store.get("PromptGateway", namespace, gateway) is None and existing is not None:
        gateway = existing.gateway
    key, keys = (existing.response_key, existing.response_keys) if existing is not None else (None, None)
    if pods_read_keys is not None:
        # people can read this object, so keys stand here only for pods that cannot read PromptSigningKeys
        key, keys = (None, None) if pods_read_keys else (key or drawn(), keys)
    wanted = DeliverySpec(
        format_version=FORMAT_VERSION,
        gateway=gateway,
        rollout_uid=uid,
        sequence=max(at_least, existing.sequence if existing else 1),
        weight=intent.weight,
        salt=intent.salt,
        stickiness=intent.stickiness,
        audience=intent.audience,
        testers=list(intent.testers),
        reporting=intent.reporting,
        stable=_arm(namespace, intent.stable, existing, store),
        canary=_arm(namespace, intent.canary, existing, store) if intent.canary else None,
        latency_edges_seconds=_edges(snapshots, existing),
        shard_metrics=_shard_metrics(snapshots, existing),
        scores=_scores(snapshots, existing),
        response_key=key,
        response_keys=keys,
        memory=intent.memory,
    )
    if existing is not None and _content(wanted) == _content(existing):
        return wanted
    following = existing.sequence + 1 if existing else 1
    return wanted.model_copy(update={"sequence": max(at_least, following)})


def _content(spec: DeliverySpec) -> DeliverySpec:
    """What pods act on. `memory` is for the operator alone."""
    return spec.model_copy(update={"sequence": 1, "memory": Memory()})


def gateway_held(
    namespace: str, uid: str, spec: RolloutSpec, stage: str | None, existing: DeliverySpec | None, store: Store
) -> str:
    """The gateway that keeps serving though the spec names another one; empty if there is none.

    Pods of the old gateway keep serving for minutes, and cannot be reached: they must not serve a canary then.
    """
    if existing is None or stage in (None, "Idle") or existing.gateway == spec.gateway_ref.name:
        return ""
    if existing.rollout_uid != uid or existing.retired_at is not None:
        return ""
    item = store.get("PromptGateway", namespace, existing.gateway)
    gone = item is None or item["metadata"].get("deletionTimestamp")
    return "" if gone else existing.gateway


def labels_of(name: str, spec: DeliverySpec) -> dict[str, str]:
    """By which pods and the operator find it: a delivery without them is as good as deleted."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_ROLLOUT: name, LABEL_GATEWAY: spec.gateway}


def is_labelled(item: Object, name: str, spec: DeliverySpec) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(labels.get(label) == value for label, value in labels_of(name, spec).items())


def body_of(namespace: str, name: str, spec: DeliverySpec, existing: Object | None) -> Object:
    """The object to write. It carries the resource version that it was planned from."""
    metadata: Object = {
        "name": name,
        "namespace": namespace,
        "labels": labels_of(name, spec),
    }
    if existing is not None:
        metadata["uid"] = existing["metadata"]["uid"]
        metadata["resourceVersion"] = existing["metadata"]["resourceVersion"]
    return {"apiVersion": API_VERSION, "kind": "PromptDelivery", "metadata": metadata, "spec": dump(spec)}


def dump(spec: DeliverySpec) -> Object:
    """As `spec.dump()`, but with prompts exactly as they were declared: that is what their digest is of."""
    content = spec.dump()
    content["stable"]["prompt"] = _prompt(spec.stable)
    if spec.canary is not None:
        content["canary"]["prompt"] = _prompt(spec.canary)
    return content


def _prompt(arm: ArmConfig) -> Object:
    return arm.prompt.model_dump(by_alias=True, exclude_none=True, exclude_unset=True, mode="json")


def _arm(namespace: str, version: VersionRef, existing: DeliverySpec | None, store: Store) -> ArmConfig:
    before = next(
        (arm for arm in (existing.stable, existing.canary) if arm is not None and arm.digest == version.digest)
        if existing
        else iter(()),
        None,
    )
    item = store.get("PromptVersion", namespace, version.version)
    prompt = prompt_of(item) if item is not None else None
    if prompt is None or digest_if_any(prompt) != version.digest:
        if before is None:
            raise CannotCompile(
                f"PromptVersion {version.version}, the operator's copy of the version to serve, is missing"
            )
        prompt = before.prompt
    known = [] if before is None else [before.provider, *(each.provider for each in before.fallbacks)]
    # as it is served now: type and URL are part of the version
    served = {each.name: each for each in known} if existing is not None and existing.retired_at is None else {}

    def provider(name: str, model: str) -> ProviderConfig:
        found = _provider(namespace, name, model, known, store)
        before = served.get(name, found)
        if (before.type, before.base_url) == (found.type, found.base_url):
            return found
        # the ModelProvider was recreated: its key must not go to the URL of the one before, nor the other way round
        return found.model_copy(update={field: getattr(before, field) for field in _OF_THE_ENDPOINT})

    return ArmConfig(
        version=version.version,
        digest=version.digest,
        prompt=prompt,
        provider=provider(prompt.provider_ref.name, prompt.model),
        fallbacks=[
            FallbackConfig(model=each.model, provider=provider(each.provider_ref.name, each.model))
            for each in prompt.fallbacks or ()
        ],
    )


def _provider(namespace: str, name: str, model: str, known: Collection[ProviderConfig], store: Store) -> ProviderConfig:
    """`known`: as they are delivered now, for a ModelProvider that is gone."""
    item = store.get("ModelProvider", namespace, name)
    try:
        spec = ProviderSpec.model_validate(item.get("spec") or {}) if item is not None else None
    except ValidationError:
        spec = None
    if spec is None:
        before = [each for each in known if each.name == name]
        if not before:
            raise CannotCompile(f"ModelProvider {name} is missing, and a version to be served needs it: create it")
        same_model = [each for each in before if each.price is not None and each.price.model == model]
        return (same_model or before)[0]
    tls = spec.tls or TLS()
    return ProviderConfig(
        name=name,
        type=spec.type,
        base_url=spec.base_url,
        needs_key=spec.api_key_secret_ref is not None,
        key_source=key_source(spec),
        auth=spec.auth,
        headers=spec.headers,
        query=spec.query,
        tls=TLSConfig(
            has_ca=tls.ca_config_map_ref is not None or tls.ca_secret_ref is not None,
            ca_source=ca_source(spec),
            insecure_skip_verify=tls.insecure_skip_verify,
        ),
        timeouts=spec.timeouts,
        max_retries=spec.max_retries,
        retry_budget_percent=spec.retry_budget_percent,
        price=next((price for price in spec.prices if price.model == model), None),
    )


def _edges(snapshots: Collection[Snapshot | None], existing: DeliverySpec | None) -> list[str]:
    found = (edge_seconds(objective) for snapshot in snapshots if snapshot for objective in snapshot.objectives)
    edges = {edge for edge in found if edge is not None}
    if not all(snapshots) and existing is not None:
        edges |= set(existing.latency_edges_seconds)  # the spec is invalid just now: change nothing that is served
    return sorted(edges, key=Decimal)[:20]


def _shard_metrics(snapshots: Collection[Snapshot | None], existing: DeliverySpec | None) -> list[str]:
    """By the same table as what is read, see `evidence.requests`; and what the sample ratio always needs."""
    signals = (signal_of(objective) for snapshot in snapshots if snapshot for objective in snapshot.objectives)
    metrics = {counter.metric for signal in signals for _, counter in signal.shard_counters}
    if not all(snapshots) and existing is not None:
        metrics |= set(existing.shard_metrics)
    return sorted(metrics | {shard_metric(METRIC_REQUESTS)})


def _scores(snapshots: Collection[Snapshot | None], existing: DeliverySpec | None) -> list[str]:
    found = (objective.score for snapshot in snapshots if snapshot for objective in snapshot.objectives)
    scores = {score for score in found if score is not None}
    if not all(snapshots) and existing is not None:
        scores |= set(existing.scores)
    return sorted(scores)[:20]


def prompt_in(spec: DeliverySpec | None, version: VersionRef) -> PromptSpec | None:
    """The prompt of a version whose copy was deleted, if the delivery still has it."""
    if spec is None:
        return None
    arms = [arm for arm in (spec.stable, spec.canary) if arm is not None]
    return next((arm.prompt for arm in arms if arm.digest == version.digest), None)
