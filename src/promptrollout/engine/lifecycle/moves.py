"""The moves of a rollout's life, as values and as what each does: begin, step, promote, withdraw. Each leaves its
decision record."""

from dataclasses import dataclass

from promptrollout.api.decisions import DecisionReason
from promptrollout.api.delivery import VersionRef
from promptrollout.api.rollout import ObjectiveStatus, Snapshot
from promptrollout.api.strategy import Step
from promptrollout.engine.lifecycle.draft import ACTIVE, Draft
from promptrollout.engine.lifecycle.messages import version_name
from promptrollout.engine.objectives import sample_ratio
from promptrollout.engine.objectives.definitions import definition_hash
from promptrollout.engine.objectives.judgement import enough_without_proof

DEFAULT_STEP_SECONDS = 300
STARTS_OVER = (
    DecisionReason.PROVIDER_UNREACHABLE,
    DecisionReason.METRICS_LOST,
    DecisionReason.PODS_FAILING,
    DecisionReason.FIRST_BREACH,
)
"""Withdrawals that are no verdict on the version: it stays the canary and starts over at its first step."""
TIMES_OF_A_TRY = (
    *("exposed_at", "compared_since", "evaluated_until", "baseline_until"),
    *("outage_since", "unmeasured_since", "trial_at"),
)
"""Of the clock: not known before the canary meets its first user."""
BASELINE_INTERVALS = 60
"""Intervals before the canary met its first user that are read as well: they show how much stable fluctuates."""
GRACE_INTERVALS = 10
"""Intervals after twice a step's time in which evidence may still arrive."""


# ---------------------------------------------------------------- as values


@dataclass(frozen=True, slots=True)
class Begin:
    version: VersionRef
    snapshot: Snapshot
    direct: bool
    why: str


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """A person may have edited steps or objectives."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class EnterStep:
    """Go to step `index`, or promote after the last one; with the decision to record, if any."""

    index: int
    reason: DecisionReason | None = None
    message: str = ""
    evidence: bool = False
    passed: frozenset[str] = frozenset()
    """Objectives that the step before has proved."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The weight after the last step is acknowledged."""


