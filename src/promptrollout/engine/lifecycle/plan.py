"""`plan`: from facts to the next status, top to bottom. Pure: it reads no clock and does no I/O."""

from promptrollout.api.decisions import DecisionReason
from promptrollout.api.rollout import RolloutStatus, Snapshot
from promptrollout.engine.lifecycle.analysis import WATCHED, fold, lacking, required
from promptrollout.engine.lifecycle.conditions import describe
from promptrollout.engine.lifecycle.draft import ACTIVE, Draft
from promptrollout.engine.lifecycle.facts import Facts, Plan
from promptrollout.engine.lifecycle.holds import gather_findings, gather_holds
from promptrollout.engine.lifecycle.messages import all_missing_text, version_name
from promptrollout.engine.lifecycle.moves import (
    adopt,
    begin,
    complete,
    current_step,
    enter_step,
    overdue,
    settle,
    step_seconds,
    withdraw,
)
from promptrollout.engine.lifecycle.reasons import Hold, HoldReason
from promptrollout.engine.lifecycle.surroundings import (
    note_skipped,
    watch_delivery,
    watch_metrics,
    watch_pods,
    watch_provider,
)
from promptrollout.engine.lifecycle.verbs import obey

COMMON_SECONDS = 600
"""How long both arms may be beyond an absolute bound right after a weight increase before it is taken back."""
LAGGARD_SECONDS = 60
"""How long a pod may leave a rollback unconfirmed before it is evicted."""


def plan(facts: Facts, now: int) -> Plan:
    """The next status and what follows from it. `now`: seconds since the epoch on the metrics source's clock.

    Calling it again with the status it returned and no new facts changes nothing but durations.
    """
    draft = Draft(facts, now)
    recover(draft)
    stay_in_time(draft)
    obey(draft)
    follow(draft)
    watch_delivery(draft)
    watch_provider(draft)
    watch_metrics(draft)
    note_skipped(draft)
    watch_pods(draft)
    gather_holds(draft)
    breached = fold(draft)
    gather_holds(draft)
    gather_findings(draft)
    if breached is not None and not draft.can_go_back:
        text = f"{breached.name}: {breached.message}; there is nothing to go back to"
        draft.record(DecisionReason.OBJECTIVE_BREACHED, text, evidence=True)
    elif breached is not None:
        withdraw(
            draft, DecisionReason.OBJECTIVE_BREACHED, f"{breached.name}: {breached.message}; rolled back", reject=True
        )
    progress(draft)
    describe(draft, lacks=lacking(draft) if draft.status.stage == "Stepping" else [])
    return outcome(draft)


# ---------------------------------------------------------------- where it stands


def recover(draft: Draft) -> None:
    """Give an empty status its first content: from the delivery, from the mark on a copy, or as a first version."""
    if draft.status.stage is not None and is_coherent(draft.status):
        return
    if draft.status.stage is not None:
        # somebody edited it by hand: what cannot come from here is as good as lost
        draft.status = RolloutStatus(history=draft.status.history, decision_count=draft.status.decision_count)
    delivered, desired = draft.facts.delivered, draft.desired
    memory = delivered.memory if delivered else None
    if delivered is not None and memory is not None:
        stable = memory.stable or delivered.stable
        draft.set(
            stable=stable,
            previous=memory.previous,
            rejected=memory.rejected,
            attempts=memory.attempts,
            handled_commands=memory.handled_commands,
            revision=memory.revision,
        )
        draft.enter("Idle", 100)
        draft.record(
            DecisionReason.STATUS_RECOVERED,
            f"status was lost and rebuilt from the delivery: {version_name(stable)} is stable",
        )
    elif draft.facts.promoted is not None:
        draft.set(stable=draft.facts.promoted, revision=1)
        draft.enter("Idle", 100)
        draft.record(
            DecisionReason.STATUS_RECOVERED,
            f"rebuilt from the owned copies: {version_name(draft.facts.promoted)} is stable",
        )
    elif desired is not None and not draft.facts.desired.problems:
        first = draft.facts.desired.baseline or desired
        draft.set(stable=first, revision=1)
        draft.set_clock(started_at=draft.now)
        watch_first(draft)
        draft.record(
            DecisionReason.INITIAL_VERSION, f"{version_name(first)} is the first version, and goes to everybody"
        )


def stay_in_time(draft: Draft) -> None:
    """Evidence cannot have been read beyond the present interval: whoever wrote that would make the rollout blind."""
    until, snapshot = draft.clock.evaluated_until, draft.status.snapshot
    if until is None or snapshot is None or until <= draft.now + snapshot.interval_seconds:
        return
    draft.set_clock(evaluated_until=draft.now - draft.now % snapshot.interval_seconds)


