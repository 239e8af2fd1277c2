"""Write a rollout's PromptDelivery and its status, and have the pods asked about it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from promptrollout.api.delivery import DeliverySpec
from promptrollout.api.rollout import RolloutSpec, Snapshot
from promptrollout.cluster import ApiException
from promptrollout.engine.lifecycle.facts import DeliveryIntent
from promptrollout.operator.cluster.api import Api, Stale
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery import signing_keys
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.delivery.compile import body_of, compile_delivery, is_labelled, read
from promptrollout.operator.delivery.confirmations import Expected
from promptrollout.operator.delivery.status import delivery_status, is_complete

Object = dict[str, Any]
_KEYS = ("responseKey", "responseKeys")


class DeliveryWriter:
    """Raises ApiException, ApiUnavailable, Stale and CannotCompile."""

    def __init__(self, api: Api, store: Store, acknowledger: Acknowledger) -> None:
        self._api = api
        self._store = store
        self._acknowledger = acknowledger

    async def write(
        self,
        key: Key,
        uid: str,
        spec: RolloutSpec,
        intent: DeliveryIntent,
        snapshots: Collection[Snapshot | None],
        existing: Object | None,
        *,
        gateway: str = "",
        regularly: bool,
    ) -> None:
        """`gateway`: if that is not yet the one that the spec names. `regularly`: pods are asked about it even once
        they have confirmed it."""
        before = read(existing)
        lowest = self._lowest_sequence(key, existing, before)
        pods_read_keys = self._pods_read_keys(key, before)
        wanted = compile_delivery(
            key.namespace, uid, spec, intent, snapshots, before, self._store, lowest, gateway, pods_read_keys
        )
        await signing_keys.ensure(key, wanted, before, self._api, self._store, time.time())
        if existing is None or wanted != before or not is_labelled(existing, key.name, wanted):
            existing = await self._apply(key, wanted, existing)
        assert existing is not None
        self._acknowledger.ask(
            key.namespace,
            wanted.gateway,
            key.name,
            Expected.of(wanted),
            regularly=regularly,
            known=is_complete(existing, wanted.sequence),
        )
        await self._write_status(key, existing, wanted)

    def _pods_read_keys(self, key: Key, before: DeliverySpec | None) -> bool | None:
        """Of the gateway that serves it; None while unknown."""
        if before is None:
            return None
        answer = self._acknowledger.answer(key.namespace, before.gateway, key.name, before.rollout_uid, before.sequence)
        return None if answer is None else answer.pods_read_keys

    async def _apply(self, key: Key, wanted: DeliverySpec, existing: Object | None) -> Object:
        body = body_of(key.namespace, key.name, wanted, existing)
        try:
            if existing is None and await self._api.get("PromptDelivery", key.namespace, key.name) is not None:
                await self._read_again(key, None)
                raise Stale("the delivery exists already")
            gone = [each for each in _KEYS if each in ((existing or {}).get("spec") or {}) and each not in body["spec"]]
            if gone:
                # a restore from a backup owns these fields, and an apply would leave them
                patch = {"metadata": body["metadata"], "spec": body["spec"] | dict.fromkeys(gone)}
                patched = await self._api.merge("PromptDelivery", key.namespace, key.name, patch)
                body["metadata"]["resourceVersion"] = patched["metadata"]["resourceVersion"]
            # applied, not created: fields that a create owns cannot be taken out by a later apply
            item = await self._api.apply("PromptDelivery", key.namespace, key.name, body)
        except ApiException as error:
            if error.status in (404, 409):
                await self._read_again(key, existing)
                raise Stale(str(error.reason)) from error
            raise
        self._store.put("PromptDelivery", item, quiet=True)
        return item

    def _lowest_sequence(self, key: Key, existing: Object | None, before: DeliverySpec | None) -> int:
        """One that every pod accepts: above that of an object that we cannot read, and above what pods have.

        Pods know a higher one than the object after a restore from backup, or if the delivery was deleted.
        """
        if before is None:
            known = ((existing or {}).get("spec") or {}).get("sequence")
            return known + 1 if isinstance(known, int) else 1
        answer = self._acknowledger.answer(key.namespace, before.gateway, key.name, before.rollout_uid, before.sequence)
        if answer is None:
            return 1
        beyond = answer.highest > before.sequence or (not answer.complete and answer.conflicting == before.sequence)
        return answer.highest + 1 if beyond else 1

    async def _write_status(self, key: Key, item: Object, spec: DeliverySpec) -> None:
        answer = self._acknowledger.answer(key.namespace, spec.gateway, key.name, spec.rollout_uid, spec.sequence)
        status = delivery_status(item, spec.sequence, answer, time.time())
        if status is None:
            return
        try:
            item = await self._api.apply_status("PromptDelivery", item, status)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            await self._read_again(key, item)
            raise Stale(str(error.reason)) from error
        self._store.put("PromptDelivery", item, quiet=True)

    async def _read_again(self, key: Key, known: Object | None) -> None:
        item = await self._api.get("PromptDelivery", key.namespace, key.name)
        if item is not None:
            self._store.put("PromptDelivery", item)
        elif known is not None:
            self._store.remove("PromptDelivery", key.namespace, key.name, known["metadata"]["uid"])
