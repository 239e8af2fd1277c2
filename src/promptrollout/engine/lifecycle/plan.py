"""`plan`: from facts to the next status, top to bottom. Pure: it reads no clock and does no I/O."""

from promptrollout.api.decisions import DecisionReason
from promptrollout.api.rollout import RolloutStatus
from promptrollout.api.strategy import MOST_HOLDBACK_PERCENT
from promptrollout.engine.lifecycle.analysis import WATCHED, fold_evidence, missing_evidence
from promptrollout.engine.lifecycle.conditions import describe
from promptrollout.engine.lifecycle.draft import ACTIVE, Draft
from promptrollout.engine.lifecycle.facts import Facts, Plan
from promptrollout.engine.lifecycle.holds import holds_from_evidence, holds_from_outside, holds_from_time
from promptrollout.engine.lifecycle.messages import version_name
from promptrollout.engine.lifecycle.moves import apply_move
from promptrollout.engine.lifecycle.progress import count_time, follow_spec, next_move, roll_back
from promptrollout.engine.lifecycle.surroundings import (
    record_skipped_metrics,
    watch_delivery,
    watch_metrics,
    watch_pods,
    watch_provider,
)
from promptrollout.engine.lifecycle.verbs import apply_command

LAGGARD_SECONDS = 60
"""A pod that has not confirmed a rollback after this time is evicted."""


def plan(facts: Facts, now: int) -> Plan:
    """The next status and what follows from it. `now`: seconds since the epoch on the metrics source's clock.

    Each line hands a value to the next: command and spec, surroundings, evidence, holds, one move, conditions.

    Calling it again with the status it returned and no new facts changes nothing but durations.
    """
    draft = Draft(facts, now)
    recover(draft)
    correct_clock(draft)
    apply_command(draft)
    apply_move(draft, follow_spec(draft))
    watch_delivery(draft)
    apply_move(draft, watch_provider(draft))
    apply_move(draft, watch_metrics(draft))
    record_skipped_metrics(draft)
    apply_move(draft, watch_pods(draft))
    holds = holds_from_outside(draft)
    breached = fold_evidence(draft, held=bool(holds))
    apply_move(draft, roll_back(draft, breached))
    holds += holds_from_evidence(draft)
    count_time(draft, held=bool(holds))
    holds += holds_from_time(draft)
    apply_move(draft, next_move(draft, holds))
    describe(draft, holds, missing_evidence(draft) if draft.status.stage == "Stepping" else [])
    return outcome(draft)


# ---------------------------------------------------------------- where it stands


def recover(draft: Draft) -> None:
    """Give an empty status its first content: from the delivery, from the mark on a copy, or as a first version."""
    if draft.status.stage is not None and is_coherent(draft.status):
        return
    if draft.status.stage is not None:
        # edited by hand: a status that no plan returns counts as lost
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
            f"the status was lost and rebuilt from the delivery: {version_name(stable)} is stable",
        )
    elif draft.facts.promoted is not None:
        draft.set(stable=draft.facts.promoted, revision=1)
        draft.enter("Idle", 100)
        draft.record(
            DecisionReason.STATUS_RECOVERED,
            f"the status was lost and rebuilt from the owned copies: {version_name(draft.facts.promoted)} is stable",
        )
    elif desired is not None and not draft.facts.desired.problems:
        first = draft.facts.desired.baseline or desired
        draft.set(stable=first, revision=1)
        draft.set_clock(started_at=draft.now)
        bake_first_version(draft)
        draft.record(DecisionReason.INITIAL_VERSION, f"{version_name(first)} is the first version and serves everybody")


def correct_clock(draft: Draft) -> None:
    """Evidence cannot have been read beyond the present interval: such a time, written by hand, would skip evidence."""
    clock, snapshot = draft.clock, draft.status.snapshot
    if snapshot is None:
        return
    latest, present = draft.now + snapshot.interval_seconds, draft.now - draft.now % snapshot.interval_seconds
    if (clock.evaluated_until or 0) > latest:
        draft.set_clock(evaluated_until=present)
    if (clock.baseline_until or 0) > latest:
        draft.set_clock(baseline_until=present)


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
    if s.stage in ("Promoting", "Baking") and s.clock.compared_since is not None:
        return s.weight >= 100 - MOST_HOLDBACK_PERCENT
    return s.weight == {"Loading": 0, "Promoting": 100, "Baking": 100}.get(s.stage or "", s.weight)


def bake_first_version(draft: Draft) -> None:
    """A first version has no earlier one to go back to: while it bakes, its absolute objectives only alert."""
    snapshot = draft.facts.desired.snapshot
    bounded = snapshot is not None and any(o.max is not None or o.min is not None for o in snapshot.objectives)
    if snapshot is None or not snapshot.analyse or not bounded:
        draft.enter("Idle", 100)
        return
    draft.set(snapshot=snapshot)
    draft.enter("Baking", 100)
    draft.set_clock(exposed_at=draft.now, evaluated_until=draft.now - draft.now % snapshot.interval_seconds)


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
    urgent = urgent_part(before) != urgent_part(s)
    if urgent:
        next_seconds = draft.now  # another move may follow at once
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


def urgent_part(status: RolloutStatus) -> RolloutStatus:
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