@dataclass(frozen=True, slots=True)
class EndBake:
    """Everybody gets the new version, and the old arm is unloaded."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    reason: DecisionReason
    message: str
    reject: bool


@dataclass(frozen=True, slots=True)
class FinishWithdrawal:
    """Weight 0 is acknowledged."""


@dataclass(frozen=True, slots=True)
class Record:
    """A decision that moves nothing."""

    reason: DecisionReason
    message: str
    evidence: bool = False


@dataclass(frozen=True, slots=True)
class ContactSource:
    """Ask the metrics source whether it is there, then plan again."""


Move = Begin | UpdateRules | EnterStep | Complete | EndBake | Withdraw | FinishWithdrawal | Record | ContactSource


def apply_move(draft: Draft, move: Move | None) -> None:
    match move:
        case Begin():
            begin(draft, move.version, move.snapshot, direct=move.direct, why=move.why)
        case UpdateRules():
            update_rules(draft, move.snapshot)
        case EnterStep():
            draft.each_row(lambda row: _passed(row) if row.name in move.passed else row)
            if move.reason is not None:
                draft.record(move.reason, move.message, evidence=move.evidence)
            enter_step(draft, move.index)
        case Complete():
            complete(draft)
        case EndBake():
            end_bake(draft)
        case Withdraw():
            withdraw(draft, move.reason, move.message, reject=move.reject)
        case FinishWithdrawal():
            finish_withdrawal(draft)
        case Record():
            draft.record(move.reason, move.message, evidence=move.evidence)
        case ContactSource():
            draft.wants_contact = True


# ---------------------------------------------------------------- what each does


def _passed(row: ObjectiveStatus) -> ObjectiveStatus:
    return row.model_copy(update={"verdict": "Pass", "message": enough_without_proof(row.message)[:512]})


def begin(draft: Draft, version: VersionRef, snapshot: Snapshot, *, direct: bool, why: str) -> None:
    """A new revision: load the version at weight 0. `direct`: then straight to 100 %."""
    draft.set(
        revision=draft.status.revision + 1,
        attempt=draft.attempt_of(version.digest),
        canary=version,
        current_step_index=0,
        direct=direct,
        retracing=False,
        withdrawal=None,
        snapshot=snapshot,
        analysis=[],
    )
    draft.set_clock(
        **dict.fromkeys(TIMES_OF_A_TRY),
        started_at=draft.now,
        unreachable_since=None,
        first_breach_at=None,
        objectives=len(snapshot.objectives),
        restarts=0,
        active_seconds=0,
        suspected_at=None,
        suspected_weight=0,
    )
    draft.enter("Loading", 0)
    draft.set(step=step_label(draft))
    draft.record(DecisionReason.ROLLOUT_STARTED, f"{why}: loading {version_name(version)} at weight 0")


def step_label(draft: Draft) -> str:
    s = draft.status
    if s.stage not in ACTIVE or s.snapshot is None:
        return ""
    total = len(s.snapshot.steps)
    done = total if s.stage == "Promoting" else s.current_step_index + (s.stage == "Stepping")
    return f"{done}/{total}"


def current_step(draft: Draft) -> Step | None:
    s = draft.status
    if s.stage != "Stepping" or s.snapshot is None or s.current_step_index >= len(s.snapshot.steps):
        return None
    return s.snapshot.steps[s.current_step_index]


def step_seconds(step: Step) -> int:
    """Minimum active time of a weight step."""
    return DEFAULT_STEP_SECONDS if step.min_duration_seconds is None else step.min_duration_seconds


def overdue(draft: Draft) -> bool:
    """Twice the step's time and a few intervals are over. Before that, missing evidence needs no person."""
    step, snapshot = current_step(draft), draft.status.snapshot
    if step is None or snapshot is None:
        return False
    return draft.clock.step_active_seconds >= 2 * step_seconds(step) + GRACE_INTERVALS * snapshot.interval_seconds


def is_late(draft: Draft) -> bool:
    """maxDurationSeconds is over, in a weight step that pods have confirmed and no person has promoted."""
    step, s, begun = current_step(draft), draft.status, draft.clock.acknowledged_at
    if step is None or step.weight is None or s.snapshot is None or begun is None or draft.now < begun:
        return False
    return draft.clock.active_seconds >= s.snapshot.max_duration_seconds and not s.step_time_waived


def is_last_weight(snapshot: Snapshot, index: int) -> bool:
    """After this step everybody is on the canary, so it can no longer be compared with stable."""
    here = snapshot.steps[index].weight if index < len(snapshot.steps) else None
    return here != 100 and not any(step.weight not in (None, 100) for step in snapshot.steps[index + 1 :])


def holdback_percent(snapshot: Snapshot, weight: int) -> int:
    """Percent of users who stay on stable when a canary at `weight` is promoted. What nobody watches needs no
    comparison."""
    watched = snapshot.analyse and snapshot.bake_seconds > 0
    return min(snapshot.holdback_percent, 100 - weight) if watched else 0  # nobody goes back to stable


def enter_step(draft: Draft, index: int, *, everybody: bool = False) -> None:
    """Go to step `index`, or promote after the last one; `everybody`: then without a holdback."""
    snapshot = draft.status.snapshot
    assert snapshot is not None
    if index >= len(snapshot.steps):
        stepped = draft.status.stage == "Stepping"  # else a person, or the way back, skips all steps
        held_back = holdback_percent(snapshot, draft.status.weight) if stepped and not everybody else 0
        draft.enter("Promoting", 100 - held_back)
        if held_back:
            compare_anew(draft, snapshot)
    else:
        step = snapshot.steps[index]
        draft.set(current_step_index=index)
        draft.enter("Stepping", draft.status.weight if step.weight is None else step.weight)
    draft.set(step=step_label(draft))
    if draft.status.weight > 0 and draft.clock.exposed_at is None:
        draft.set_clock(exposed_at=draft.now, evaluated_until=baseline_start(draft, snapshot))


