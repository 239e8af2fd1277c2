"""Sentences for people, made of the values in `reasons`: what happened, to what, and what to do."""

from __future__ import annotations

from collections.abc import Iterable

from promptrollout.api.command import MalformedCommand
from promptrollout.api.delivery import VersionRef
from promptrollout.api.names import ANNOTATION_COMMAND, short_digest
from promptrollout.engine.lifecycle.draft import timestamp
from promptrollout.engine.lifecycle.reasons import (
    Hold,
    HoldReason,
    Missing,
    MissingEvidence,
    MissingObject,
    Refusal,
    RefusalReason,
    SpecProblem,
)

MISSING_SHOWN = 3
"""The message stands in several conditions."""


def version_name(version: VersionRef | None) -> str:
    return "nothing" if version is None else f"{version.version} ({short_digest(version.digest)})"


def holds_text(holds: Iterable[Hold]) -> str:
    return "; ".join(hold_text(hold) for hold in holds)


def hold_text(hold: Hold) -> str:
    about, seconds = hold.subject, hold.seconds
    match hold.reason:
        case HoldReason.SPEC_PAUSED:
            return "paused by spec.paused"
        case HoldReason.PAUSED:
            return "paused by a person"
        case HoldReason.FROZEN:
            return f"held by PromptFreeze {about}"
        case HoldReason.INVALID_SPEC:
            return f"the spec is invalid: {about}"
        case HoldReason.VERSION_MISSING:
            return "the version that the spec names is missing"
        case HoldReason.METRICS_UNAVAILABLE:
            return f"metrics are not available: {about}"
        case HoldReason.WAITS_FOR_CALM_PODS:
            return (
                "gateway pods failed while users met it: it is tried again alone, once all pods have been ready for a "
                "while"
            )
        case HoldReason.WAITS_FOR_OTHER_TRIAL:
            return f"gateway pods failed while users met it: it is tried again alone, after rollout {about}"
        case HoldReason.OTHER_ON_TRIAL:
            return f"gateway pods failed: rollout {about} is tried again alone first"
        case HoldReason.CANARY_PROVIDER_UNREACHABLE:
            return "the canary's provider is out of reach"
        case HoldReason.STABLE_FAILS:
            return "stable itself fails in half of its requests or more: nothing can be concluded"
        case HoldReason.EVIDENCE_BEHIND:
            return f"the metrics of the last {seconds} s are not read yet"
        case HoldReason.NOTHING_MEASURED:
            return (
                f"no objective has samples of both arms since {timestamp(seconds)}: are the gateway's pods scraped? "
                "`promote` goes on in spite of it"
            )
        case HoldReason.SAMPLE_RATIO_MISMATCH | HoldReason.HEAVY_KEY:
            return f"{about}; `promote` goes on in spite of it"
        case HoldReason.MAX_DURATION_EXCEEDED:
            return f"maxDurationSeconds ({seconds}) is over: promote, abort or undo"


def refusal_text(refusal: Refusal) -> str:
    about = refusal.subject
    match refusal.reason:
        case RefusalReason.OTHER_OBJECT:
            return "it was given to an earlier object of this name"
        case RefusalReason.OTHER_ATTEMPT:
            (revision, attempt), (revision_now, attempt_now) = refusal.given, refusal.present
            return (
                f"it was given at revision {revision}, attempt {attempt}; "
                f"now it is revision {revision_now}, attempt {attempt_now}"
            )
        case RefusalReason.OTHER_STEP:
            return f"it was given at step {refusal.given[0]}; now it is step {refusal.present[0]}"
        case RefusalReason.OVERRIDDEN:
            return f"the emergency override is in force: `promptrollout emergency clear {about}` first"
        case RefusalReason.PAUSED:
            return "it is paused by a person: `resume` first"
        case RefusalReason.ALREADY_PAUSED:
            return "it is paused already"
        case RefusalReason.NOT_PAUSED:
            return "it is not paused; `promote` ends a pause step"
        case RefusalReason.SPEC_PAUSED:
            return "spec.paused is true: set it to false where the manifest is kept"
        case RefusalReason.FROZEN:
            return f"PromptFreeze {about} is in force"
        case RefusalReason.INVALID_SPEC:
            return f"the spec is invalid: {about}"
        case RefusalReason.METRICS_UNAVAILABLE:
            return f"metrics are not available: {about}; it would go on unwatched"
        case RefusalReason.NO_STEP:
            return "no step is in progress"
        case RefusalReason.NO_CANARY:
            return "no canary is in progress"
        case RefusalReason.NOT_REJECTED:
            return "the version that the spec asks for is not rejected"
        case RefusalReason.ROLLBACK_UNCONFIRMED:
            return "the rollback is not confirmed by every pod yet"
        case RefusalReason.ROLLBACK_IN_PROGRESS:
            return "a rollback is in progress"
        case RefusalReason.NO_EARLIER_VERSION:
            return "there is no earlier version to go back to"
        case RefusalReason.EARLIER_VERSION_REJECTED:
            return f"the earlier version {about} is rejected"
        case RefusalReason.NO_EARLIER_REVISION:
            return "the spec is invalid and no earlier revision is known"
        case RefusalReason.ALREADY_UNDONE:
            return f"{about} is taken back already; {refusal.other} serves, and is what an `undo` would leave"


def malformed_text(command: MalformedCommand) -> str:
    return f"annotation {ANNOTATION_COMMAND}: {command.problem}; write it with `promptrollout`"


def problem_text(problem: SpecProblem) -> str:
    """`path: reason and fix`."""
    if isinstance(problem, MissingObject):
        return f"{problem.path}: there is no {problem.kind} {problem.name} in {problem.namespace}: create it"
    return f"{problem.path}: {problem.reason}" if problem.path else problem.reason


def problems_text(problems: Iterable[SpecProblem]) -> str:
    return "; ".join(problem_text(problem) for problem in problems)


def missing_text(missing: MissingEvidence) -> str:
    name, have, need = missing.objective, f"{missing.have:,}", f"{missing.need:,}"
    match missing.what:
        case Missing.SAMPLES:
            return f"{name}: {have} of {need} canary samples before it is judged"
        case Missing.STEP_SAMPLES:
            return f"{name}: {have} of {need} canary samples in this step"
        case Missing.COMPARISON:
            return f"{name}: stable is above the bound too, or answers could not be judged"
        case Missing.PROOF:
            return f"{name}: not yet shown to be within its margin"


def all_missing_text(missing: Iterable[MissingEvidence]) -> str:
    return "; ".join(missing_text(each) for each in missing)


def first_missing_text(missing: list[MissingEvidence]) -> str:
    """The first few."""
    more = f"; and {len(missing) - MISSING_SHOWN} more" if len(missing) > MISSING_SHOWN else ""
    return all_missing_text(missing[:MISSING_SHOWN]) + more
