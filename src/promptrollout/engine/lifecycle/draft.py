"""The working copy of one `plan`: the status as it changes, and the decisions recorded so far."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from promptrollout.api.decisions import DECISIONS, DecisionReason
from promptrollout.api.delivery import Attempt, Memory, RejectedVersion, VersionRef
from promptrollout.api.rollout import Clock, Decision, ObjectiveStatus, RolloutStatus
from promptrollout.engine.lifecycle.facts import DeliveryIntent, Facts

HISTORY = 10
REMEMBERED = 20
EVIDENCE_BYTES = 4_500
"""Of all decisions in the record together: the whole status stays below 48 KiB, and below 16 with 5 objectives."""

ACTIVE = ("Loading", "Stepping", "Promoting")
"""Stages in which a canary is on its way up."""


def timestamp(seconds: int) -> str:
    """RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Draft:
    """Only the functions of the engine change it."""

    def __init__(self, facts: Facts, now: int) -> None:
        self.facts = facts
        self.now = now
        self.status: RolloutStatus = facts.status
        self.decisions: list[Decision] = []
        self.wants_contact = False
        """The plan asks whether the metrics source is there."""

    # ------------------------------------------------------------ reading

    @property
    def clock(self) -> Clock:
        return self.status.clock

    @property
    def desired(self) -> VersionRef | None:
        return self.facts.desired.version

    def is_rejected(self, version: VersionRef | None) -> bool:
        return version is not None and any(r.digest == version.digest for r in self.status.rejected)

    @property
    def can_go_back(self) -> bool:
        """A canary is on its way up, or the arm that it replaced is still loaded."""
        s = self.status
        return s.stage in ACTIVE or (s.stage == "Baking" and s.previous is not None)

    @property
    def holds_back(self) -> bool:
        """The promoted version bakes, and some users stay on the version before, for comparison."""
        s = self.status
        return s.stage == "Baking" and s.previous is not None and s.weight < 100

    @property
    def must_not_load(self) -> bool:
        """Pods must not even load the canary: it may be the cause of their failures."""
        s, clock = self.status, self.clock
        waits = s.stage == "Loading" and clock.suspected_at is not None and clock.trial_at is None
        leaves = s.stage == "Withdrawing" and (
            s.withdrawal == DecisionReason.PODS_FAILING or clock.suspected_at is not None
        )
        return waits or leaves

    @property
    def metrics_unavailable(self) -> bool:
        """The present revision needs metrics, and their source does not answer."""
        snapshot = self.status.snapshot
        return snapshot is not None and snapshot.analyse and not self.facts.evidence.available

    @property
    def source_confirmed(self) -> bool:
        """The metrics source answered a moment ago, or need not. Else it is asked before more users meet the canary:
        right after a failure of the source the metrics would not show what the canary does to them."""
        snapshot = self.status.snapshot
        return snapshot is None or not snapshot.analyse or self.status.direct or self.facts.evidence.confirmed

    def attempt_of(self, digest: str) -> int:
        return next((a.attempt for a in self.status.attempts if a.digest == digest), 1)

    def intent(self) -> DeliveryIntent | None:
        """What gateway pods should serve, derived from the status alone."""
        s = self.status
        if s.stage is None or s.stable is None:
            return None
        stable, canary, weight = s.stable, None, 0
        if s.stage == "Baking":
            if s.previous is not None:
                stable, canary, weight = s.previous, s.stable, s.weight
        elif s.stage != "Idle" and not self.must_not_load:
            canary, weight = s.canary, s.weight
        subject = canary or stable
        spec = self.facts.spec
        # bucketing is part of what a canary is judged by: the spec counts only when no canary is in progress
        own = s.snapshot if s.stage != "Idle" else None
        return DeliveryIntent(
            stable=stable,
            canary=canary,
            weight=weight,
            salt=f"{self.facts.uid}/{subject.digest[7:17]}/",
            stickiness=own.stickiness if own else spec.stickiness,
            audience=own.audience if own else spec.strategy.canary.audience,
            memory=self.memory(),
            testers=tuple(spec.strategy.canary.testers),
            reporting=own.reporting if own else spec.reported,
        )

    def memory(self) -> Memory:
        s = self.status
        return Memory(
            revision=s.revision,
            stable=s.stable,
            previous=s.previous,
            rejected=s.rejected,
            attempts=s.attempts,
            handled_commands=s.handled_commands,
        )

    def delivered(self) -> bool:
        """Every ready pod has confirmed what this status asks for."""
        d, i = self.facts.delivered, self.intent()
        return (
            d is not None
            and i is not None
            and d.complete
            and (d.weight, d.stable, d.canary) == (i.weight, i.stable, i.canary)
        )

    # ------------------------------------------------------------ writing

    def set(self, **fields: Any) -> None:
        self.status = self.status.model_copy(update=fields)

    def set_clock(self, **fields: Any) -> None:
        self.set(clock=self.clock.model_copy(update=fields))

    def enter(self, stage: str, weight: int) -> None:
        """Change stage or step: nothing is acknowledged yet and its own time begins."""
        self.set(stage=stage, weight=weight, step_time_waived=False, step_approved=False)
        self.set_clock(stage_since=self.now, acknowledged_at=None, step_active_seconds=0, ticked_at=self.now)
        self.each_row(lambda row: row.model_copy(update={"step_samples": 0}))

    def become_idle(self, weight: int) -> None:
        """One version is left, and pods confirmed it before: its other arm may be removed later."""
        self.enter("Idle", weight)
        self.set_clock(acknowledged_at=self.now, suspected_at=None, trial_at=None, suspected_weight=0)
        self.each_row(lambda row: row.model_copy(update={"checkpoint": None}))

    def each_row(self, change: Callable[[ObjectiveStatus], ObjectiveStatus]) -> None:
        self.set(analysis=[change(row) for row in self.status.analysis])

    def reject(self, version: VersionRef, reason: DecisionReason) -> None:
        entry = RejectedVersion(
            digest=version.digest, reason=reason.value, attempt=self.attempt_of(version.digest), at=timestamp(self.now)
        )
        others = [r for r in self.status.rejected if r.digest != version.digest]
        self.set(rejected=[entry, *others][:REMEMBERED])

    def count_attempt(self, digest: str) -> None:
        entry = Attempt(digest=digest, attempt=self.attempt_of(digest) + 1)
        others = [a for a in self.status.attempts if a.digest != digest]
        self.set(attempts=[entry, *others][:REMEMBERED])

    def record(
        self, reason: DecisionReason, message: str, *, evidence: bool = False, command: str | None = None
    ) -> None:
        """One entry of the decision record, which also becomes one Event. `command`: id of the one that is refused."""
        s = self.status
        since, until = self.clock.compared_since or self.clock.exposed_at, self.clock.evaluated_until
        rows = [row.model_copy(update={"checkpoint": None}) for row in s.analysis] if evidence else []
        decision = Decision(
            id=f"{self.now:x}-{s.decision_count}",
            at=timestamp(self.now),
            reason=reason.value,
            type=DECISIONS[reason].type,
            revision=s.revision,
            attempt=s.attempt,
            step=s.step,
            weight=s.weight,
            message=message[:1024],
            window_seconds=max(0, until - since) if evidence and since and until else None,
            evidence=rows,
            command=command,
        )
        self.decisions.append(decision)
        self.set(history=trimmed([decision, *s.history]), decision_count=s.decision_count + 1)


def trimmed(history: list[Decision]) -> list[Decision]:
    """The newest ten. Evidence rows are kept as far as EVIDENCE_BYTES go: newest first, rows in breach first."""
    kept: list[Decision] = []
    left = EVIDENCE_BYTES
    for decision in history[:HISTORY]:
        rows = []
        for row in sorted(decision.evidence, key=lambda row: row.verdict != "Breach"):
            left -= len(row.model_dump_json(by_alias=True, exclude_none=True))
            if left >= 0:
                rows.append(row)
        kept.append(decision if len(rows) == len(decision.evidence) else decision.model_copy(update={"evidence": rows}))
    return kept