def is_coherent(status: RolloutStatus) -> bool:
    """Stage, arms and weight fit together, as they do in every status that `plan` returns."""
    s, steps = status, status.snapshot.steps if status.snapshot else []
    if s.stable is None:
        return False
    if s.stage in ACTIVE and (s.canary is None or s.snapshot is None):
        return False
    if s.stage == "Withdrawing":
        return s.canary is not None and s.weight == 0
    if s.stage == "Stepping":
        sent = [step.weight for step in steps[: s.current_step_index + 1] if step.weight is not None]
        return s.current_step_index < len(steps) and s.weight == (sent[-1] if sent else 0)
    return s.weight == {"Loading": 0, "Promoting": 100, "Baking": 100}.get(s.stage or "", s.weight)


def watch_first(draft: Draft) -> None:
    """A first version has nothing to go back to: while it bakes, its absolute objectives alert and no more."""
    snapshot = draft.facts.desired.snapshot
    bounded = snapshot is not None and any(o.max is not None or o.min is not None for o in snapshot.objectives)
    if snapshot is None or not snapshot.analyse or not bounded:
        draft.enter("Idle", 100)
        return
    draft.set(snapshot=snapshot)
    draft.enter("Baking", 100)
    draft.set_clock(exposed_at=draft.now, evaluated_until=draft.now - draft.now % snapshot.interval_seconds)


def follow(draft: Draft) -> None:
    """Compare what the spec asks for with what runs, and begin, cancel or supersede."""
    s, desired, snapshot = draft.status, draft.desired, draft.facts.desired.snapshot
    if s.stage is None:
        return
    if draft.facts.delivered is not None and draft.facts.delivered.overridden:
        if draft.can_go_back:
            text = "the emergency override sends everybody to stable"
            withdraw(draft, DecisionReason.EMERGENCY_OVERRIDE, text, reject=not s.retracing)
        return
    if desired is None or draft.facts.desired.problems or snapshot is None:
        return
    if s.stage in ACTIVE:
        follow_in_progress(draft)
    elif s.stage in ("Idle", "Baking") and desired != s.stable and not draft.is_rejected(desired):
        back = desired == s.previous
        again = draft.attempt_of(desired.digest)
        why = f"back to what ran before {version_name(s.stable)}" if back else "the prompt changed"
        why = f"attempt {again}" if again > 1 else why
        begin(draft, desired, snapshot, direct=back, why=why)


def follow_in_progress(draft: Draft) -> None:
    s, desired, snapshot = draft.status, draft.desired, draft.facts.desired.snapshot
    assert desired is not None
    assert snapshot is not None
    if desired == s.canary:
        adopt(draft, snapshot)
    elif s.retracing:
        return  # an `undo` is on its way back while the spec still names what is being undone
    elif desired == s.stable:
        withdraw(
            draft,
            DecisionReason.ROLLOUT_CANCELLED,
            f"the spec names {version_name(desired)} again, which is stable",
            reject=False,
        )
    else:
        withdraw(draft, DecisionReason.ROLLOUT_SUPERSEDED, f"the spec names {version_name(desired)} now", reject=False)


# ---------------------------------------------------------------- where it goes


def progress(draft: Draft) -> None:
    """At most one move per plan: each move must be delivered before the next."""
    tick(draft)
    stage = draft.status.stage
    if stage == "Withdrawing":
        if draft.delivered():
            settle(draft)
    elif stage == "Loading":
        if draft.delivered() and not draft.holds and draft.watched():
            enter_step(draft, 1 << 30 if draft.status.direct else draft.status.current_step_index)
    elif stage == "Stepping":
        progress_step(draft)
    elif stage == "Promoting":
        if draft.delivered() and not draft.holds:
            complete(draft)
    elif stage == "Baking":
        snapshot = draft.status.snapshot
        if snapshot is None or draft.clock.step_active_seconds >= snapshot.bake_seconds:
            draft.rest(100)
            old = draft.status.previous
            draft.record(
                DecisionReason.BAKE_COMPLETED,
                f"{version_name(old)} is unloaded" if old else "the first version is watched no more",
            )


def tick(draft: Draft) -> None:
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
    if by_time and s.stage in ("Stepping", "Baking") and begun is not None and begun <= draft.now and not draft.holds:
        seconds = min(gap, 2 * snapshot.interval_seconds, draft.now - begun)
        paused = step is not None and step.pause is not None
        draft.set_clock(
            step_active_seconds=draft.clock.step_active_seconds + seconds,
            active_seconds=draft.clock.active_seconds + (0 if paused else seconds),
        )


