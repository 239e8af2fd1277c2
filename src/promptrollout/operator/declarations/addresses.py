"""Where deliveries send requests. An endpoint's type and URL are part of a version: they stay as they are even if its
ModelProvider is deleted and recreated."""

from __future__ import annotations

from typing import Any

from promptrollout.operator.cluster.store import Store

Object = dict[str, Any]


def addresses(delivery: Object | None) -> set[tuple[str, str, str]]:
    """Name, type and URL of each provider of a PromptDelivery in force."""
    spec = (delivery or {}).get("spec") or {}
    if spec.get("retiredAt"):
        return set()
    arms = [spec.get("stable") or {}, spec.get("canary") or {}]
    configs = [each.get("provider") or {} for arm in arms for each in (arm, *(arm.get("fallbacks") or ()))]
    return {(each["name"], each.get("type", "OpenAI"), each["baseURL"]) for each in configs if each.get("baseURL")}


def elsewhere(namespace: str, name: str, now: tuple[str, str], store: Store) -> dict[str, set[str]]:
    """Rollouts with a version that is served at another address than its ModelProvider has `now`, and the URLs."""
    found: dict[str, set[str]] = {}
    for item in store.in_namespace("PromptDelivery", namespace):
        for provider, kind, url in addresses(item):
            if provider == name and (kind, url) != now:
                found.setdefault(item["metadata"]["name"], set()).add(url)
    return found
