"""One reconcile of a rollout: load, plan, write in the order status, delivery, Events."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from promptrollout.api.names import short_digest
from promptrollout.engine.lifecycle.facts import Facts, Plan
from promptrollout.engine.lifecycle.plan import plan
from promptrollout.operator.cluster.api import Api
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries
from promptrollout.operator.rollouts.canaries import Canaries
from promptrollout.operator.rollouts.load import Loader
from promptrollout.operator.rollouts.owned_copies import OwnedCopies
from promptrollout.operator.rollouts.records import Record, Records
from promptrollout.operator.rollouts.retire import retire
from promptrollout.operator.rollouts.writes import PlanWriter

Object = dict[str, Any]


class RolloutReconciler:
    """Carries out plans. What it keeps in memory can be rebuilt from status, delivery and Prometheus."""

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
        self._metrics = metrics
        self._instance = instance
        self._records = Records(clock)
        self._copies = OwnedCopies(api, store, clock)
        self._canaries = Canaries(store)
        self._loader = Loader(store, acknowledger, analyses, sources, self._copies, self._canaries)
        self._writer = PlanWriter(api, store, queue, acknowledger, metrics, clock)

    async def reconcile(self, key: Key, item: Object) -> None:
        """Raises ApiException, ApiUnavailable and Stale; each means: again, from the start."""
        if self._records.is_new(key, item):
            self.forget(key)
        record = self._records.up_to_date(key, item)
        loaded = await self._loader.load(key, item, record)
        source = loaded.resolved.metrics_source

        result = plan(loaded.facts, int(loaded.now))

        item = await self._writer.status(key, item, record, result)
        self._canaries.update(key.namespace, loaded.gateway, key.name, result.status)
        self._request_evidence(key, item, result, source)
        if result.wants_contact:
            self._analyses.check_source(key, source)
        await self._writer.delivery(key, item, record, loaded, result)
        await self._writer.evict(key, result.evict)
        await self._copies.mark_promoted(key, result.status)
        await record.events.post(self._api, item, self._instance)
        if not record.unreadable:
            await self._copies.collect(key, loaded.spec.revision_history_limit, _in_use(loaded.facts, result))
        self._wake_at(key, record, result, self._analyses.now(source))

    async def retire(self, key: Key) -> None:
        """The object is gone: forget it, and carry out what is due for what it leaves behind."""
        self.forget(key)
        await retire(key, self._api, self._store, self._queue)

    def forget(self, key: Key) -> None:
        """Keep nothing of it in memory."""
        self._records.forget(key)
        self._analyses.forget(key)
        self._copies.forget(key)
        self._acknowledger.forget(key.namespace, key.name)
        self._canaries.update(key.namespace, "", key.name, None)
        self._metrics.set_rollout(key.namespace, key.name, None)

    def _request_evidence(self, key: Key, item: Object, result: Plan, source: str | None) -> None:
        status, until, intent = result.status, result.status.clock.evaluated_until, result.delivery
        snapshot = status.snapshot if result.wants_evidence else None
        if until is None or snapshot is None or source is None or intent is None:
            self._analyses.stop(key)
            return
        request = EvidenceRequest(
            uid=item["metadata"]["uid"],
            source=source,
            interval_seconds=snapshot.interval_seconds,
            stable_version=short_digest(intent.stable.digest),
            canary_version=short_digest(intent.canary.digest) if intent.canary else "",
            alone=intent.canary is None,
            objectives=tuple(ObjectiveQueries.of(objective) for objective in snapshot.objectives),
            exposed_at=status.clock.exposed_at or 0,
            rollout=key.name,
            namespace=key.namespace,
        )
        self._analyses.request(key, request, until)

    def _wake_at(self, key: Key, record: Record, result: Plan, now: float) -> None:
        times = []
        if result.next_seconds is not None:
            seconds = result.next_seconds - now
            snapshot = result.status.snapshot
            if result.wants_evidence and snapshot is not None and seconds > 0:
                # new evidence wakes it at each interval; this is for an outage of the metrics source
                seconds += snapshot.interval_seconds / 2
            times.append(seconds)
        times += [left for left in (record.events.seconds_left, record.copies_due) if left is not None]
        if times:
            self._queue.next_at(key, min(times))


def _in_use(facts: Facts, result: Plan) -> set[str]:
    """Names of the versions that are served, may be served next, or are the way back."""
    status, desired = result.status, facts.desired
    refs = [status.stable, status.canary, status.previous, desired.version, desired.baseline]
    if facts.delivered is not None:
        refs += [facts.delivered.stable, facts.delivered.canary]
    return {ref.version for ref in refs if ref is not None}
