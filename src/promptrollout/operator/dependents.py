"""Which objects are reconciled when one of a kind has changed: one function for each kind that is watched.

Each gets the key, the object before and after the change (None: it did not exist, or is gone) and the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from promptrollout.api.names import LABEL_GATEWAY, LABEL_ROLLOUT
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.declarations.addresses import addresses
from promptrollout.operator.rollouts.pod_failures import failure_of

Object = dict[str, Any]
Dependents = Callable[[Key, Object | None, Object | None, Store], set[Key]]


def of_rollout(key: Key, before: Object | None, after: Object | None, _: Store) -> set[Key]:
    """Also the gateways that its spec names, or named before."""
    gateways = {_spec(item).get("gatewayRef", {}).get("name") for item in (before, after)}
    return {key} | {Key("PromptGateway", key.namespace, str(name)) for name in gateways if name}


def of_delivery(key: Key, before: Object | None, after: Object | None, _: Store) -> set[Key]:
    """Its rollout, and providers whose address in it has changed."""
    providers = {provider for provider, _, _ in addresses(before) ^ addresses(after)}
    return of_signing_key(key) | {Key("ModelProvider", key.namespace, provider) for provider in providers}


def of_signing_key(key: Key, *_: object) -> set[Key]:
    return {Key("PromptRollout", key.namespace, key.name)}


def of_version(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    """Also the rollout that owns it, rollouts that name it, and one whose copy needs this name."""
    found = {key} | {rollout for rollout, spec in _rollouts(store, key.namespace) if key.name in _versions(spec)}
    if owner := _label(before, after, LABEL_ROLLOUT):
        found.add(Key("PromptRollout", key.namespace, owner))
    copied_for = key.name.rsplit("-", 1)[0]
    if store.get("PromptRollout", key.namespace, copied_for) is not None:
        found.add(Key("PromptRollout", key.namespace, copied_for))
    return found


def of_slo(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    def names_it(spec: Object) -> bool:
        return any(ref.get("name") == key.name for ref in (spec.get("analysis") or {}).get("sloRefs") or [])

    return {key} | {rollout for rollout, spec in _rollouts(store, key.namespace) if names_it(spec)}


def of_provider(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    """Also all rollouts and gateways of the namespace: fallbacks and mounted keys depend on it."""
    gateways = store.in_namespace("PromptGateway", key.namespace)
    return (
        {key}
        | of_overrides(key, before, after, store)
        | {Key("PromptGateway", key.namespace, gateway["metadata"]["name"]) for gateway in gateways}
    )


def of_gateway(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    return {key} | rollouts_of(key.namespace, key.name, store)


def of_overrides(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    """One ConfigMap holds the emergency overrides of all rollouts of a namespace."""
    return {rollout for rollout, _ in _rollouts(store, key.namespace)}


def of_deployment(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    gateway = _label(before, after, LABEL_GATEWAY)
    return {Key("PromptGateway", key.namespace, gateway)} if gateway else set()


def of_pod(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    """The rollouts of its gateway, once its container has ended or stopped answering."""
    if after is None or failure_of(after) == (failure_of(before) if before is not None else None):
        return set()
    gateways = {_label(item, None, LABEL_GATEWAY) for item in (before, after)}
    return {rollout for gateway in gateways if gateway for rollout in rollouts_of(key.namespace, gateway, store)}


def rollouts_of(namespace: str, gateway: str, store: Store) -> set[Key]:
    """The rollouts whose spec names this gateway, or which it still serves."""
    found = {each for each, spec in _rollouts(store, namespace) if spec.get("gatewayRef", {}).get("name") == gateway}
    for delivery in store.in_namespace("PromptDelivery", namespace):
        if _label(delivery, None, LABEL_GATEWAY) == gateway:
            found.add(Key("PromptRollout", namespace, delivery["metadata"]["name"]))
    return found


def _rollouts(store: Store, namespace: str) -> Iterator[tuple[Key, Object]]:
    for item in store.in_namespace("PromptRollout", namespace):
        yield Key("PromptRollout", namespace, item["metadata"]["name"]), _spec(item)


def _versions(spec: Object) -> set[str]:
    return {str(spec[ref].get("name", "")) for ref in ("versionRef", "baselineRef") if spec.get(ref)}


def _spec(item: Object | None) -> Object:
    return (item or {}).get("spec") or {}


def _label(before: Object | None, after: Object | None, label: str) -> str:
    labels = (after or before or {}).get("metadata", {}).get("labels") or {}
    return str(labels.get(label) or "")
