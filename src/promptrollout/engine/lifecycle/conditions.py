"""Phase, message and conditions: what people and tools read, derived from the rest of the status."""

from collections.abc import Sequence
from typing import Literal

from promptrollout.api.conditions import ConditionReason, ConditionType
from promptrollout.api.decisions import DecisionReason
from promptrollout.api.meta import Condition
from promptrollout.api.rollout import DeliveryState
from promptrollout.engine.lifecycle.draft import ACTIVE, Draft, timestamp
from promptrollout.engine.lifecycle.messages import (
    first_missing_text,
    holds_text,
    problem_text,
    problems_text,
    version_name,
)
from promptrollout.engine.lifecycle.moves import current_step, overdue
from promptrollout.engine.lifecycle.reasons import Hold, HoldReason, MissingEvidence
from promptrollout.engine.statistics.evidence import Evidence

HEAVY_PERCENT = 20
"""A stickiness key with a larger share of the requests dominates the figures of its arm."""

ConditionValue = tuple[bool | None, str, str]
"""Status (None: Unknown), reason, message. A reason that comes out of the status may be of another release."""


def describe(draft: Draft, holds: Sequence[Hold], missing: list[MissingEvidence]) -> None:
    """Fill in `phase`, `message`, `delivery`, `observedGeneration` and all conditions."""
    facts = draft.facts
    draft.set(observed_generation=facts.generation)
    if facts.delivered is not None:
        d = facts.delivered
        draft.set(
            delivery=DeliveryState(
                sequence=d.sequence, acknowledged=d.acknowledged, total=d.total, laggards=list(d.laggards[:10])
            )
        )
    if draft.status.stage == "Idle" and draft.desired is not None:
        draft.set(weight=100 if draft.desired == draft.status.stable else 0)
    insufficient = insufficient_traffic(draft, holds, missing)
    phase, reason, message = summary(draft, holds, missing, insufficient)
    announce(draft, message, insufficient)
    message += f"; {facts.note}" if facts.note else ""
    draft.set(phase=phase, message=message[:1024])
    set_conditions(draft, condition_values(draft, phase, reason, message, insufficient))


def announce(draft: Draft, message: str, insufficient: bool) -> None:
    """Record an Event when a person has to act."""
    before = {c.type: c.status for c in draft.facts.status.conditions}
    s, problems = draft.status, draft.facts.desired.problems
    asked = s.snapshot is not None and s.snapshot.on_insufficient_traffic == "RequireApproval"
    if insufficient and asked and before.get(ConditionType.INSUFFICIENT_TRAFFIC) != "True":
        draft.record(DecisionReason.APPROVAL_REQUIRED, message, evidence=True)
    if problems and before.get(ConditionType.INVALID_SPEC) != "True":
        draft.record(DecisionReason.INVALID_SPEC, problems_text(problems))


def insufficient_traffic(draft: Draft, holds: Sequence[Hold], missing: list[MissingEvidence]) -> bool:
    """The step's time has been up for a while, or was skipped, and evidence is still missing."""
    step, snapshot = current_step(draft), draft.status.snapshot
    if step is None or step.weight is None or snapshot is None or not missing or holds:
        return False
    return draft.status.step_time_waived or overdue(draft)


