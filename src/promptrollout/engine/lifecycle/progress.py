"""Which move comes next: by the spec, by a breach, and by the rollout's stage. Decides, and changes only durations."""

from collections.abc import Sequence

from promptrollout.api.decisions import DecisionReason
from promptrollout.api.rollout import ObjectiveStatus, RolloutStatus, Snapshot
from promptrollout.engine.lifecycle.analysis import missing_evidence, required
from promptrollout.engine.lifecycle.draft import ACTIVE, Draft
from promptrollout.engine.lifecycle.messages import all_missing_text, version_name
from promptrollout.engine.lifecycle.moves import (
    Begin,
    Complete,
    ContactSource,
    EndBake,
    EnterStep,
    FinishWithdrawal,
    Move,
    Record,
    UpdateRules,
    Withdraw,
    current_step,
    holdback_percent,
    is_late,
    overdue,
    step_seconds,
)
from promptrollout.engine.lifecycle.reasons import Hold

COMMON_SECONDS = 600
"""How long both arms may exceed an absolute bound right after a weight increase before the weight is reduced."""


# ---------------------------------------------------------------- by the spec


def follow_spec(draft: Draft) -> Move | None:
    """Compare what the spec asks for with what runs: begin, cancel or supersede."""
    s, desired, snapshot = draft.status, draft.desired, draft.facts.desired.snapshot
    if s.stage is None:
        return None
    if draft.facts.delivered is not None and draft.facts.delivered.overridden:
        if not draft.can_go_back:
            return None
        text = "the emergency override sends everybody to stable"
        return Withdraw(DecisionReason.EMERGENCY_OVERRIDE, text, reject=not s.retracing)
    if desired is None or draft.facts.desired.problems or snapshot is None:
        return None
    if s.stage in ACTIVE:
        if desired == s.canary:
            return UpdateRules(snapshot)
        if s.retracing:
            return None  # an `undo` is in progress while the spec still names the version that is being undone
        if desired == s.stable:
            text = f"the spec names the stable version {version_name(desired)} again"
            return Withdraw(DecisionReason.ROLLOUT_CANCELLED, text, reject=False)
        text = f"the spec names {version_name(desired)} now"
        return Withdraw(DecisionReason.ROLLOUT_SUPERSEDED, text, reject=False)
    if s.stage in ("Idle", "Baking") and desired != s.stable and not draft.is_rejected(desired):
        back = desired == s.previous
        again = draft.attempt_of(desired.digest)
        why = f"back to the version before {version_name(s.stable)}" if back else "the prompt changed"
        return Begin(desired, snapshot, direct=back, why=f"attempt {again}" if again > 1 else why)
    return None


# ---------------------------------------------------------------- by a breach


def roll_back(draft: Draft, breached: ObjectiveStatus | None) -> Move | None:
    if breached is None:
        return None
    text = f"{breached.name}: {breached.message}"
    if not draft.can_go_back:
        text += "; there is no earlier version to go back to"
        return Record(DecisionReason.OBJECTIVE_BREACHED, text, evidence=True)
    if may_retry(draft):
        return Withdraw(DecisionReason.FIRST_BREACH, f"{text}; weight 0, tried once more later", reject=False)
    return Withdraw(DecisionReason.OBJECTIVE_BREACHED, f"{text}; rolled back", reject=True)


def may_retry(draft: Draft) -> bool:
    """It is the first breach of a canary that went by steps. The way back has no first step: it would meet everybody
    again, without evidence."""
    snapshot, first = draft.status.snapshot, draft.clock.first_breach_at is None
    return first and not draft.status.direct and snapshot is not None and snapshot.on_first_breach != "Reject"


# ---------------------------------------------------------------- by its stage


def next_move(draft: Draft, holds: Sequence[Hold]) -> Move | None:
    """At most one per plan: each must be delivered before the next."""
    s = draft.status
    if s.stage == "Withdrawing":
        return FinishWithdrawal() if draft.delivered() else None
    if s.stage == "Loading":
        if not draft.delivered() or holds:
            return None
        if not draft.source_confirmed:
            return ContactSource()
        return EnterStep(1 << 30 if s.direct else s.current_step_index)
    if s.stage == "Stepping":
        return next_move_of_step(draft, holds)
    if s.stage == "Promoting":
        return Complete() if draft.delivered() and not holds else None
    if s.stage == "Baking" and (s.snapshot is None or draft.clock.step_active_seconds >= s.snapshot.bake_seconds):
        return end_of_bake(draft, holds)
    return None


def end_of_bake(draft: Draft, holds: Sequence[Hold]) -> Move | None:
    """With a holdback more users get the version, as with a step."""
    if draft.holds_back and holds:
        return None
    if draft.holds_back and not draft.source_confirmed:
        return ContactSource()
    return EndBake()


