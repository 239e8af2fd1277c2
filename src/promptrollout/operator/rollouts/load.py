"""Load what a plan is made from: the spec with what it references, what pods confirmed, evidence and commands."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from promptrollout.api.command import parse_command
from promptrollout.api.delivery import DeliverySpec, VersionRef
from promptrollout.api.names import OVERRIDE_ARM, OVERRIDES_NAME
from promptrollout.api.rollout import RolloutSpec
from promptrollout.engine.lifecycle.facts import Delivered, Desired, Facts, Pods
from promptrollout.engine.lifecycle.reasons import Problem
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery import copies
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.delivery.compile import gateway_held, read
from promptrollout.operator.delivery.confirmations import Acknowledgement
from promptrollout.operator.delivery.status import is_complete
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.gateways.pods import own_pods
from promptrollout.operator.rollouts.canaries import Canaries
from promptrollout.operator.rollouts.owned_copies import OwnedCopies
from promptrollout.operator.rollouts.pod_failures import calm, latest_failure
from promptrollout.operator.rollouts.records import Record
from promptrollout.operator.rollouts.resolve import Resolved, resolve
from promptrollout.operator.rollouts.unreadable import spec_of, unreadable

logger = logging.getLogger(__name__)
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that one reconcile needs."""

    spec: RolloutSpec
    resolved: Resolved
    delivery: Object | None
    """The PromptDelivery before the plan."""
    gateway: str
    """That serves the rollout now: while a canary is in progress it stays, whatever the spec names."""
    facts: Facts
    now: float
    """On the metrics source's clock, in seconds since the epoch."""


class Loader:
    """`sources`: names of the operator's metrics sources."""

    def __init__(
        self,
        store: Store,
        acknowledger: Acknowledger,
        analyses: Analyses,
        sources: Collection[str],
        owned: OwnedCopies,
        canaries: Canaries,
    ) -> None:
        self._store = store
        self._acknowledger = acknowledger
        self._analyses = analyses
        self._sources = sources
        self._copies = owned
        self._canaries = canaries

    async def load(self, key: Key, item: Object, record: Record) -> Loaded:
        """Makes the copies of versions that the plan may name. Raises ApiException, ApiUnavailable and Stale."""
        delivery = self._store.get("PromptDelivery", key.namespace, key.name)
        delivered = read(delivery)
        spec = _spec(key, item, record, delivered)
        refused = await self._copies.restore(key, record.planned, delivered)
        uid, stage = item["metadata"]["uid"], record.planned.stage
        held = gateway_held(key.namespace, uid, spec, stage, delivered, self._store)
        resolved = resolve(key.namespace, key.name, spec, record.planned.stable, self._store, self._sources, held)
        if record.unreadable:
            resolved = Resolved(Desired(None, problems=(Problem("", record.unreadable),)), (), resolved.metrics_source)
        refused |= await self._copies.create(key, resolved.missing_copies)
        record.copies_due = self._copies.still_refused(key, refused)
        gateway = held or spec.gateway_ref.name
        note = "; ".join(filter(None, (_gateway_note(key, record, spec, held), resolved.note)))
        # read once more after the writes above
        now = self._analyses.now(resolved.metrics_source)
        facts = self._facts(key, item, record, spec, resolved.without(refused), delivery, gateway, note, now)
        return Loaded(spec, resolved, delivery, gateway, facts, now)

    def _facts(
        self,
        key: Key,
        item: Object,
        record: Record,
        spec: RolloutSpec,
        resolved: Resolved,
        delivery: Object | None,
        gateway: str,
        note: str,
        now: float,
    ) -> Facts:
        status, desired, metadata = record.planned, resolved.desired, item["metadata"]
        if record.cannot_compile and not desired.problems:
            desired = replace(desired, snapshot=None, problems=(Problem("", record.cannot_compile),))
        # while a promoted version bakes, pods still serve it as the canary
        served = status.canary or (status.stable if status.stage == "Baking" else None)
        canary = (metadata["uid"], served.digest if served is not None else "")
        return Facts(
            name=key.name,
            namespace=key.namespace,
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            spec=spec,
            status=status,
            desired=desired,
            delivered=self._delivered(key, metadata["uid"], delivery, read(delivery)),
            promoted=copies.promoted(copies.owned(self._store, key.namespace, key.name)),
            evidence=self._analyses.evidence(key, status.clock.evaluated_until, resolved.metrics_source),
            pods=self._pods(key.namespace, gateway, canary, now),
            command=parse_command(metadata.get("annotations") or {}),
            note=note,
        )

    def _pods(self, namespace: str, gateway: str, canary: tuple[str, str], now: float) -> Pods:
        wall = time.time()
        pods = own_pods(self._store, namespace, gateway)
        return Pods(
            failure=latest_failure(pods, self._acknowledger.died_in(namespace, gateway), canary, now - wall),
            calm=calm(pods, wall),
            trial=self._canaries.trial(namespace, gateway, int(now)),
            raised_at=self._canaries.raised_at(namespace, gateway),
        )

    def _delivered(self, key: Key, uid: str, item: Object | None, spec: DeliverySpec | None) -> Delivered | None:
        if spec is None or item is None:
            return None
        answer = self._acknowledger.answer(key.namespace, spec.gateway, key.name, spec.rollout_uid, spec.sequence)
        if answer is None and (known := is_complete(item, spec.sequence)) is not None:
            answer = Acknowledgement(True, *known)  # after a restart: the status was written when all had confirmed
        answer = answer or Acknowledgement(False, 0, 0)
        return Delivered(
            sequence=spec.sequence,
            weight=spec.weight,
            stable=VersionRef(version=spec.stable.version, digest=spec.stable.digest),
            canary=VersionRef(version=spec.canary.version, digest=spec.canary.digest) if spec.canary else None,
            memory=spec.memory,
            complete=answer.complete and spec.rollout_uid == uid and spec.retired_at is None,
            acknowledged=answer.acknowledged,
            total=answer.total,
            laggards=answer.laggards,
            unserved=answer.unserved,
            overridden=self._overridden(key),
            canary_provider_unreachable=answer.canary_provider_unreachable,
            unassigned_share_percent=answer.unassigned_share_percent,
            heavy_key_share_percent=answer.heavy_key_share_percent,
        )

    def _overridden(self, key: Key) -> bool:
        item = self._store.get("ConfigMap", key.namespace, OVERRIDES_NAME)
        return item is not None and (item.get("data") or {}).get(key.name) == OVERRIDE_ARM


def _spec(key: Key, item: Object, record: Record, delivery: DeliverySpec | None) -> RolloutSpec:
    """The spec. In place of one that cannot be read: the last one that could, else what is served."""
    generation = item["metadata"].get("generation", 0)
    if record.generation != generation:
        record.generation, record.unreadable = generation, ""
        try:
            record.spec = RolloutSpec.model_validate(item.get("spec") or {})
        except ValidationError as error:
            # the CRD's schema refuses what we cannot read, unless the CRD is of another release
            record.unreadable = unreadable(error)
            logger.error("%s: %s", key, record.unreadable)
    return record.spec or spec_of(delivery)


def _gateway_note(key: Key, record: Record, spec: RolloutSpec, held: str) -> str:
    """Says that a change of spec.gatewayRef waits; logged when it changes."""
    note = f"gateway {held} keeps serving it until the canary ends, then {spec.gateway_ref.name}" if held else ""
    if note and note != record.noted:
        logger.info("%s: spec.gatewayRef was changed: %s", key, note)
    record.noted = note
    return note