def progress_step(draft: Draft) -> None:
    s, step = draft.status, current_step(draft)
    snapshot = s.snapshot
    if step is None or snapshot is None or draft.clock.acknowledged_at is None:
        return
    if draft.now < draft.clock.acknowledged_at:
        return
    if step.pause is not None:
        seconds = step.pause.duration_seconds
        if seconds is not None and draft.clock.step_active_seconds >= seconds and not draft.holds and draft.watched():
            draft.record(DecisionReason.PAUSE_COMPLETED, f"pause of {seconds} s is over; {whereto(snapshot, s)}")
            enter_step(draft, s.current_step_index + 1)
        return
    if common_cause_of_the_step(draft) and step_back(draft):
        return
    late = draft.clock.active_seconds >= snapshot.max_duration_seconds and not s.step_time_waived
    if late and snapshot.on_timeout == "Rollback":
        withdraw(
            draft,
            DecisionReason.MAX_DURATION_EXCEEDED,
            f"{draft.clock.active_seconds} s of active time are over",
            reject=True,
        )
        return
    if late:
        draft.holds.append(Hold(HoldReason.MAX_DURATION_EXCEEDED, seconds=snapshot.max_duration_seconds))
    time_is_up = s.step_time_waived or draft.clock.step_active_seconds >= step_seconds(step)
    if draft.holds or not time_is_up:
        return
    missing = lacking(draft)
    if missing and not s.step_approved:
        if snapshot.on_insufficient_traffic == "Rollback" and overdue(draft):
            text = f"the step's time is up without enough evidence: {all_missing_text(missing)}"
            withdraw(draft, DecisionReason.INSUFFICIENT_TRAFFIC, text, reject=True)
        return
    if not draft.watched():
        return
    how = f"approved by a person without enough evidence ({all_missing_text(missing)})" if missing else "passed"
    if not missing:
        passed = required(draft)  # by the rule of this step
        draft.each_row(lambda row: row.model_copy(update={"verdict": "Pass"}) if row.name in passed else row)
    draft.record(
        DecisionReason.STEP_COMPLETED, f"step {s.step} ({s.weight} %) {how}; {whereto(snapshot, s)}", evidence=True
    )
    enter_step(draft, s.current_step_index + 1)


def common_cause_of_the_step(draft: Draft) -> bool:
    """Both arms have been beyond an absolute bound for a while, and came there right after the weight was raised: the
    canary may use up a quota that both share."""
    clock, since = draft.clock, draft.clock.common_since
    if since is None or clock.stage_since is None or clock.acknowledged_at is None or clock.evaluated_until is None:
        return False
    begun = clock.stage_since <= since <= clock.acknowledged_at + COMMON_SECONDS
    return begun and clock.evaluated_until - since >= COMMON_SECONDS


def step_back(draft: Draft) -> bool:
    """To the weight before. False at the first one: nothing advances there either, and the message says why."""
    s, snapshot = draft.status, draft.status.snapshot
    assert snapshot is not None
    before = [i for i, step in enumerate(snapshot.steps[: s.current_step_index]) if step.weight is not None]
    if not before:
        return False
    names = ", ".join(row.name for row in s.analysis if row.common_cause)
    text = (
        f"both arms have been beyond the bound of {names} since the weight was raised to {s.weight} %: "
        f"back to {snapshot.steps[before[-1]].weight} %, as the canary may use up what both share"
    )
    draft.record(DecisionReason.WEIGHT_REDUCED, text, evidence=True)
    enter_step(draft, before[-1])
    return True


def whereto(snapshot: Snapshot, status: RolloutStatus) -> str:
    """What comes after the present step, for people."""
    following = status.current_step_index + 1
    if following >= len(snapshot.steps):
        return "going to 100 %"
    weight = snapshot.steps[following].weight
    return f"pausing at {status.weight} %" if weight is None else f"going to {weight} %"


# ---------------------------------------------------------------- what to do


def outcome(draft: Draft) -> Plan:
    before, s, clock = draft.facts.status, draft.status, draft.clock
    delivered = draft.facts.delivered
    evict: tuple[str, ...] = ()
    next_seconds: int | None = None
    if s.stage == "Withdrawing" and clock.stage_since is not None:
        next_seconds = clock.stage_since + LAGGARD_SECONDS
        if draft.now >= next_seconds and delivered is not None and not draft.delivered():
            evict, next_seconds = tuple(lag.pod for lag in delivered.laggards), draft.now + LAGGARD_SECONDS
    elif s.stage in (*ACTIVE, "Baking") and s.snapshot is not None:
        next_seconds = draft.now + s.snapshot.interval_seconds
    urgent = essence(before) != essence(s)
    if urgent:
        next_seconds = draft.now  # the move may open the way to another
    return Plan(
        status=s,
        delivery=draft.intent(),
        decisions=tuple(draft.decisions),
        next_seconds=next_seconds,
        wants_evidence=s.stage in WATCHED and s.snapshot is not None and s.snapshot.analyse,
        urgent=urgent,
        wants_contact=draft.wants_contact,
        evict=evict,
    )


def essence(status: RolloutStatus) -> RolloutStatus:
    """The part of a status whose change cannot wait for the next checkpoint."""
    return status.model_copy(
        update={
            "message": "",
            "analysis": [(row.name, row.verdict == "Breach") for row in status.analysis],
            "conditions": [(c.type, c.status, c.reason) for c in status.conditions],
            "clock": status.clock.model_copy(
                update={"evaluated_until": None, "step_active_seconds": 0, "active_seconds": 0, "ticked_at": None}
            ),
        }
    )
