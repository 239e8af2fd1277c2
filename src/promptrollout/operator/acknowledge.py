"""Ask ready gateway pods what they serve. A rollout advances on their answers and on nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from pydantic import ValidationError

from promptrollout.api.delivery import NO_DIGEST, DeliverySpec, DiedIn, Laggard, PodReport, RolloutReport
from promptrollout.api.names import PORT_ADMIN
from promptrollout.operator.gateway_conditions import Reported
from promptrollout.operator.pods import serving_pods
from promptrollout.operator.queue import Key
from promptrollout.operator.signing_keys import pods_read_keys
from promptrollout.operator.store import Store

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
HEAVY_REQUESTS = 100
"""Of all pods in their window: below, the part that one unit has says nothing."""
DOUBT_SECONDS = 2.0
"""A pod that serves something else than it confirmed is believed after so long: it may just be starting."""
NAMES_IN_QUERY = 20
"""Up to so many rollouts are named in the question; beyond that a pod is asked for all of them."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a pod has to report of a rollout to confirm it."""

    sequence: int
    uid: str
    weight: int
    stable: str
    canary: str | None = None
    signs: bool = False
    """Its response ids are signed with the keys of its PromptSigningKey."""

    @classmethod
    def of(cls, spec: DeliverySpec) -> Expected:
        canary, signs = spec.canary.digest if spec.canary is not None else None, spec.response_key is None
        return cls(spec.sequence, spec.rollout_uid, spec.weight, spec.stable.digest, canary, signs)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """How far one sequence of one delivery has come."""

    complete: bool
    acknowledged: int
    total: int
    laggards: tuple[Laggard, ...] = ()
    canary_provider_unreachable: bool | None = None
    """None: no pod was asked, or none answered."""
    unassigned_share_percent: int | None = None
    heavy_key_share_percent: int | None = None
    """Of the requests of all pods: what the heaviest unit has at least. None as above."""
    highest: int = 0
    """The highest sequence that any pod knows for this rollout."""
    unserved: int = 0
    """Pods that answer, and serve nothing of it."""
    taken: int = 0
    """The highest sequence under which any pod serves something else than what is expected."""
    pods_read_keys: bool | None = None
    """Of its PromptSigningKey: see signing_keys.pods_read_keys."""


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

    def at_work_for(self, namespace: str, gateway: str, rollout_uid: str, canary: str) -> set[str]:
        """Pods whose process before died while it was at work for this canary's digest."""
        place = self._gateways.get((namespace, gateway))
        return {
            pod
            for pod, found in (place.died_in.items() if place else ())
            if any((each.rollout_uid, each.digest, each.variant) == (rollout_uid, canary, "canary") for each in found)
        }

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
        pods = serving_pods(self._store, namespace, gateway)
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
            judged = judge(question.expected, pods, [_of(report, name) for report in reports])
            answer = replace(judged, pods_read_keys=pods_read_keys(reports, name))
            if before is not None and before.complete:
                answer = self._still(question, before, answer, [_differs(question.expected, r, name) for r in reports])
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


def _differs(expected: Expected, report: PodReport | str, name: str) -> bool | None:
    """Does this pod serve something else than what is expected? None: it did not answer, or knows nothing yet."""
    if isinstance(report, str) or not report.loaded:
        return None
    found = _of(report, name)
    return isinstance(found, str) or bool(_missing(expected, found))


def _of(report: PodReport | str, name: str) -> RolloutReport | str:
    if isinstance(report, str):
        return report
    found = next((rollout for rollout in report.rollouts if rollout.name == name), None)
    return found or "it has not loaded this rollout yet"


def judge(expected: Expected, pods: list[Object], reports: list[RolloutReport | str]) -> Acknowledgement:
    """What the answers of all ready pods amount to. No ready pod at all is not complete."""
    laggards: list[Laggard] = []
    unreachable: list[bool] = []
    shares: list[int] = []
    highest = taken = unserved = 0
    for pod, report in zip(pods, reports, strict=True):
        name = str(pod["metadata"]["name"])
        if isinstance(report, str):
            laggards.append(Laggard(pod=name, reason=report))
            continue
        highest = max(highest, report.sequence)
        unserved += report.stable == NO_DIGEST
        if not _serves(expected, report):
            taken = max(taken, report.sequence)
        unreachable.append(report.canary_provider_unreachable)
        shares.append(report.unassigned_share_percent)
        if reason := _missing(expected, report):
            laggards.append(Laggard(pod=name, reason=reason[:1024]))
    total = len(pods)
    return Acknowledgement(
        complete=total > 0 and not laggards,
        acknowledged=total - len(laggards),
        total=total,
        laggards=tuple(laggards),
        canary_provider_unreachable=2 * sum(unreachable) >= total if unreachable else None,
        unassigned_share_percent=max(shares) if shares else None,
        heavy_key_share_percent=_heaviest([report for report in reports if not isinstance(report, str)]),
        highest=highest,
        unserved=unserved,
        taken=taken,
    )


def _heaviest(reports: list[RolloutReport]) -> int | None:
    """In percent, rounded up: whatever pods a unit's requests went to, they are one unit's. A few requests say nothing
    of the traffic."""
    if not reports:
        return None
    total = sum(report.assigned_requests for report in reports)
    by_unit: Counter[int] = Counter()
    for report in reports:
        by_unit.update({heavy.unit: heavy.requests for heavy in report.heavy_units})
    if total < HEAVY_REQUESTS or not by_unit:
        return 0
    return -(-100 * max(by_unit.values()) // total)


def _missing(expected: Expected, report: RolloutReport) -> str:
    """Why a report is no confirmation; empty if it is one.

    The sequence alone is not enough: after a restore, or when the delivery was deleted, pods know higher ones.
    """
    if report.problem and report.problem_sequence == expected.sequence:
        return report.problem
    if report.sequence < expected.sequence:
        return report.problem or f"it still serves sequence {report.sequence}"
    if report.rollout_uid != expected.uid:
        return report.problem or "it still serves an earlier object of this name"
    if expected.signs and report.signing_key is False:
        return "it has not read the rollout's PromptSigningKey yet"
    if not _serves(expected, report):
        return f"it serves sequence {report.sequence} with other content"
    return ""


def _serves(expected: Expected, report: RolloutReport) -> bool:
    """The content alone, whatever its number."""
    found = (report.rollout_uid, report.weight, report.stable, report.canary)
    return found == (expected.uid, expected.weight, expected.stable, expected.canary)
