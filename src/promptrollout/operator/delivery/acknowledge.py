"""Ask ready gateway pods what they serve. A rollout advances on their answers and on nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from pydantic import ValidationError

from promptrollout.api.delivery import DiedIn, PodReport
from promptrollout.api.names import PORT_ADMIN
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.confirmations import Acknowledgement, Expected, differs, judge, rollout_of
from promptrollout.operator.delivery.signing_keys import KeyReaders
from promptrollout.operator.gateways.conditions import Reported
from promptrollout.operator.gateways.pods import serving_pods

logger = logging.getLogger(__name__)
Object = dict[str, Any]

POD_TIMEOUT_SECONDS = 1.0
POLL_SECONDS = (0.1, 1.0)
REPORT_SECONDS = 10.0
"""How often pods are asked anyway while a rollout progresses: is the canary's provider within reach?"""
RECHECK_SECONDS = 60.0
"""How often pods are asked about what all have confirmed: somebody may have brought something else to them."""
VERIFY_SECONDS = 10.0
"""So long pods that do not answer are asked whether a trusted status is true; then every RECHECK_SECONDS."""
DOUBT_SECONDS = 2.0
"""A pod that serves something else than it confirmed is believed after so long: it may just be starting."""
NAMES_IN_QUERY = 20
"""Up to so many rollouts are named in the question; beyond that a pod is asked for all of them."""


@dataclass(slots=True)
class _Question:
    """What is wanted of one rollout. `regularly`: while it progresses, also once the sequence is complete.

    `verify_until`: an answer that is only known from the delivery's status is still to be confirmed by the pods.
    `doubted_at`: since when a pod serves something else than what all had confirmed.
    """

    expected: Expected
    regularly: bool
    answer: Acknowledgement | None = None
    verify_until: float | None = None
    doubted_at: float | None = None

    @property
    def is_open(self) -> bool:
        settled = self.answer is not None and self.answer.complete
        return not settled or self.verify_until is not None or self.doubted_at is not None


@dataclass(slots=True)
class _Gateway:
    """All that is asked of one gateway's pods; one task asks for all rollouts together."""

    questions: dict[str, _Question] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    reported: Reported | None = None
    died_in: dict[str, list[DiedIn]] = field(default_factory=dict)
    """By pod: what its process before was at work for when it died."""
    readers: KeyReaders = field(default_factory=KeyReaders)
    pods_changed: bool = False
    """A new pod may have something to say though nothing is open."""


