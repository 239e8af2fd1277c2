"""What people, surroundings and the intervals themselves forbid now, each in a sentence."""

from __future__ import annotations

from promptrollout.engine.lifecycle.analysis import WATCHED
from promptrollout.engine.lifecycle.conditions import heavy_key
from promptrollout.engine.lifecycle.draft import Draft, timestamp
from promptrollout.engine.objectives import sample_ratio

READ_INTERVALS = 3
"""Evidence that ends longer ago than so many intervals says nothing of now: nothing advances on it."""
UNMEASURED_SECONDS = 60
"""New pods are scraped within a moment. Where nothing comes for longer, somebody should look why."""


def gather_holds(draft: Draft) -> None:
    """What people and surroundings forbid now, each in a sentence. A breach rolls back through all of it."""
    facts, s = draft.facts, draft.status
    if not s.retracing:
        if facts.spec.paused:
            draft.holds.append("paused by spec.paused")
        if s.paused:
            draft.holds.append("paused by a person")
        if facts.frozen:
            draft.holds.append(f"held by PromptFreeze {facts.frozen}")
        draft.holds += [f"the spec is invalid: {problem}" for problem in facts.desired.problems[:1]]
        if facts.desired.version is None and not facts.desired.problems:
            draft.holds.append("the version that the spec names is missing")
        if draft.blind and s.stage in ("Loading", *WATCHED):
            draft.holds.append(f"metrics are not available: {facts.evidence.problem}")
        if s.stage in ("Loading", "Stepping") and not s.direct and (why := _suspicion(draft)):
            draft.holds.append(why)
    if draft.clock.unreachable_since is not None:
        draft.holds.append("the canary's provider is out of reach")


def _suspicion(draft: Draft) -> str:
    """What waits because pods of the gateway failed: a suspect for its turn, the others for the suspects."""
    trial = draft.facts.pods.trial
    if draft.is_kept_away:
        turn = (
            "once all pods have been ready for a while" if trial in ("", draft.facts.name) else f"after rollout {trial}"
        )
        return f"gateway pods failed while users met it: it is tried again alone, {turn}"
    if trial not in ("", draft.facts.name):
        return f"gateway pods failed: rollout {trial} is tried again alone first"
    return ""


def gather_findings(draft: Draft) -> None:
    """What the intervals themselves forbid, once they are folded in. Which of them count as active time is decided one
    by one there, so that many at once, after a restart, make no other durations than one at a time."""
    s = draft.status
    if s.stage not in ("Stepping", "Promoting") or s.retracing:
        return
    if draft.clock.outage_since is not None:
        draft.holds.append("stable itself fails in half of its requests or more: nothing can be concluded")
    until, snapshot = draft.clock.evaluated_until, s.snapshot
    if snapshot is not None and snapshot.analyse and until is not None:
        behind = draft.now - until
        if behind > READ_INTERVALS * snapshot.interval_seconds:
            draft.holds.append(f"the metrics of the last {behind} s are not read yet")
    if s.stage == "Stepping" and not s.step_approved:
        if (since := _unmeasured_since(draft)) is not None:
            text = f"no objective has samples of both arms since {timestamp(since)}"
            draft.holds.append(f"{text}: are the gateway's pods scraped? `promote` goes on in spite of it")
        mismatches = (row for row in s.analysis if row.name == sample_ratio.NAME and row.common_cause)
        draft.holds += [f"{row.message}; `promote` goes on in spite of it" for row in mismatches]
        dominated, _, message = heavy_key(draft)
        if dominated:
            draft.holds.append(f"{message}; `promote` goes on in spite of it")


def _unmeasured_since(draft: Draft) -> int | None:
    """For so long that somebody should look; None: not for long, or it is said already why."""
    clock, snapshot = draft.clock, draft.status.snapshot
    if snapshot is None or draft.blind or clock.unmeasured_since is None or clock.evaluated_until is None:
        return None
    since = max(clock.unmeasured_since, clock.acknowledged_at or clock.evaluated_until)
    long = max(UNMEASURED_SECONDS, READ_INTERVALS * snapshot.interval_seconds)
    return since if clock.evaluated_until - since >= long else None