def count_time(draft: Draft, *, held: bool) -> None:
    """Durations that no interval measures: pauses, and steps and bakes of rollouts without analysis.

    A gap of more than two intervals (an outage, a clock step) counts as two.
    """
    s, snapshot = draft.status, draft.status.snapshot
    if s.stage is None or snapshot is None:
        return
    gap = max(0, draft.now - (draft.clock.ticked_at or draft.now))
    draft.set_clock(ticked_at=draft.now)
    step = current_step(draft)
    by_time = (step is not None and step.pause is not None) or not snapshot.analyse
    begun = draft.clock.acknowledged_at
    if by_time and s.stage in ("Stepping", "Baking") and begun is not None and begun <= draft.now and not held:
        seconds = min(gap, 2 * snapshot.interval_seconds, draft.now - begun)
        paused = step is not None and step.pause is not None
        draft.set_clock(
            step_active_seconds=draft.clock.step_active_seconds + seconds,
            active_seconds=draft.clock.active_seconds + (0 if paused else seconds),
        )


def next_move_of_step(draft: Draft, holds: Sequence[Hold]) -> Move | None:
    s, step, snapshot = draft.status, current_step(draft), draft.status.snapshot
    if step is None or snapshot is None or draft.clock.acknowledged_at is None:
        return None
    if draft.now < draft.clock.acknowledged_at:
        return None
    following = s.current_step_index + 1
    if step.pause is not None:
        seconds = step.pause.duration_seconds
        if seconds is None or draft.clock.step_active_seconds < seconds or holds:
            return None
        if not draft.source_confirmed:
            return ContactSource()
        text = f"pause of {seconds} s is over; {destination_text(snapshot, s)}"
        return EnterStep(following, DecisionReason.PAUSE_COMPLETED, text)
    if common_cause_of_the_step(draft) and (move := step_back(draft, snapshot)):
        return move
    if is_late(draft) and snapshot.on_timeout == "Rollback":
        text = f"maxDurationSeconds is over ({draft.clock.active_seconds} s of active time): rolled back"
        return Withdraw(DecisionReason.MAX_DURATION_EXCEEDED, text, reject=True)
    time_is_up = s.step_time_waived or draft.clock.step_active_seconds >= step_seconds(step)
    if holds or not time_is_up:
        return None
    missing = missing_evidence(draft)
    if missing and not s.step_approved:
        if snapshot.on_insufficient_traffic != "Rollback" or not overdue(draft):
            return None
        text = f"the step's time is up without enough evidence: {all_missing_text(missing)}"
        return Withdraw(DecisionReason.INSUFFICIENT_TRAFFIC, text, reject=True)
    if not draft.source_confirmed:
        return ContactSource()
    how = f"approved by a person without enough evidence ({all_missing_text(missing)})" if missing else "passed"
    text = f"step {s.step} ({s.weight} %) {how}; {destination_text(snapshot, s)}"
    passed = frozenset() if missing else frozenset(required(draft))  # by the rule of this step
    return EnterStep(following, DecisionReason.STEP_COMPLETED, text, evidence=True, passed=passed)


def common_cause_of_the_step(draft: Draft) -> bool:
    """Both arms have exceeded an absolute bound for a while, starting right after the weight was raised: the canary may
    use up a quota that both share."""
    clock, since = draft.clock, draft.clock.common_since
    if since is None or clock.stage_since is None or clock.acknowledged_at is None or clock.evaluated_until is None:
        return False
    begun = clock.stage_since <= since <= clock.acknowledged_at + COMMON_SECONDS
    return begun and clock.evaluated_until - since >= COMMON_SECONDS


def step_back(draft: Draft, snapshot: Snapshot) -> Move | None:
    """To the weight before. None at the first one: nothing advances there either, and the message says why."""
    s = draft.status
    before = [i for i, step in enumerate(snapshot.steps[: s.current_step_index]) if step.weight is not None]
    if not before:
        return None
    names = ", ".join(row.name for row in s.analysis if row.common_cause)
    text = (
        f"both arms crossed the bound of {names} when the weight was raised to {s.weight} %: "
        f"back to {snapshot.steps[before[-1]].weight} %. Check quotas and rate limits that both arms share"
    )
    return EnterStep(before[-1], DecisionReason.WEIGHT_REDUCED, text, evidence=True)


def destination_text(snapshot: Snapshot, status: RolloutStatus) -> str:
    """What comes after the present step, for people."""
    following = status.current_step_index + 1
    if following >= len(snapshot.steps):
        return f"going to {100 - holdback_percent(snapshot, status.weight)} %"
    weight = snapshot.steps[following].weight
    return f"pausing at {status.weight} %" if weight is None else f"going to {weight} %"