def compare_anew(draft: Draft, snapshot: Snapshot) -> None:
    """A test of its own for the bake, at a level of its own: what the steps have shown does not outweigh what begins
    now. Stable's fluctuation is read again, as before the first user."""
    again = draft.clock.compared_since is not None  # metrics were lost before the promotion was confirmed
    draft.set(analysis=[])
    draft.set_clock(
        compared_since=draft.now,
        baseline_until=None,
        evaluated_until=baseline_start(draft, snapshot),
        restarts=draft.clock.restarts + again,
    )


def baseline_start(draft: Draft, snapshot: Snapshot) -> int:
    width = snapshot.interval_seconds
    return max(0, draft.now - draft.now % width - BASELINE_INTERVALS * width)


def complete(draft: Draft) -> None:
    """The weight after the last step is acknowledged: the canary is the stable version now."""
    s = draft.status
    assert s.canary is not None
    direct, old = s.direct, s.stable
    bakes = not direct and s.snapshot is not None and s.snapshot.bake_seconds > 0 and old is not None
    if s.retracing and old is not None:
        draft.reject(old, DecisionReason.ROLLOUT_UNDONE)
    # after going back, the version that was left must canary again, so it is not `previous`
    draft.set(stable=s.canary, canary=None, previous=None if direct else old, direct=False, retracing=False)
    if bakes:
        draft.enter("Baking", s.weight)
    else:
        draft.become_idle(100)
    draft.set(step="")
    text = f"{version_name(draft.status.stable)} serves {draft.status.weight} %"
    if bakes and s.snapshot is not None and s.weight < 100:
        text += f"; {version_name(old)} serves {100 - s.weight} % for comparison for {s.snapshot.bake_seconds} s"
    elif bakes and s.snapshot is not None:
        text += f"; {version_name(old)} stays loaded for {s.snapshot.bake_seconds} s"
    draft.record(DecisionReason.ROLLOUT_COMPLETED, text)


def end_bake(draft: Draft) -> None:
    held_back, old = draft.status.weight < 100, draft.status.previous
    draft.become_idle(100)
    text = f"{version_name(old)} is unloaded" if old else "the first version is no longer watched"
    if held_back:
        text = f"{version_name(draft.status.stable)} serves 100 %; {text}"
    draft.record(DecisionReason.BAKE_COMPLETED, text)


def withdraw(draft: Draft, why: DecisionReason, message: str, *, reject: bool) -> None:
    """Weight 0 at once. A rejected digest stays rejected until `retry`."""
    s = draft.status
    if s.stage == "Baking":
        # the old arm is still loaded: the promoted version becomes the canary that is withdrawn
        draft.set(canary=s.stable, stable=s.previous, previous=None)
    canary = draft.status.canary
    assert canary is not None
    if reject:
        draft.reject(canary, why)
    if why is DecisionReason.FIRST_BREACH:
        draft.set_clock(first_breach_at=draft.now)
    draft.set(withdrawal=why.value)
    draft.record(why, message, evidence=bool(s.analysis))
    draft.enter("Withdrawing", 0)
    draft.set(step="")


def finish_withdrawal(draft: Draft) -> None:
    """Weight 0 is acknowledged everywhere: the canary's arm can be removed."""
    why, canary = draft.status.withdrawal, draft.status.canary
    if why in STARTS_OVER and not draft.is_rejected(canary):
        start_over(draft)
        return
    took = max(1, draft.now - (draft.clock.stage_since or draft.now))
    draft.set(canary=None)
    draft.become_idle(0)
    if canary is not None:
        done = DecisionReason.ROLLBACK_COMPLETED if draft.is_rejected(canary) else DecisionReason.CANARY_WITHDRAWN
        pods = draft.facts.delivered.total if draft.facts.delivered else 0
        who = "the ready pod" if pods == 1 else f"all {pods} ready pods"
        draft.record(done, f"{who} confirmed weight 0 for {version_name(canary)} within {took} s")