def summary(
    draft: Draft, holds: Sequence[Hold], missing: list[MissingEvidence], insufficient: bool
) -> tuple[str, str, str]:
    """Phase, reason and the one sentence that stands for the whole."""
    s, facts = draft.status, draft.facts
    problems = facts.desired.problems
    if s.stage is None:
        return (
            "Degraded",
            ConditionReason.INVALID_SPEC,
            problem_text(problems[0]) if problems else "nothing to serve yet",
        )
    if s.stage == "Withdrawing":
        rejected = draft.is_rejected(s.canary)
        text = f"withdrawing {version_name(s.canary)} ({s.withdrawal}): {acknowledged(draft)}"
        return ("Degraded" if rejected else "Progressing"), s.withdrawal or ConditionReason.WITHDRAWING, text
    if s.stage in ACTIVE:
        return summary_in_progress(draft, holds, missing, insufficient)
    if facts.delivered is not None and facts.delivered.overridden:
        text = f"the emergency override sends everybody to {version_name(s.stable)}; "
        text += f"remove it with `promptrollout emergency clear {facts.name} -n {facts.namespace}`"
        return "Degraded", ConditionReason.EMERGENCY_OVERRIDE, text
    if facts.delivered is not None and facts.delivered.unserved == facts.delivered.total > 0:
        return (
            "Degraded",
            ConditionReason.NOT_SERVED,
            f"no gateway pod serves {version_name(s.stable)}: {acknowledged(draft)}",
        )
    if problems:
        answers = facts.delivered is not None and facts.delivered.total > 0
        serving = (
            f"{version_name(s.stable)} keeps serving" if answers else "no gateway pod is ready, so nothing answers"
        )
        return "Degraded", ConditionReason.INVALID_SPEC, f"{problem_text(problems[0])}; {serving}"
    if draft.is_rejected(draft.desired):
        entry = next(r for r in s.rejected if draft.desired is not None and r.digest == draft.desired.digest)
        text = f"{version_name(draft.desired)} was rolled back ({entry.reason}); {version_name(s.stable)} serves. "
        text += f"Fix the prompt, or `promptrollout retry {facts.name} -n {facts.namespace}`"
        return "Degraded", entry.reason, text
    if draft.clock.acknowledged_at is None:
        return "Progressing", ConditionReason.DELIVERING, f"{version_name(s.stable)}: {acknowledged(draft)}"
    if s.stage == "Baking":
        breached = [row.name for row in s.analysis if row.verdict == "Breach"]
        text = f"; {version_name(s.previous)} stays loaded" if s.previous else ""
        if draft.holds_back:
            text = f"; {version_name(s.previous)} serves {100 - s.weight} % for comparison until the bake is over"
            text += f", held: {holds_text(holds)}" if holds else ""
        text += f"; breached, without an earlier version: {', '.join(breached)}" if breached else ""
        return "Healthy", ConditionReason.BAKING, f"{version_name(s.stable)} serves {s.weight} %{text}"
    return "Healthy", ConditionReason.HEALTHY, f"{version_name(s.stable)} serves 100 %"


def summary_in_progress(
    draft: Draft, holds: Sequence[Hold], missing: list[MissingEvidence], insufficient: bool
) -> tuple[str, str, str]:
    s, step = draft.status, current_step(draft)
    head = f"{version_name(s.canary)} at {s.weight} %"
    if any(hold.reason is HoldReason.INVALID_SPEC for hold in holds):
        first = sorted(holds, key=lambda hold: hold.reason is not HoldReason.INVALID_SPEC)
        return "Paused", ConditionReason.INVALID_SPEC, f"{head}, held: {holds_text(first)}"
    if holds:
        paused = any(hold.is_pause for hold in holds)
        text = f"{head}, held: {holds_text(holds)}"
        return ("Paused" if paused else "Progressing"), ConditionReason.HELD, text
    if draft.clock.acknowledged_at is None:
        return "Progressing", s.stage or "Progressing", f"{head}: {acknowledged(draft)}"
    if step is not None and step.pause is not None:
        until = "until promote" if step.pause.duration_seconds is None else f"for {step.pause.duration_seconds} s"
        return "Paused", ConditionReason.PAUSE_STEP, f"{head}: pause step {s.step}, {until}"
    if insufficient:
        action = s.snapshot.on_insufficient_traffic if s.snapshot else "Hold"
        ask = "approve with promote, or abort" if action == "RequireApproval" else "holding"
        paused = action == "RequireApproval"
        text = f"{head}, {ask}: {first_missing_text(missing)}"
        return ("Paused" if paused else "Progressing"), ConditionReason.INSUFFICIENT_TRAFFIC, text
    waits = f"; waiting for {first_missing_text(missing)}" if missing else ""
    unassigned = draft.facts.delivered.unassigned_share_percent if draft.facts.delivered else 0
    waits += f"; {unassigned} % of the requests come without a stickiness key" if missing and unassigned else ""
    return "Progressing", s.stage or "Progressing", f"{head}, step {s.step}{waits}"


def acknowledged(draft: Draft) -> str:
    d = draft.facts.delivered
    if d is None or d.total == 0:
        return "no ready gateway pod has confirmed it"
    text = f"{d.acknowledged} of {d.total} ready pods confirmed"
    return text + (
        f"; waiting for {', '.join(f'{lag.pod} ({lag.reason})' for lag in d.laggards[:3])}" if d.laggards else ""
    )


