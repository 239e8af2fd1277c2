"""Write what a plan decided: the status, then the PromptDelivery. Each names the version that it was planned from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from promptrollout.api.delivery import DeliverySpec
from promptrollout.cluster import ApiException
from promptrollout.engine.lifecycle.analysis import WATCHED
from promptrollout.engine.lifecycle.draft import ACTIVE
from promptrollout.engine.lifecycle.facts import Plan
from promptrollout.operator.cluster.api import Api, Stale
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.delivery.compile import CannotCompile, gateway_held, read
from promptrollout.operator.delivery.writer import DeliveryWriter
from promptrollout.operator.rollouts.load import Loaded
from promptrollout.operator.rollouts.records import Record, must_write, read_status

logger = logging.getLogger(__name__)
Object = dict[str, Any]


class PlanWriter:
    """Methods raise ApiException, ApiUnavailable and Stale."""

    def __init__(
        self,
        api: Api,
        store: Store,
        queue: WorkQueue,
        acknowledger: Acknowledger,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._deliveries = DeliveryWriter(api, store, acknowledger)

    async def status(self, key: Key, item: Object, record: Record, result: Plan) -> Object:
        """Returns the object as it is then. Nothing that follows from a plan happens unless its status is written."""
        if must_write(record, result, self._clock()):
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
        if _canary_runs(record.planned.stage) != _canary_runs(result.status.stage):
            self._look_at_gateways(key, item)
        record.planned = result.status
        record.events.add(result.decisions)
        for decision in result.decisions:
            self._metrics.decisions.labels(decision.reason).inc()
            logger.info("%s: %s: %s", key, decision.reason, decision.message)
        lost = result.status.clock.metrics_lost_told and result.status.stage in WATCHED
        self._metrics.set_rollout(key.namespace, key.name, result.status.phase, unwatched=lost)
        return item

    def _look_at_gateways(self, key: Key, item: Object) -> None:
        """A gateway's pods are not replaced while a canary runs: that it starts or ends concerns them."""
        served = read(self._store.get("PromptDelivery", key.namespace, key.name))
        named = (item.get("spec") or {}).get("gatewayRef", {}).get("name", "")
        for gateway in {named, served.gateway if served is not None else named}:
            self._queue.add(Key("PromptGateway", key.namespace, gateway))

    async def _read_again(self, key: Key) -> None:
        item = await self._api.get("PromptRollout", key.namespace, key.name)
        if item is not None:
            self._store.put("PromptRollout", item)
        elif (known := self._store.get("PromptRollout", key.namespace, key.name)) is not None:
            self._store.remove("PromptRollout", key.namespace, key.name, known["metadata"]["uid"])

    async def delivery(self, key: Key, item: Object, record: Record, loaded: Loaded, result: Plan) -> None:
        before = read(loaded.delivery)
        if result.delivery is None or (record.unreadable and before is None):
            return
        uid, stage = item["metadata"]["uid"], result.status.stage
        running, desired = result.status.snapshot, loaded.resolved.desired.snapshot
        try:
            await self._deliveries.write(
                key,
                uid,
                loaded.spec,
                result.delivery,
                (desired,) if running is None else (running, desired),
                loaded.delivery,
                gateway=gateway_held(key.namespace, uid, loaded.spec, stage, before, self._store),
                regularly=stage in (*ACTIVE, "Baking"),
            )
        except CannotCompile as problem:
            if record.cannot_compile != str(problem):
                record.cannot_compile = str(problem)
                self._queue.add(key)  # the next plan holds, and says why
            return
        record.cannot_compile = ""
        written = read(self._store.get("PromptDelivery", key.namespace, key.name))
        if written is not None and _providers(written) - _providers(before):
            # pods may not mount the new provider's key yet
            self._queue.add(Key("PromptGateway", key.namespace, written.gateway))

    async def evict(self, key: Key, pods: Iterable[str]) -> None:
        """A refusal stops nothing else: the next plan, within a minute, evicts again."""
        for pod in pods:
            logger.warning("%s: evicting pod %s, which did not confirm a rollback", key, pod)
            try:
                await self._api.evict(key.namespace, pod)
            except ApiException as error:
                logger.error("%s: pod %s cannot be evicted: HTTP %s %s", key, pod, error.status, error.reason)


def _canary_runs(stage: str | None) -> bool:
    return stage not in (None, "Idle")


def _providers(spec: DeliverySpec | None) -> set[str]:
    if spec is None:
        return set()
    arms = [arm for arm in (spec.stable, spec.canary) if arm is not None]
    return {arm.provider.name for arm in arms} | {each.provider.name for arm in arms for each in arm.fallbacks}