def start_over(draft: Draft) -> None:
    """Keep the canary, at weight 0 and without evidence, until it may start over from its first step."""
    # what must breach twice to be rejected needs no stricter level the second time
    again = draft.status.withdrawal == DecisionReason.FIRST_BREACH
    if not again and any(row.canary_samples for row in draft.status.analysis):
        draft.set_clock(restarts=draft.clock.restarts + 1)
    draft.set(withdrawal=None, analysis=[], current_step_index=0)
    draft.enter("Loading", 0)
    draft.set(step=step_label(draft))
    draft.set_clock(**dict.fromkeys(TIMES_OF_A_TRY))


def update_rules(draft: Draft, snapshot: Snapshot) -> None:
    """A person edited steps or objectives in mid-canary. The weight is never raised by the edit itself."""
    s = draft.status
    old = s.snapshot
    if old is None or old == snapshot:
        return
    draft.set(snapshot=snapshot, analysis=kept_rows(old, snapshot, s.analysis))
    if old.interval_seconds != snapshot.interval_seconds and draft.clock.evaluated_until is not None:
        width = snapshot.interval_seconds
        until, baseline = draft.clock.evaluated_until, draft.clock.baseline_until or 0
        until, baseline = (-(-min(each, draft.now) // width) * width for each in (until, baseline))
        draft.set_clock(evaluated_until=until, baseline_until=baseline or None)
    most = max(draft.clock.objectives, len(old.objectives), len(snapshot.objectives))
    draft.set_clock(objectives=most)
    if (old.stickiness, old.audience) != (snapshot.stickiness, snapshot.audience):
        start_over(draft)
        draft.record(
            DecisionReason.ROLLOUT_UPDATED,
            "stickiness or audience was edited: other users meet the canary, so it starts over at weight 0",
        )
        return
    if old.reporting != snapshot.reporting:
        start_over(draft)
        draft.record(
            DecisionReason.ROLLOUT_UPDATED,
            "evidenceSource or reporting was edited: evidence is measured anew, so the canary starts over at weight 0",
        )
        return
    if {o.name for o in snapshot.objectives} - {row.name for row in draft.status.analysis}:
        read_baseline(draft)
    here = s.current_step_index + 1
    if old.steps[:here] != snapshot.steps[:here] and s.stage == "Stepping":
        reach = [i for i, step in enumerate(snapshot.steps) if step.weight is not None and step.weight <= s.weight]
        if not reach:
            draft.set(current_step_index=0)
            draft.enter("Loading", 0)
        elif snapshot.steps[reach[-1]].weight == s.weight:
            draft.set(current_step_index=reach[-1])
        else:
            enter_step(draft, reach[-1])
    draft.set(step=step_label(draft))
    draft.record(
        DecisionReason.ROLLOUT_UPDATED, "steps or objectives were edited: edited objectives start from no evidence"
    )


def read_baseline(draft: Draft) -> None:
    """Objectives begin in mid-canary: the intervals before are read once more, for them and of stable alone."""
    clock, snapshot = draft.clock, draft.status.snapshot
    if clock.evaluated_until is None or snapshot is None:
        return
    # rows that know nothing of the canary begin again too: what they know of stable is read once more
    rows = draft.status.analysis
    draft.set(analysis=[row for row in rows if row.canary_samples or row.name == sample_ratio.NAME])
    width = snapshot.interval_seconds
    until = max(clock.evaluated_until, clock.baseline_until or 0)  # an earlier edit may not be read to its end yet
    met = (clock.compared_since or clock.exposed_at or 0) // width * width
    begun = until > met  # else the baseline is still being read
    draft.set_clock(
        evaluated_until=max(0, (until if begun else met) - BASELINE_INTERVALS * width),
        baseline_until=until if begun else None,
        restarts=clock.restarts + begun,
    )


def kept_rows(old: Snapshot, new: Snapshot, rows: list[ObjectiveStatus]) -> list[ObjectiveStatus]:
    before = {o.name: definition_hash(o, old.interval_seconds) for o in old.objectives}
    same = {o.name for o in new.objectives if before.get(o.name) == definition_hash(o, new.interval_seconds)}
    return [row for row in rows if row.name in same or row.name == sample_ratio.NAME]
