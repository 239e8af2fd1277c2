"""Who confirmed what: gateway pods' reports against what a delivery expects of them. Pure: `acknowledge` asks pods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptrollout.api.delivery import NO_DIGEST, DeliverySpec, Laggard, PodReport, RolloutReport

Object = dict[str, Any]

VERIFY_SECONDS = 10.0
"""So long pods that do not answer are asked whether a delivery's status is true: it may be of a backup."""
DOUBT_SECONDS = 2.0
"""A pod that serves something else than it confirmed is believed after so long: it may just be starting."""
HEAVY_REQUESTS = 100
"""Of all pods in their window: with fewer, one unit's share is not judged."""


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
    """How many pods confirmed one sequence of a delivery."""

    complete: bool
    acknowledged: int
    total: int
    laggards: tuple[Laggard, ...] = ()
    canary_provider_unreachable: bool | None = None
    """None: no pod was asked, or none answered."""
    unassigned_share_percent: int | None = None
    heavy_key_share_percent: int | None = None
    """Of the requests of all pods: the least share of the heaviest unit. None as above."""
    highest: int = 0
    """The highest sequence that any pod knows for this rollout."""
    unserved: int = 0
    """Pods that answer, and do not serve the rollout."""
    conflicting: int = 0
    """The highest sequence under which any pod serves something else than what is expected."""
    pods_read_keys: bool | None = None
    """Of its PromptSigningKey: see signing_keys.KeyReaders."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """What ready pods are asked about one rollout, and what they have answered so far."""

    expected: Expected
    regularly: bool
    """While the rollout progresses, pods are also asked once the sequence is complete."""
    answer: Acknowledgement | None = None
    verify_until: float | None = None
    """Set while `answer` comes from the delivery's status alone, and pods have yet to confirm it."""
    doubted_at: float | None = None
    """Since when a pod serves something else than what all had confirmed."""

    @classmethod
    def begin(
        cls, expected: Expected, regularly: bool, known: tuple[int, int] | None, before: Awaited | None, now: float
    ) -> Awaited:
        """`known`: acknowledged and total, if the delivery's status says that it is complete. `before`: what was
        awaited of the rollout until now. Times are on the caller's clock."""
        if known is not None:
            answer = Acknowledgement(True, *known, highest=expected.sequence)
            return cls(expected, regularly, answer, verify_until=now + VERIFY_SECONDS)
        if before is None or before.answer is None:
            return cls(expected, regularly)
        # while the new sequence is on its way, what pods reported of the provider and the traffic still holds
        last = before.answer
        kept = Acknowledgement(
            False,
            0,
            last.total,
            canary_provider_unreachable=last.canary_provider_unreachable,
            unassigned_share_percent=last.unassigned_share_percent,
            heavy_key_share_percent=last.heavy_key_share_percent,
        )
        return cls(expected, regularly, kept)

    @property
    def is_open(self) -> bool:
        settled = self.answer is not None and self.answer.complete
        return not settled or self.verify_until is not None or self.doubted_at is not None

    def answered(
        self, name: str, pods: list[Object], reports: Sequence[PodReport | str], keys_read: bool | None, now: float
    ) -> Awaited:
        """After all ready `pods` were asked about the rollout `name`. `keys_read`: see signing_keys.KeyReaders."""
        found = judge(self.expected, pods, [rollout_of(report, name) for report in reports])
        answer = replace(found, pods_read_keys=keys_read)
        if self.answer is None or not self.answer.complete:
            return replace(self, answer=answer)
        return self._after_complete(self.answer, answer, [differs(self.expected, each, name) for each in reports], now)

    def _after_complete(
        self, before: Acknowledgement, answer: Acknowledgement, differing: list[bool | None], now: float
    ) -> Awaited:
        """Pods that join, restart or stop answering reset nothing. One that reports that it serves something else
        does, after DOUBT_SECONDS."""
        doubted_at, verify_until = None, self.verify_until
        if True in differing:
            doubted_at = now if self.doubted_at is None else self.doubted_at
            if now - doubted_at >= DOUBT_SECONDS:
                return replace(self, answer=answer, doubted_at=None, verify_until=None)
        elif (differing and None not in differing) or now >= (verify_until or 0.0):
            verify_until = None
        kept = replace(before, pods_read_keys=answer.pods_read_keys)
        if answer.pods_read_keys is None:
            kept = before
        if self.regularly:
            kept = replace(
                kept,
                canary_provider_unreachable=answer.canary_provider_unreachable,
                unassigned_share_percent=answer.unassigned_share_percent,
                heavy_key_share_percent=answer.heavy_key_share_percent,
                highest=answer.highest,
            )
        return replace(self, answer=kept, doubted_at=doubted_at, verify_until=verify_until)

    def is_news(self, before: Acknowledgement | None) -> bool:
        """Whether the rollout is planned again because of `answer`. Which pods read signing keys matters only where it
        decides between the two places of the keys."""
        answer = self.answer
        assert answer is not None
        if before is None or answer != replace(before, pods_read_keys=answer.pods_read_keys):
            return True
        return answer != before and answer.pods_read_keys is (not self.expected.signs)


def differs(expected: Expected, report: PodReport | str, name: str) -> bool | None:
    """Does this pod serve something else than expected? None: it did not answer, or has not loaded yet."""
    if isinstance(report, str) or not report.loaded:
        return None
    found = rollout_of(report, name)
    return isinstance(found, str) or bool(_missing(expected, found))


def rollout_of(report: PodReport | str, name: str) -> RolloutReport | str:
    if isinstance(report, str):
        return report
    found = next((rollout for rollout in report.rollouts if rollout.name == name), None)
    return found or "it has not loaded this rollout yet"


def judge(expected: Expected, pods: list[Object], reports: list[RolloutReport | str]) -> Acknowledgement:
    """The result of the answers of all ready pods. Without a ready pod it is not complete."""
    laggards: list[Laggard] = []
    unreachable: list[bool] = []
    shares: list[int] = []
    highest = conflicting = unserved = 0
    for pod, report in zip(pods, reports, strict=True):
        name = str(pod["metadata"]["name"])
        if isinstance(report, str):
            laggards.append(Laggard(pod=name, reason=report))
            continue
        highest = max(highest, report.sequence)
        unserved += report.stable == NO_DIGEST
        if not _serves(expected, report):
            conflicting = max(conflicting, report.sequence)
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
        conflicting=conflicting,
    )


def _heaviest(reports: list[RolloutReport]) -> int | None:
    """The largest share of one unit, in percent, rounded up, over all pods; 0 with too few requests."""
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
    """Why a report does not confirm; empty if it does.

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