def condition_values(
    draft: Draft, phase: str, reason: str, message: str, insufficient: bool
) -> dict[ConditionType, ConditionValue]:
    s, facts = draft.status, draft.facts
    problems = facts.desired.problems
    stalled = phase == "Degraded" or bool(problems)
    ready = phase == "Healthy"
    busy = s.stage in (*ACTIVE, "Withdrawing")
    unassigned = facts.delivered.unassigned_share_percent if facts.delivered else None
    analysing = (
        s.snapshot is not None and s.snapshot.analyse and s.stage in ("Loading", "Stepping", "Promoting", "Baking")
    )
    return {
        ConditionType.READY: (ready, reason, message),
        ConditionType.RECONCILING: (not ready and not stalled, reason, message),
        ConditionType.STALLED: (
            stalled,
            reason if stalled else ConditionReason.NOT_STALLED,
            message if stalled else "",
        ),
        ConditionType.PROGRESSING: (busy and phase == "Progressing", reason, message if busy else ""),
        ConditionType.PAUSED: (
            phase == "Paused",
            reason if phase == "Paused" else ConditionReason.NOT_PAUSED,
            message if phase == "Paused" else "",
        ),
        ConditionType.COMPLETED: (
            s.stage in ("Idle", "Baking") and ready,
            ConditionReason.COMPLETED if ready else reason,
            "",
        ),
        ConditionType.INVALID_SPEC: (
            bool(problems),
            ConditionReason.INVALID_SPEC if problems else ConditionReason.VALID,
            problems_text(problems),
        ),
        ConditionType.METRICS_AVAILABLE: metrics_available(facts.evidence, analysing),
        ConditionType.DELIVERED: (
            draft.delivered(),
            ConditionReason.ACKNOWLEDGED if draft.delivered() else ConditionReason.WAITING,
            acknowledged(draft),
        ),
        ConditionType.INSUFFICIENT_TRAFFIC: (
            insufficient,
            ConditionReason.INSUFFICIENT_TRAFFIC if insufficient else ConditionReason.ENOUGH_OR_NOT_DUE,
            message if insufficient else "",
        ),
        ConditionType.ASSIGNMENT_KEY_MISSING: key_missing(draft, unassigned),
        ConditionType.HEAVY_KEY: heavy_key(draft),
    }


def metrics_available(evidence: Evidence, analysing: bool) -> ConditionValue:
    if not analysing:
        return None, ConditionReason.NOT_ANALYSING, ""
    reason = ConditionReason.AVAILABLE if evidence.available else ConditionReason.METRICS_UNAVAILABLE
    return evidence.available, reason, evidence.problem


def key_missing(draft: Draft, share_percent: int | None) -> ConditionValue:
    """The old value while no pod is asked."""
    if share_percent is None:
        old = next((c for c in draft.status.conditions if c.type == ConditionType.ASSIGNMENT_KEY_MISSING), None)
        return (
            (False, ConditionReason.KEYS_PRESENT, "")
            if old is None
            else (old.status == "True", old.reason, old.message)
        )
    if not share_percent:
        return False, ConditionReason.KEYS_PRESENT, ""
    text = f"{share_percent} % of the requests came without a stickiness key: they get stable, outside the analysis"
    return True, ConditionReason.KEY_MISSING, text


def heavy_key(draft: Draft) -> ConditionValue:
    """The old value while no pod is asked. With `stickiness.by: Request` keys play no part."""
    share_percent = draft.facts.delivered.heavy_key_share_percent if draft.facts.delivered else None
    if share_percent is None:
        old = next((c for c in draft.status.conditions if c.type == ConditionType.HEAVY_KEY), None)
        return (
            (False, ConditionReason.KEYS_SPREAD, "") if old is None else (old.status == "True", old.reason, old.message)
        )
    if share_percent <= HEAVY_PERCENT:
        return False, ConditionReason.KEYS_SPREAD, ""
    text = f"one stickiness key sends {share_percent} % of the requests: the users of both arms cannot be compared"
    return True, ConditionReason.ONE_KEY_DOMINATES, text


def set_conditions(draft: Draft, wanted: dict[ConditionType, ConditionValue]) -> None:
    """A metav1.Condition for each value; the transition time moves only with the status."""
    before = {c.type: c for c in draft.status.conditions}
    conditions = []
    for kind, (truth, reason, message) in wanted.items():
        status: Literal["True", "False", "Unknown"] = "Unknown" if truth is None else "True" if truth else "False"
        old = before.get(kind)
        since = old.last_transition_time if old is not None and old.status == status else timestamp(draft.now)
        conditions.append(
            Condition(
                type=kind.value,
                status=status,
                reason=reason,
                message=message[:2048],
                last_transition_time=since,
                observed_generation=draft.facts.generation,
            )
        )
    draft.set(conditions=conditions)
