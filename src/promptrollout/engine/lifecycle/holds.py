"""What keeps a rollout from advancing now: people, surroundings, its evidence, its time."""

from __future__ import annotations

from promptrollout.engine.lifecycle.analysis import WATCHED
from promptrollout.engine.lifecycle.conditions import heavy_key
from promptrollout.engine.lifecycle.draft import Draft
from promptrollout.engine.lifecycle.messages import problem_text
from promptrollout.engine.lifecycle.moves import is_late
from promptrollout.engine.lifecycle.reasons import Hold, HoldReason
from promptrollout.engine.objectives import sample_ratio

RETRY_SECONDS = 600
"""From a first breach to the fresh try: most incidents are over then."""
READ_INTERVALS = 3
"""If the evidence is older than this many intervals, nothing advances on it."""
UNMEASURED_SECONDS = 60
"""New pods are scraped within seconds. If samples are missing for longer, a person should find out why."""


def holds_from_outside(draft: Draft) -> list[Hold]:
    """Holds by people and by surroundings. A breach rolls back in spite of them."""
    facts, s = draft.facts, draft.status
    holds: list[Hold] = []
    if not s.retracing:
        if facts.spec.paused:
            holds.append(Hold(HoldReason.SPEC_PAUSED))
        if s.paused:
            holds.append(Hold(HoldReason.PAUSED))
        if facts.frozen:
            holds.append(Hold(HoldReason.FROZEN, facts.frozen))
        holds += [Hold(HoldReason.INVALID_SPEC, problem_text(problem)) for problem in facts.desired.problems[:1]]
        if facts.desired.version is None and not facts.desired.problems:
            holds.append(Hold(HoldReason.VERSION_MISSING))
        if draft.metrics_unavailable and s.stage in ("Loading", *WATCHED):
            holds.append(Hold(HoldReason.METRICS_UNAVAILABLE, facts.evidence.problem))
        by_steps = s.snapshot is not None and s.current_step_index < len(s.snapshot.steps)  # not `promote --full`
        if s.stage == "Loading" and by_steps and draft.clock.first_breach_at is not None:
            wait = draft.clock.first_breach_at + RETRY_SECONDS - draft.now
            holds += [Hold(HoldReason.RETRIES_AFTER_BREACH, seconds=wait)] if wait > 0 else []
        if s.stage in ("Loading", "Stepping") and not s.direct and (hold := _suspicion(draft)):
            holds.append(hold)
    if draft.clock.unreachable_since is not None:
        holds.append(Hold(HoldReason.CANARY_PROVIDER_UNREACHABLE))
    return holds


def _suspicion(draft: Draft) -> Hold | None:
    """Gateway pods failed: the suspected canary waits for its trial, and the others wait until it is over."""
    trial = draft.facts.pods.trial
    if draft.must_not_load:
        if trial in ("", draft.facts.name):
            return Hold(HoldReason.WAITS_FOR_CALM_PODS)
        return Hold(HoldReason.WAITS_FOR_OTHER_TRIAL, trial)
    if trial not in ("", draft.facts.name):
        return Hold(HoldReason.OTHER_ON_TRIAL, trial)
    return None


def holds_from_evidence(draft: Draft) -> list[Hold]:
    """Holds by the evidence, once the intervals are folded in. Which of them count as active time is decided one by one
    there, so that many at once, after a restart, make no other durations than one at a time."""
    s = draft.status
    if (s.stage not in ("Stepping", "Promoting") and not draft.holds_back) or s.retracing:
        return []
    holds: list[Hold] = []
    if draft.clock.outage_since is not None:
        holds.append(Hold(HoldReason.STABLE_FAILS))
    until, snapshot = draft.clock.evaluated_until, s.snapshot
    if snapshot is not None and snapshot.analyse and until is not None:
        behind = draft.now - until
        if behind > READ_INTERVALS * snapshot.interval_seconds:
            holds.append(Hold(HoldReason.EVIDENCE_BEHIND, seconds=behind))
    if s.stage == "Stepping" and not s.step_approved:
        if (since := _unmeasured_since(draft)) is not None:
            holds.append(Hold(HoldReason.NOTHING_MEASURED, seconds=since))
        mismatches = (row for row in s.analysis if row.name == sample_ratio.NAME and row.common_cause)
        holds += [Hold(HoldReason.SAMPLE_RATIO_MISMATCH, row.message) for row in mismatches]
        dominated, _, message = heavy_key(draft)
        if dominated:
            holds.append(Hold(HoldReason.HEAVY_KEY, message))
    return holds


def holds_from_time(draft: Draft) -> list[Hold]:
    """The whole rollout has taken longer than it may, and a person decides what happens then."""
    snapshot = draft.status.snapshot
    if snapshot is None or snapshot.on_timeout == "Rollback" or not is_late(draft):
        return []
    return [Hold(HoldReason.MAX_DURATION_EXCEEDED, seconds=snapshot.max_duration_seconds)]


def _unmeasured_since(draft: Draft) -> int | None:
    """Long enough for a person to look at it; None if not, or if another hold says why."""
    clock, snapshot = draft.clock, draft.status.snapshot
    if snapshot is None or draft.metrics_unavailable or clock.unmeasured_since is None or clock.evaluated_until is None:
        return None
    since = max(clock.unmeasured_since, clock.acknowledged_at or clock.evaluated_until)
    long = max(UNMEASURED_SECONDS, READ_INTERVALS * snapshot.interval_seconds)
    return since if clock.evaluated_until - since >= long else None
