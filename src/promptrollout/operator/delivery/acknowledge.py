"""Ask ready gateway pods what they serve. A rollout advances on their answers and on nothing else.

What their answers mean is decided in `confirmations`; here is only when and whom to ask.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from promptrollout.api.delivery import DiedIn
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.confirmations import Acknowledgement, Awaited, Expected
from promptrollout.operator.delivery.pod_reports import PodReports
from promptrollout.operator.delivery.signing_keys import KeyReaders
from promptrollout.operator.gateways.conditions import Reported
from promptrollout.operator.gateways.pods import serving_pods

logger = logging.getLogger(__name__)
Object = dict[str, Any]

POLL_SECONDS = (0.1, 1.0)
REPORT_SECONDS = 10.0
"""How often pods are asked anyway while a rollout progresses: is the canary's provider within reach?"""
RECHECK_SECONDS = 60.0
"""How often pods are asked about what all have confirmed: another client may have changed what they read."""


@dataclass(slots=True)
class _Gateway:
    """All that is asked of one gateway's pods; one task asks for all rollouts together."""

    awaited: dict[str, Awaited] = field(default_factory=dict)
    """By rollout."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    reported: Reported | None = None
    died_in: dict[str, list[DiedIn]] = field(default_factory=dict)
    """By pod: what its last process worked on when it died."""
    readers: KeyReaders = field(default_factory=KeyReaders)
    pods_changed: bool = False
    """A new pod is asked even if nothing is open."""


class Acknowledger:
    """Asks until every ready pod confirms, remembers the result, and checks it again once a minute."""

    def __init__(
        self, store: Store, changed: Callable[[Key], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._changed = changed
        self._clock = clock
        self._gateways: dict[tuple[str, str], _Gateway] = {}
        self._pods = PodReports()

    async def close(self) -> None:
        tasks = [gateway.task for gateway in self._gateways.values() if gateway.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pods.close()

    # ------------------------------------------------------------ for reconciles

    def ask(
        self,
        namespace: str,
        gateway: str,
        rollout: str,
        expected: Expected,
        *,
        regularly: bool,
        known: tuple[int, int] | None,
    ) -> None:
        """Ask until all ready pods confirm what is `expected`. `known`: acknowledged and total, if
        the delivery's status says that it is complete; trusted until pods say otherwise: it may be of a backup."""
        place = self._gateways.setdefault((namespace, gateway), _Gateway())
        before = place.awaited.get(rollout)
        if before is None or before.expected != expected:
            place.awaited[rollout] = Awaited.begin(expected, regularly, known, before, self._clock())
            place.wake.set()
        elif regularly != before.regularly:
            place.awaited[rollout] = replace(before, regularly=regularly)
            place.wake.set()
        for (space, other), elsewhere in self._gateways.items():
            if space == namespace and other != gateway:
                elsewhere.awaited.pop(rollout, None)
        if place.task is None or place.task.done():
            place.task = asyncio.create_task(self._keep_asking(namespace, gateway, place), name=f"ask {gateway}")

    def answer(self, namespace: str, gateway: str, rollout: str, uid: str, sequence: int) -> Acknowledgement | None:
        """None while no pod was asked about this sequence."""
        place = self._gateways.get((namespace, gateway))
        awaited = place.awaited.get(rollout) if place else None
        if awaited is None or (awaited.expected.sequence, awaited.expected.uid) != (sequence, uid):
            return None
        return awaited.answer

    def reported(self, namespace: str, gateway: str) -> Reported | None:
        """Problems that the gateway's pods last reported; None: no pod has answered."""
        place = self._gateways.get((namespace, gateway))
        return place.reported if place else None

    def died_in(self, namespace: str, gateway: str) -> Mapping[str, Collection[DiedIn]]:
        """By pod: what its last process worked on when it died."""
        place = self._gateways.get((namespace, gateway))
        return place.died_in if place else {}

    def forget(self, namespace: str, rollout: str) -> None:
        for (space, _), place in self._gateways.items():
            if space == namespace:
                place.awaited.pop(rollout, None)

    def forget_gateway(self, namespace: str, gateway: str) -> None:
        """It is gone, or was recreated: what its pods reported does not hold for others."""
        place = self._gateways.pop((namespace, gateway), None)
        if place is not None and place.task is not None:
            place.task.cancel()

    def pods_changed(self, namespace: str, gateway: str) -> None:
        """A pod came, went, or changed its readiness: ask at once."""
        place = self._gateways.get((namespace, gateway))
        if place is not None:
            place.pods_changed = True
            place.wake.set()

    # ------------------------------------------------------------ asking

    async def _keep_asking(self, namespace: str, gateway: str, place: _Gateway) -> None:
        pause = POLL_SECONDS[0]
        regular_due = 0.0
        # not all gateways in the same second after a start
        recheck_due = self._clock() + RECHECK_SECONDS * random.uniform(0.5, 1.0)
        while place.awaited:
            place.wake.clear()
            now = self._clock()
            regular, recheck = now >= regular_due, now >= recheck_due or place.pods_changed
            place.pods_changed = False
            if regular:
                regular_due = now + REPORT_SECONDS
            if recheck:
                recheck_due = now + RECHECK_SECONDS
            names = {
                name
                for name, awaited in place.awaited.items()
                if awaited.is_open or recheck or (regular and awaited.regularly)
            }
            if names:
                await self._round(namespace, gateway, place, names)
            now, seconds = self._clock(), recheck_due - self._clock()
            if any(each.is_open for each in place.awaited.values()):
                seconds = min(seconds, pause)
                pause = min(POLL_SECONDS[1], pause * 2)
            else:
                pause = POLL_SECONDS[0]
                if any(each.regularly for each in place.awaited.values()):
                    seconds = min(seconds, regular_due - now)
            try:
                async with asyncio.timeout(max(0.0, seconds)):
                    await place.wake.wait()
                pause = POLL_SECONDS[0]
            except TimeoutError:
                continue
        if self._store.get("PromptGateway", namespace, gateway) is None:
            self._gateways.pop((namespace, gateway), None)  # else its conditions would keep the pods' last report

    async def _round(self, namespace: str, gateway: str, place: _Gateway, names: set[str]) -> None:
        """Ask every ready pod once and settle what can be settled."""
        now, pods = self._clock(), serving_pods(self._store, namespace, gateway)
        asked = {name: place.awaited[name].expected for name in names}
        reports = await asyncio.gather(*(self._pods.ask(pod, names) for pod in pods))
        heard = [report for report in reports if not isinstance(report, str)]
        reported = Reported.of(report.problems for report in heard)
        if reported is not None and reported != place.reported:
            place.reported = reported
            self._changed(Key("PromptGateway", namespace, gateway))
        died_in = {report.pod: report.died_in for report in heard if report.died_in}
        if died_in != place.died_in:
            place.died_in = died_in
            for name in place.awaited:
                self._changed(Key("PromptRollout", namespace, name))
        for name, expected in asked.items():
            before = place.awaited.get(name)
            if before is None or before.expected != expected:
                continue  # meanwhile something else is expected of the pods
            keys_read = place.readers.all_read(reports, name, now)
            after = before.answered(name, pods, reports, keys_read, self._clock())
            place.awaited[name] = after
            _log_lost(Key("PromptRollout", namespace, name), before.answer, after.answer)
            if after.is_news(before.answer):
                self._changed(Key("PromptRollout", namespace, name))


def _log_lost(key: Key, before: Acknowledgement | None, after: Acknowledgement | None) -> None:
    """A pod no longer serves what all had confirmed."""
    if before is not None and before.complete and after is not None and not after.complete:
        laggards = ", ".join(f"{laggard.pod}: {laggard.reason}" for laggard in after.laggards)
        logger.warning("%s: its delivery was confirmed and no longer is: %s", key, laggards)
