"""Fold evidence into the analysis table, interval by interval, and read verdicts off it."""

import math

from promptrollout.api.rollout import ObjectiveStatus, Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.draft import Draft
from promptrollout.engine.evidence import Interval
from promptrollout.engine.judgement import Judgement, Levels
from promptrollout.engine.life import current_step, is_last_weight
from promptrollout.engine.mean import GATE
from promptrollout.engine.objectives import make_test
from promptrollout.engine.signals import signal_of

FAMILY_LEVEL = 0.05
"""Chance that a harmless canary is rolled back by any objective at any time."""
PROMOTION_LEVEL = 0.05
"""Chance, over all attempts together, that a canary at the margin passes an objective."""

OUTAGE_SHARE = 0.5

WATCHED = ("Stepping", "Promoting", "Baking")
"""Stages in which the canary meets users, so that evidence is read."""


def levels(snapshot: Snapshot, attempt: int) -> Levels:
    """Breach: the family's level shared by K objectives. Promotion: .05 * 6 / (pi^2 n^2) for the n-th attempt, which
    sums to .05 over all attempts (reference: statistics of repeated attempts, the Basel series)."""
    return Levels(
        breach=FAMILY_LEVEL / max(1, len(snapshot.objectives)),
        promote=PROMOTION_LEVEL * 6 / (math.pi**2 * attempt**2),
    )


def fold(draft: Draft) -> ObjectiveStatus | None:
    """Take in all intervals up to the first breach. Returns the row in breach, if any.

    Looking after each interval (and not only after the last) makes a restart or an outage decide as if it had not been.
    """
    s, evidence = draft.status, draft.facts.evidence
    if s.stage not in WATCHED or s.snapshot is None or not s.snapshot.analyse:
        return None
    for interval in evidence.intervals:
        until = draft.clock.evaluated_until
        if until is None or interval.start < until:
            continue
        draft.set_clock(evaluated_until=interval.end)
        if draft.clock.unreachable_since is not None:
            continue  # an outage of the canary's provider is no verdict on the canary
        known = {row.name for row in draft.status.analysis if row.verdict == "Breach"}
        take(draft, interval)
        breached = next((r for r in draft.status.analysis if r.verdict == "Breach" and r.name not in known), None)
        if breached is not None:
            return breached
    return None


def take(draft: Draft, interval: Interval) -> None:
    """One interval into every objective's row, and its length into the durations that it was active for."""
    s = draft.status
    assert s.snapshot is not None
    acknowledged = draft.clock.acknowledged_at
    outage = is_outage(s.snapshot, interval)
    if outage != (draft.clock.outage_since is not None):
        draft.set_clock(outage_since=interval.start if outage else None)
    promotable = acknowledged is not None and interval.start >= acknowledged and not outage
    step = current_step(draft)
    pausing = step is not None and step.pause is not None  # measured by the clock, see plan.tick
    if promotable and interval.counts and not draft.holds and not pausing:
        seconds = interval.end - interval.start
        draft.set_clock(
            step_active_seconds=draft.clock.step_active_seconds + seconds,
            active_seconds=draft.clock.active_seconds + seconds,
        )
    rows = {row.name: row for row in s.analysis}
    at = levels(s.snapshot, s.attempt)
    table = [advanced(o, rows.get(o.name), interval, at, promotable=promotable) for o in s.snapshot.objectives]
    draft.set(analysis=table)


def is_outage(snapshot: Snapshot, interval: Interval) -> bool:
    """Stable failed in half of its requests or more: the provider is down for both arms.

    The canary failing as often as that is not worse than stable, but no reason to go on either. Chosen by stable's
    counts alone, so the e-values of the intervals that do count stay e-values.
    """
    for objective in snapshot.objectives:
        stable = [counts.stable for counts in interval.counts.get(objective.name, ())]
        n = sum(arm.n for arm in stable)
        if objective.signal == "ErrorRate" and n > 0:
            return sum(arm.total for arm in stable) >= OUTAGE_SHARE * n
    return False


def advanced(
    objective: Objective, row: ObjectiveStatus | None, interval: Interval, at: Levels, *, promotable: bool
) -> ObjectiveStatus:
    """The row after one interval. Without counts the row stays as it is: no evidence is never a pass."""
    test = make_test(objective)
    if row is None:
        row = ObjectiveStatus(name=objective.name, signal=objective.signal, verdict="NoEvidence")
    try:
        state = test.decode(row.checkpoint) if row.checkpoint else test.start()
    except ValueError:
        state = test.start()
    step_samples = row.step_samples
    for counts in interval.counts.get(objective.name, ()):
        state = test.observe(state, counts, promotable=promotable)
        if promotable:
            step_samples += int(counts.canary.n)
    judgement = test.judge(state, at)
    return row.model_copy(
        update={
            "verdict": verdict(judgement),
            "canary": judgement.canary[:32],
            "stable": judgement.stable[:32],
            "canary_samples": judgement.canary_samples,
            "stable_samples": judgement.stable_samples,
            "step_samples": step_samples,
            "difference": judgement.difference[:96],
            "message": judgement.message[:512],
            "common_cause": judgement.common_cause or None,
            "checkpoint": test.encode(state),
        }
    )


def verdict(judgement: Judgement) -> str:
    if judgement.breach:
        return "Breach"
    return "Pass" if judgement.non_inferior and not judgement.common_cause else "NoEvidence"


def lacking(draft: Draft) -> list[str]:
    """What each objective still lacks before the present step may pass; empty when all of them pass."""
    s = draft.status
    if s.snapshot is None or not s.snapshot.analyse:
        return []
    last = is_last_weight(s.snapshot, s.current_step_index)
    rows = {row.name: row for row in s.analysis}
    missing = []
    for objective in s.snapshot.objectives:
        row = rows.get(objective.name)
        advance_on = objective.advance_on or ("NonInferior" if last else "NoBreach")
        samples = row.step_samples if row else 0
        gate = max(GATE, objective.min_samples) if signal_of(objective).kind == "mean" else 0
        seen = row.canary_samples if row else 0
        if seen < gate:
            missing.append(f"{objective.name}: {seen:,} of {gate:,} canary samples before it is judged")
        elif samples < objective.min_samples:
            missing.append(f"{objective.name}: {samples:,} of {objective.min_samples:,} canary samples in this step")
        elif row is not None and row.common_cause:
            missing.append(f"{objective.name}: stable is above the bound too")
        elif advance_on == "NonInferior" and (row is None or row.verdict != "Pass"):
            missing.append(f"{objective.name}: not yet shown to be within its margin")
    return missing
