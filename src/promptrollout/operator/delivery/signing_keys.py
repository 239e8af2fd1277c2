"""PromptSigningKeys: the keys that a rollout's response ids are signed with, drawn once and changed in turn.

Releases before had them in the PromptDelivery, where whoever may `view` reads them. They stay there only while a pod of
the gateway cannot read PromptSigningKeys.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from promptrollout.api.delivery import DeliverySpec, PodReport
from promptrollout.api.names import API_VERSION, LABEL_GATEWAY, LABEL_MANAGED_BY, LABEL_ROLLOUT, MANAGED_BY
from promptrollout.api.signing_key import SigningKeySpec
from promptrollout.cluster import ApiException
from promptrollout.engine.lifecycle.draft import timestamp
from promptrollout.operator.cluster.api import Api, Stale
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store

logger = logging.getLogger(__name__)
Object = dict[str, Any]

KIND: Final = "PromptSigningKey"
SIGNS_SECONDS: Final = 30 * 86_400.0
"""At least so long does a key sign, and as long is it believed afterwards: longer than votes are counted (a day),
conversations are pinned (half a day) and OpenAI keeps answers to go on from (30 days)."""
MAX_READABLE: Final = 8
CANNOT_SECONDS: Final = 60.0
"""A pod must report for so long that it cannot read keys before they stand where people can read them, and could sign
votes with them."""


def drawn() -> str:
    return secrets.token_hex(32)


def read(item: Object | None) -> SigningKeySpec | None:
    """None if it is missing or cannot be read: then new keys are drawn."""
    try:
        return None if item is None else SigningKeySpec.model_validate(item.get("spec") or {})
    except ValidationError:
        return None


def wanted(existing: SigningKeySpec | None, delivery: DeliverySpec, now: float) -> SigningKeySpec:
    """The object's content. `delivery`: as it is about to be written; `now`: since the epoch.

    The next key signs once this one did so long enough; pods have known it since it was drawn, so a pod that is a
    moment behind does not refuse what another one signed.
    """
    found = existing or SigningKeySpec(
        gateway=delivery.gateway,
        rollout_uid=delivery.rollout_uid,
        key=drawn(),
        next=drawn(),
        rotated_at=timestamp(int(now)),
    )
    changes: dict[str, Any] = {"gateway": delivery.gateway, "rollout_uid": delivery.rollout_uid}
    if now - _seconds(found.rotated_at) >= SIGNS_SECONDS:
        changes |= {"key": found.next, "next": drawn(), "previous": found.key, "rotated_at": timestamp(int(now))}
    readable = _keys_of(delivery)
    until = found.readable_until
    if readable:
        older = [key for key in found.readable if key not in readable]
        changes |= {"readable": [*readable, *older][:MAX_READABLE], "readable_until": None}
    elif found.readable and until is None:
        changes["readable_until"] = timestamp(int(now + SIGNS_SECONDS))
    elif until is not None and now >= _seconds(until):
        changes |= {"readable": [], "readable_until": None}
    return found.model_copy(update=changes)


def _keys_of(delivery: DeliverySpec) -> list[str]:
    """That people can read."""
    beside = delivery.response_keys
    readable = (delivery.response_key, *((beside.next, beside.previous) if beside is not None else ()))
    return [key for key in readable if key is not None]


class KeyReaders:
    """What the pods of one gateway say of PromptSigningKeys, over time."""

    def __init__(self) -> None:
        self._cannot: dict[str, dict[str, float]] = {}
        """By rollout and pod: since when it says that it cannot read any."""

    def all_read(self, reports: Collection[PodReport | str], rollout: str, now: float) -> bool | None:
        """Whether all pods have the rollout's keys (True), or one has not been able to read any for a while (False);
        None: not known. One that has not heard the API server yet says nothing. `now`: on a clock that only grows."""
        heard = [report for report in reports if not isinstance(report, str) and report.loaded]
        held = {report.pod: _held(report, rollout) for report in heard}
        before = self._cannot.pop(rollout, {})
        if cannot := {pod: before.get(pod, now) for pod, found in held.items() if found is None}:
            self._cannot[rollout] = cannot
        if len(heard) < len(reports):
            return None
        if any(now - since >= CANNOT_SECONDS for since in cannot.values()):
            return False
        return True if held and all(held.values()) else None


def _held(report: PodReport, rollout: str) -> bool | None:
    return next((each.signing_key for each in report.rollouts if each.name == rollout), False)


async def ensure(
    key: Key, delivery: DeliverySpec, before: DeliverySpec | None, api: Api, store: Store, now: float
) -> None:
    """Write what is wanted, before the delivery: its pods find the keys then. Refusals are logged: a rollback must not
    wait for them. `before`: the present delivery. Raises ApiUnavailable, and Stale if another client wrote first."""
    item = store.get(KIND, key.namespace, key.name)
    existing = read(item)
    found = wanted(existing, delivery, now)
    if before is not None:
        # its keys are taken out with the write that follows
        found = found.model_copy(update={"readable": _with(found.readable, _keys_of(before))})
    labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_ROLLOUT: key.name, LABEL_GATEWAY: delivery.gateway}
    if item is not None and found == existing and labels.items() <= (item["metadata"].get("labels") or {}).items():
        return
    metadata: Object = {"name": key.name, "namespace": key.namespace, "labels": labels}
    if item is not None:
        metadata |= {name: item["metadata"][name] for name in ("uid", "resourceVersion")}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": found.dump()}
    try:
        if item is None:
            # created: another operator's key must not be overwritten while its pods sign with it
            written = await api.create(KIND, key.namespace, body)
        else:
            written = await api.apply(KIND, key.namespace, key.name, body)
        store.put(KIND, written, quiet=True)
    except ApiException as error:
        if error.status == 409 or (error.status == 404 and item is not None):
            there = await api.get(KIND, key.namespace, key.name)
            if there is not None:
                store.put(KIND, there)
            elif item is not None:
                store.remove(KIND, key.namespace, key.name, item["metadata"]["uid"])
            raise Stale(str(error.reason)) from error
        logger.error("%s: its PromptSigningKey cannot be written: HTTP %s %s", key, error.status, error.reason)


def _with(readable: list[str], more: list[str]) -> list[str]:
    return [*readable, *(key for key in more if key not in readable)][:MAX_READABLE]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
