"""One reconcile of a rollout: load facts, plan, carry out in the order status, delivery, Events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from pydantic import ValidationError

from promptrollout.api.command import parse_command
from promptrollout.api.delivery import DeliverySpec, VersionRef
from promptrollout.api.names import OVERRIDE_ARM, OVERRIDES_NAME, short_digest
from promptrollout.api.rollout import RolloutSpec, RolloutStatus
from promptrollout.cluster import ApiException
from promptrollout.engine.lifecycle.analysis import WATCHED
from promptrollout.engine.lifecycle.draft import ACTIVE
from promptrollout.engine.lifecycle.facts import Delivered, Desired, Facts, Plan, Pods
from promptrollout.engine.lifecycle.plan import plan
from promptrollout.engine.lifecycle.reasons import Problem
from promptrollout.operator.cluster.api import Api, Stale
from promptrollout.operator.cluster.events import Outbox, recent
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery import copies
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.delivery.compile import CannotCompile, gateway_held, read
from promptrollout.operator.delivery.confirmations import Acknowledgement
from promptrollout.operator.delivery.status import is_complete
from promptrollout.operator.delivery.writer import DeliveryWriter
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.evidence.requests import Measured, Question
from promptrollout.operator.gateways.pods import own_pods
from promptrollout.operator.rollouts.canaries import Canaries
from promptrollout.operator.rollouts.owned_copies import OwnedCopies
from promptrollout.operator.rollouts.pod_failures import calm, latest_failure
from promptrollout.operator.rollouts.records import Record, read_status, without_ticks
from promptrollout.operator.rollouts.resolve import Resolved, resolve
from promptrollout.operator.rollouts.unreadable import spec_of, unreadable

logger = logging.getLogger(__name__)
Object = dict[str, Any]

CHECKPOINT_SECONDS = 300
CHECKPOINT_INTERVALS = 10


class RolloutReconciler:
    """Carries out plans. Holds nothing that status, delivery and Prometheus could not give back after a restart."""

    def __init__(
        self,
        api: Api,
        store: Store,
        queue: WorkQueue,
        acknowledger: Acknowledger,
        analyses: Analyses,
        sources: Collection[str],
        metrics: Metrics,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._store = store
        self._queue = queue
        self._acknowledger = acknowledger
        self._analyses = analyses
        self._sources = sources
        self._metrics = metrics
        self._instance = instance
        self._clock = clock
        self._records: dict[str, Record] = {}
        self._uids: dict[Key, str] = {}
        self._copies = OwnedCopies(api, store, clock)
        self._deliveries = DeliveryWriter(api, store, acknowledger)
        self._canaries = Canaries(store)

    async def reconcile(self, key: Key, item: Object) -> None:
        """Raises ApiException, ApiUnavailable and Stale; each means: again, from the start."""
        record = self._record(key, item)
        delivery = self._store.get("PromptDelivery", key.namespace, key.name)
        spec = self._spec(key, item, record, read(delivery))
        refused = await self._copies.restore(key, record.planned, read(delivery))
        held = self._gateway_held(key, spec, record.planned, delivery)
        resolved = resolve(key.namespace, key.name, spec, record.planned.stable, self._store, self._sources, held)
        if record.unreadable:
            resolved = Resolved(Desired(None, problems=(Problem("", record.unreadable),)), (), resolved.metrics_source)
        refused |= await self._copies.create(key, resolved.missing_copies)
        record.copies_due = self._copies.still_refused(key, refused)
        gateway = held or spec.gateway_ref.name
        facts = self._facts(key, item, record, spec, resolved.without(refused), delivery, held, gateway)
        now = int(self._analyses.now(resolved.metrics_source))
        result = plan(facts, now)
        item = await self._write_status(key, item, record, result)
        self._canaries.note(key.namespace, gateway, key.name, result.status)
        self._schedule_analysis(key, item, result, resolved)
        if result.wants_contact:
            self._analyses.make_contact(key, resolved.metrics_source)
        await self._write_delivery(key, item, record, spec, resolved, result, delivery)
        await self._evict(key, result.evict)
        await self._copies.mark_promoted(key, result.status)
        await record.events.post(self._api, item, self._instance)
        if not record.unreadable:
            await self._copies.collect(key, spec.revision_history_limit, _in_use(facts, result))
        self._wake_at(key, record, result, self._analyses.now(resolved.metrics_source))

    def _wake_at(self, key: Key, record: Record, result: Plan, now: float) -> None:
        times = []
        if result.next_seconds is not None:
            seconds = result.next_seconds - now
            snapshot = result.status.snapshot
            if result.wants_evidence and snapshot is not None and seconds > 0:
                # the analysis wakes it at each interval; this is for when the metrics source is away
                seconds += snapshot.interval_seconds / 2
            times.append(seconds)
        times += [left for left in (record.events.seconds_left, record.copies_due) if left is not None]
        if times:
            self._queue.next_at(key, min(times))

    async def _evict(self, key: Key, pods: Iterable[str]) -> None:
        """A refusal keeps nothing else from happening: the next plan, within a minute, evicts again."""
        for pod in pods:
            logger.warning("%s: evicting pod %s, which did not confirm a rollback", key, pod)
            try:
                await self._api.evict(key.namespace, pod)
            except ApiException as error:
                logger.error("%s: pod %s cannot be evicted: HTTP %s %s", key, pod, error.status, error.reason)

    def forget(self, key: Key) -> None:
        """The object is gone."""
        uid = self._uids.pop(key, None)
        if uid is not None:
            self._records.pop(uid, None)
        self._analyses.forget(key)
        self._copies.forget(key)
        self._acknowledger.forget(key.namespace, key.name)
        self._canaries.note(key.namespace, "", key.name, None)
        self._metrics.set_rollout(key.namespace, key.name, None)

    # ------------------------------------------------------------ load

    def _record(self, key: Key, item: Object) -> Record:
        """The memory of this object, brought up to date with what the API server has.

        A status that is not the one we wrote was edited by hand, or by another operator: it is the truth. One that
        cannot be read is as good as lost.
        """
        uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
        if self._uids.get(key) != uid:
            self.forget(key)
            self._uids[key] = uid
        record = self._records.get(uid)
        if record is not None and record.version == version:
            return record
        fetched = read_status(key, item)
        if record is None:
            record = Record(fetched or RolloutStatus(), fetched, version, self._clock(), Outbox(self._clock))
            record.events.add(recent(record.planned.history, time.time()))
            self._records[uid] = record
        elif fetched != record.written:
            logger.warning("%s: its status was written by someone else, which is taken as it is", key)
            record.planned, record.written = fetched or RolloutStatus(), fetched
            # it may be our own, of a write whose answer was lost: then nobody has posted its decisions
            record.events.add(recent(record.planned.history, time.time()))
        record.version = version
        return record

    def _spec(self, key: Key, item: Object, record: Record, delivery: DeliverySpec | None) -> RolloutSpec:
        """The spec. In the place of one that cannot be read: the last one that could, else what is served."""
        generation = item["metadata"].get("generation", 0)
        if record.generation != generation:
            record.generation, record.unreadable = generation, ""
            try:
                record.spec = RolloutSpec.model_validate(item.get("spec") or {})
            except ValidationError as error:
                # the CRD's schema lets nothing through that we cannot read, unless it is of another release
                record.unreadable = unreadable(error)
                logger.error("%s: %s", key, record.unreadable)
        return record.spec or spec_of(delivery)

    def _facts(
        self,
        key: Key,
        item: Object,
        record: Record,
        spec: RolloutSpec,
        resolved: Resolved,
        delivery: Object | None,
        held: str,
        gateway: str,
    ) -> Facts:
        status, desired = record.planned, resolved.desired
        if record.cannot_compile and not desired.problems:
            desired = type(desired)(desired.version, desired.baseline, None, (Problem("", record.cannot_compile),))
        metadata = item["metadata"]
        # while what was promoted bakes, pods serve it as the canary still
        served = status.canary or (status.stable if status.stage == "Baking" else None)
        now = self._analyses.now(resolved.metrics_source)
        evidence = self._analyses.evidence(key, status.clock.evaluated_until, resolved.metrics_source)
        return Facts(
            name=key.name,
            namespace=key.namespace,
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            spec=spec,
            status=status,
            desired=desired,
            delivered=self._delivered(key, delivery, read(delivery)),
            promoted=copies.promoted(copies.owned(self._store, key.namespace, key.name)),
            evidence=evidence,
            pods=self._pods(key, gateway, (metadata["uid"], served.digest if served is not None else ""), now),
            command=parse_command(metadata.get("annotations") or {}),
            note="; ".join(filter(None, (self._note(key, record, spec, held), resolved.note))),
        )

    def _pods(self, key: Key, gateway: str, canary: tuple[str, str], now: float) -> Pods:
        place, wall = (key.namespace, gateway), time.time()
        pods = own_pods(self._store, *place)
        return Pods(
            failure=latest_failure(pods, self._acknowledger.died_in(*place), canary, now - wall),
            calm=calm(pods, wall),
            trial=self._canaries.trial(*place, int(now)),
            raised_at=self._canaries.raised_at(*place),
        )

    def _gateway_held(self, key: Key, spec: RolloutSpec, status: RolloutStatus, delivery: Object | None) -> str:
        return gateway_held(key.namespace, self._uids[key], spec, status.stage, read(delivery), self._store)

    def _note(self, key: Key, record: Record, spec: RolloutSpec, held: str) -> str:
        note = f"gateway {held} serves it until no canary runs, then {spec.gateway_ref.name}" if held else ""
        if note and note != record.noted:
            logger.info("%s: spec.gatewayRef was changed: %s", key, note)
        record.noted = note
        return note

    def _delivered(self, key: Key, item: Object | None, spec: DeliverySpec | None) -> Delivered | None:
        if spec is None or item is None:
            return None
        found = self._acknowledger.answer(key.namespace, spec.gateway, key.name, spec.rollout_uid, spec.sequence)
        if found is None and (known := is_complete(item, spec.sequence)) is not None:
            found = Acknowledgement(True, *known)  # after a restart: it was written when all had confirmed
        answer = found or Acknowledgement(False, 0, 0)
        return Delivered(
            sequence=spec.sequence,
            weight=spec.weight,
            stable=VersionRef(version=spec.stable.version, digest=spec.stable.digest),
            canary=VersionRef(version=spec.canary.version, digest=spec.canary.digest) if spec.canary else None,
            memory=spec.memory,
            complete=answer.complete and spec.rollout_uid == self._uids.get(key) and spec.retired_at is None,
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

    # ------------------------------------------------------------ status

    async def _write_status(self, key: Key, item: Object, record: Record, result: Plan) -> Object:
        """Returns the object as it is then. Nothing that follows from a plan happens unless its status is written."""
        if self._must_write(record, result):
            try:
                item = await self._api.apply_status("PromptRollout", item, result.status.dump())
            except ApiException as error:
                if error.status in (404, 409):
                    await self._read_again(key)
                    raise Stale(str(error.reason)) from error
                raise
            self._store.put("PromptRollout", item, quiet=True)
            record.version = item["metadata"]["resourceVersion"]
            record.written = read_status(key, item)
            record.checkpoint_at = self._clock()
        if (record.planned.stage in (None, "Idle")) != (result.status.stage in (None, "Idle")):
            served = read(self._store.get("PromptDelivery", key.namespace, key.name))
            named = (item.get("spec") or {}).get("gatewayRef", {}).get("name", "")
            for gateway in {named, served.gateway if served is not None else named}:
                self._queue.add(Key("PromptGateway", key.namespace, gateway))  # its pods are held while a canary runs
        record.planned = result.status
        record.events.add(result.decisions)
        for decision in result.decisions:
            self._metrics.decisions.labels(decision.reason).inc()
            logger.info("%s: %s: %s", key, decision.reason, decision.message)
        lost = result.status.clock.metrics_lost_told and result.status.stage in WATCHED
        self._metrics.set_rollout(key.namespace, key.name, result.status.phase, unwatched=lost)
        return item

    def _must_write(self, record: Record, result: Plan) -> bool:
        if record.written is not None and result.status == record.written:
            return False
        if record.written is None or result.urgent:
            return True
        status = result.status
        if status.stage in (None, "Idle"):
            return without_ticks(status) != without_ticks(record.written)
        seconds = CHECKPOINT_SECONDS
        if status.snapshot is not None:
            seconds = min(seconds, CHECKPOINT_INTERVALS * status.snapshot.interval_seconds)
        return self._clock() - record.checkpoint_at >= seconds

    async def _read_again(self, key: Key) -> None:
        item = await self._api.get("PromptRollout", key.namespace, key.name)
        if item is not None:
            self._store.put("PromptRollout", item)
        elif (known := self._store.get("PromptRollout", key.namespace, key.name)) is not None:
            self._store.remove("PromptRollout", key.namespace, key.name, known["metadata"]["uid"])

    # ------------------------------------------------------------ delivery

    async def _write_delivery(
        self,
        key: Key,
        item: Object,
        record: Record,
        spec: RolloutSpec,
        resolved: Resolved,
        result: Plan,
        existing: Object | None,
    ) -> None:
        if result.delivery is None or (record.unreadable and read(existing) is None):
            return
        running = result.status.snapshot
        try:
            await self._deliveries.write(
                key,
                item["metadata"]["uid"],
                spec,
                result.delivery,
                (resolved.desired.snapshot,) if running is None else (running, resolved.desired.snapshot),
                existing,
                gateway=self._gateway_held(key, spec, result.status, existing),
                regularly=result.status.stage in (*ACTIVE, "Baking"),
            )
        except CannotCompile as problem:
            if record.cannot_compile != str(problem):
                record.cannot_compile = str(problem)
                self._queue.add(key)  # the next plan holds, and says why
        else:
            record.cannot_compile = ""
            written = read(self._store.get("PromptDelivery", key.namespace, key.name))
            if written is not None and _providers(written) - _providers(read(existing)):
                # whose pods may lack the key
                self._queue.add(Key("PromptGateway", key.namespace, written.gateway))

    # ------------------------------------------------------------ analysis

    def _schedule_analysis(self, key: Key, item: Object, result: Plan, resolved: Resolved) -> None:
        status, until, intent = result.status, result.status.clock.evaluated_until, result.delivery
        source = resolved.metrics_source
        snapshot = status.snapshot if result.wants_evidence else None
        if until is None or snapshot is None or source is None or intent is None:
            self._analyses.drop(key)
            return
        question = Question(
            uid=item["metadata"]["uid"],
            source=source,
            interval_seconds=snapshot.interval_seconds,
            stable_version=short_digest(intent.stable.digest),
            canary_version=short_digest(intent.canary.digest) if intent.canary else "",
            alone=intent.canary is None,
            objectives=tuple(Measured.of(objective) for objective in snapshot.objectives),
            exposed_at=status.clock.exposed_at or 0,
            rollout=key.name,
            namespace=key.namespace,
        )
        self._analyses.want(key, question, until)


def _in_use(facts: Facts, result: Plan) -> set[str]:
    """Names of the versions that are served, may be served next, or are the way back."""
    status, desired = result.status, facts.desired
    refs = [status.stable, status.canary, status.previous, desired.version, desired.baseline]
    if facts.delivered is not None:
        refs += [facts.delivered.stable, facts.delivered.canary]
    return {ref.version for ref in refs if ref is not None}


def _providers(spec: DeliverySpec | None) -> set[str]:
    if spec is None:
        return set()
    arms = [arm for arm in (spec.stable, spec.canary) if arm is not None]
    return {arm.provider.name for arm in arms} | {each.provider.name for arm in arms for each in arm.fallbacks}
