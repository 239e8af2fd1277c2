"""Which objects have to be looked at again when one has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptrollout.api.names import LABEL_GATEWAY, LABEL_ROLLOUT
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.rollouts.addresses import addresses

Object = dict[str, Any]


def affected(key: Key, before: Object | None, after: Object | None, store: Store) -> set[Key]:
    """Keys to mark dirty. `before`, `after`: the object then and now; None: it was, or is, not there."""
    item = after or before
    if item is None:
        return set()
    space, name = key.namespace, key.name
    labels = item["metadata"].get("labels") or {}
    found: set[Key] = set()
    if key.kind == "PromptRollout":
        found.add(key)
        found |= {Key("PromptGateway", space, ref) for each in (before, after) if (ref := _gateway_of(each))}
    elif key.kind == "PromptDelivery":
        found.add(Key("PromptRollout", space, name))
        moved = addresses(before) ^ addresses(after)
        found |= {Key("ModelProvider", space, provider) for provider, _, _ in moved}
    elif key.kind == "PromptSigningKey":
        found.add(Key("PromptRollout", space, name))
    elif key.kind == "PromptVersion":
        found.add(key)
        if owner := labels.get(LABEL_ROLLOUT):
            found.add(Key("PromptRollout", space, owner))
        found |= {each for each, spec in _rollouts(store, space) if name in _versions(spec)}
        # somebody's object may stand where a copy is to be made
        in_the_way_of = name.rsplit("-", 1)[0]
        if store.get("PromptRollout", space, in_the_way_of) is not None:
            found.add(Key("PromptRollout", space, in_the_way_of))
    elif key.kind == "PromptSLO":
        found.add(key)
        for each, spec in _rollouts(store, space):
            refs = (spec.get("analysis") or {}).get("sloRefs") or []
            if any(ref.get("name") == name for ref in refs):
                found.add(each)
    elif key.kind == "ModelProvider":
        found.add(key)
        found |= {each for each, _ in _rollouts(store, space)}
        for gateway in store.in_namespace("PromptGateway", space):
            found.add(Key("PromptGateway", space, gateway["metadata"]["name"]))
    elif key.kind == "PromptGateway":
        found.add(key)
        found |= rollouts_of(space, name, store)
    elif key.kind == "ConfigMap":
        found |= {each for each, _ in _rollouts(store, space)}  # the overrides of all of them
    elif key.kind == "Deployment" and (gateway_name := labels.get(LABEL_GATEWAY)):
        found.add(Key("PromptGateway", space, gateway_name))
    return found


def rollouts_of(namespace: str, gateway: str, store: Store) -> set[Key]:
    """The rollouts whose spec names this gateway, or which it still serves."""
    found = {each for each, spec in _rollouts(store, namespace) if spec.get("gatewayRef", {}).get("name") == gateway}
    for delivery in store.in_namespace("PromptDelivery", namespace):
        if (delivery["metadata"].get("labels") or {}).get(LABEL_GATEWAY) == gateway:
            found.add(Key("PromptRollout", namespace, delivery["metadata"]["name"]))
    return found


def _rollouts(store: Store, namespace: str) -> Iterator[tuple[Key, Object]]:
    for item in store.in_namespace("PromptRollout", namespace):
        yield Key("PromptRollout", namespace, item["metadata"]["name"]), item.get("spec") or {}


def _versions(spec: Object) -> set[str]:
    return {str(spec[ref].get("name", "")) for ref in ("versionRef", "baselineRef") if spec.get(ref)}


def _gateway_of(item: Object | None) -> str:
    return str(((item or {}).get("spec") or {}).get("gatewayRef", {}).get("name", ""))