class Acknowledger:
    """Keeps asking until every ready pod confirms, remembers what was complete, and asks rarely whether it still is."""

    def __init__(
        self, store: Store, changed: Callable[[Key], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._changed = changed
        self._clock = clock
        self._gateways: dict[tuple[str, str], _Gateway] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        tasks = [gateway.task for gateway in self._gateways.values() if gateway.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

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
        """Want to know whether all ready pods confirm what is `expected`. `known`: acknowledged and total, if
        the delivery's status says that it is complete; trusted until pods say otherwise: it may be of a backup."""
        place = self._gateways.setdefault((namespace, gateway), _Gateway())
        question = place.questions.get(rollout)
        if question is None or question.expected != expected:
            answer = question.answer if question is not None else None
            question = _Question(expected, regularly)
            if known is not None:
                question.answer = Acknowledgement(True, *known, highest=expected.sequence)
                question.verify_until = self._clock() + VERIFY_SECONDS
            elif answer is not None:
                # while the new sequence is on its way, what pods said of the provider still holds
                question.answer = Acknowledgement(
                    False,
                    0,
                    answer.total,
                    canary_provider_unreachable=answer.canary_provider_unreachable,
                    unassigned_share_percent=answer.unassigned_share_percent,
                    heavy_key_share_percent=answer.heavy_key_share_percent,
                )
            place.questions[rollout] = question
            place.wake.set()
        if regularly != question.regularly:
            question.regularly = regularly
            place.wake.set()
        for (space, other), elsewhere in self._gateways.items():
            if space == namespace and other != gateway:
                elsewhere.questions.pop(rollout, None)
        if place.task is None or place.task.done():
            place.task = asyncio.create_task(self._keep_asking(namespace, gateway, place), name=f"ask {gateway}")

    def answer(self, namespace: str, gateway: str, rollout: str, uid: str, sequence: int) -> Acknowledgement | None:
        """None while nobody was asked about that very sequence."""
        place = self._gateways.get((namespace, gateway))
        question = place.questions.get(rollout) if place else None
        if question is None or (question.expected.sequence, question.expected.uid) != (sequence, uid):
            return None
        return question.answer

    def reported(self, namespace: str, gateway: str) -> Reported | None:
        """What the gateway's pods said when they were last asked; None: none was, or none answered."""
        place = self._gateways.get((namespace, gateway))
        return place.reported if place else None

    def died_in(self, namespace: str, gateway: str) -> Mapping[str, Collection[DiedIn]]:
        """By pod: what its process before was at work for when it died."""
        place = self._gateways.get((namespace, gateway))
        return place.died_in if place else {}

    def forget(self, namespace: str, rollout: str) -> None:
        for (space, _), place in self._gateways.items():
            if space == namespace:
                place.questions.pop(rollout, None)

    def forget_gateway(self, namespace: str, gateway: str) -> None:
        """It is gone, or an object made anew has its name: what its pods said is not true of others."""
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
        while place.questions:
            place.wake.clear()
            now = self._clock()
            regular, recheck = now >= regular_due, now >= recheck_due or place.pods_changed
            place.pods_changed = False
            if regular:
                regular_due = now + REPORT_SECONDS
            if recheck:
                recheck_due = now + RECHECK_SECONDS
            wanted = {
                name
                for name, question in place.questions.items()
                if question.is_open or recheck or (regular and question.regularly)
            }
            if wanted:
                await self._round(namespace, gateway, place, wanted)
            now, seconds = self._clock(), recheck_due - self._clock()
            if any(question.is_open for question in place.questions.values()):
                seconds = min(seconds, pause)
                pause = min(POLL_SECONDS[1], pause * 2)
            else:
                pause = POLL_SECONDS[0]
                if any(question.regularly for question in place.questions.values()):
                    seconds = min(seconds, regular_due - now)
            try:
                async with asyncio.timeout(max(0.0, seconds)):
                    await place.wake.wait()
                pause = POLL_SECONDS[0]
            except TimeoutError:
                continue
        if self._store.get("PromptGateway", namespace, gateway) is None:
            self._gateways.pop((namespace, gateway), None)  # else its conditions go on saying what the pods said last

    async def _round(self, namespace: str, gateway: str, place: _Gateway, wanted: set[str]) -> None:
        """Ask every ready pod once and settle what can be settled."""
        now, pods = self._clock(), serving_pods(self._store, namespace, gateway)
        asked = {name: place.questions[name] for name in wanted}
        reports = await asyncio.gather(*(self._ask_pod(pod, wanted) for pod in pods))
        reported = Reported.of(report.problems for report in reports if not isinstance(report, str))
        if reported is not None and reported != place.reported:
            place.reported = reported
            self._changed(Key("PromptGateway", namespace, gateway))
        died_in = {report.pod: report.died_in for report in reports if not isinstance(report, str) and report.died_in}
        if died_in != place.died_in:
            place.died_in = died_in
            for name in place.questions:
                self._changed(Key("PromptRollout", namespace, name))
        for name, question in asked.items():
            if place.questions.get(name) is not question:
                continue
            before = question.answer
            judged = judge(question.expected, pods, [rollout_of(report, name) for report in reports])
            answer = replace(judged, pods_read_keys=place.readers.all_read(reports, name, now))
            if before is not None and before.complete:
                answer = self._still(question, before, answer, [differs(question.expected, r, name) for r in reports])
                if not answer.complete:
                    said = ", ".join(f"{laggard.pod}: {laggard.reason}" for laggard in answer.laggards)
                    logger.warning("PromptRollout %s/%s was confirmed, but now: %s", namespace, name, said)
            question.answer = answer
            told = None if before is None else replace(before, pods_read_keys=answer.pods_read_keys)
            if answer != told or (answer != before and answer.pods_read_keys is (not question.expected.signs)):
                self._changed(Key("PromptRollout", namespace, name))

    def _still(
        self, question: _Question, before: Acknowledgement, answer: Acknowledgement, differs: list[bool | None]
    ) -> Acknowledgement:
        """What becomes of an answer that was complete. Pods that join, restart or fall silent reset nothing; one that
        says itself that it serves something else does."""
        now = self._clock()
        if True in differs:
            question.doubted_at = now if question.doubted_at is None else question.doubted_at
            if now - question.doubted_at >= DOUBT_SECONDS:
                question.doubted_at = question.verify_until = None
                return answer
        else:
            question.doubted_at = None
            if (differs and None not in differs) or now >= (question.verify_until or 0.0):
                question.verify_until = None
        keys = before.pods_read_keys if answer.pods_read_keys is None else answer.pods_read_keys
        if not question.regularly:
            return replace(before, pods_read_keys=keys)
        return replace(
            before,
            canary_provider_unreachable=answer.canary_provider_unreachable,
            unassigned_share_percent=answer.unassigned_share_percent,
            heavy_key_share_percent=answer.heavy_key_share_percent,
            highest=answer.highest,
            pods_read_keys=keys,
        )

    async def _ask_pod(self, pod: Object, wanted: set[str]) -> PodReport | str:
        """The pod's report, or a sentence saying why there is none."""
        address = pod["status"]["podIP"]
        host = f"[{address}]" if ":" in address else address
        names = sorted(wanted) if len(wanted) <= NAMES_IN_QUERY else []
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=POD_TIMEOUT_SECONDS), connector=aiohttp.TCPConnector(limit=64)
            )
        try:
            async with self._session.get(
                f"http://{host}:{PORT_ADMIN}/rollouts", params=[("name", name) for name in names]
            ) as response:
                body = await response.read()
                if response.status != 200:
                    return f"its admin port answers HTTP {response.status}"
            return PodReport.model_validate_json(body)
        except TimeoutError:
            return f"no answer within {POD_TIMEOUT_SECONDS:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"cannot be reached: {type(error).__name__}"
        except ValidationError:
            return "its answer cannot be read by this operator"
