"""Sentences for people, made of the values in `reasons`: what happened, to what, and what to do."""

from __future__ import annotations

from collections.abc import Iterable

from promptrollout.api.command import MalformedCommand
from promptrollout.api.delivery import VersionRef
from promptrollout.api.names import ANNOTATION_COMMAND
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
    """The name of the operator's copy, which ends with the digest."""
    return "nothing" if version is None else version.version


def holds_text(holds: Iterable[Hold]) -> str:
    return "; ".join(hold_text(hold) for hold in holds)


def hold_text(hold: Hold) -> str:
    about, seconds = hold.subject, hold.seconds
    match hold.reason:
        case HoldReason.SPEC_PAUSED:
            return "paused by spec.paused: set it to false in the manifest"
        case HoldReason.PAUSED:
            return "paused by a person: `resume` continues"
        case HoldReason.FROZEN:
            return f"PromptFreeze {about} is in force"
        case HoldReason.INVALID_SPEC:
            return f"the spec is invalid: {about}"
        case HoldReason.VERSION_MISSING:
            return "the version that the spec names is missing"
        case HoldReason.METRICS_UNAVAILABLE:
            return f"metrics are not available: {about}"
        case HoldReason.RETRIES_AFTER_BREACH:
            return f"taken back by a first breach: tried once more in {seconds} s, from the first step"
        case HoldReason.WAITS_FOR_CALM_PODS:
            return (
                "gateway pods failed while it served users: it is tried again alone once all pods have been ready for "
                "a while"
            )
        case HoldReason.WAITS_FOR_OTHER_TRIAL:
            return f"gateway pods failed while it served users: it is tried again alone, after rollout {about}"
        case HoldReason.OTHER_ON_TRIAL:
            return f"gateway pods failed: waiting while rollout {about} is tried again alone"
        case HoldReason.CANARY_PROVIDER_UNREACHABLE:
            return "the canary's provider cannot be reached"
        case HoldReason.STABLE_FAILS:
            return "stable fails in at least half of its requests: the canary cannot be judged"
        case HoldReason.EVIDENCE_BEHIND:
            return f"waiting for metrics: the latest are {seconds} s old"
        case HoldReason.NOTHING_MEASURED:
            return (
                f"no objective has had samples of both arms since {timestamp(seconds)}: check that the gateway's pods "
                "are scraped; `promote` continues anyway"
            )
        case HoldReason.SAMPLE_RATIO_MISMATCH | HoldReason.HEAVY_KEY:
            return f"{about}; `promote` continues anyway"
        case HoldReason.MAX_DURATION_EXCEEDED:
            return f"maxDurationSeconds ({seconds}) is over: promote, abort or undo"


def refusal_text(refusal: Refusal) -> str:
    about = refusal.subject
    match refusal.reason:
        case RefusalReason.OTHER_OBJECT:
            return "the command was for an earlier rollout of this name"
        case RefusalReason.OTHER_ATTEMPT:
            (revision, attempt), (revision_now, attempt_now) = refusal.given, refusal.present
            return (
                f"the command was for revision {revision}, attempt {attempt}; "
                f"the rollout is at revision {revision_now}, attempt {attempt_now}"
            )
        case RefusalReason.OTHER_STEP:
            return f"the command was for step {refusal.given[0]}; the rollout is at step {refusal.present[0]}"
        case RefusalReason.OVERRIDDEN:
            clear = f"promptrollout emergency clear {about} -n {refusal.other}"
            return f"the emergency override is in force: run `{clear}` first"
        case RefusalReason.PAUSED:
            return "the rollout is paused: `resume` first"
        case RefusalReason.ALREADY_PAUSED:
            return "the rollout is paused already"
        case RefusalReason.NOT_PAUSED:
            return "the rollout is not paused; `promote` ends a pause step"
        case RefusalReason.SPEC_PAUSED:
            return "spec.paused is true: set it to false in the manifest"
        case RefusalReason.FROZEN:
            return f"PromptFreeze {about} is in force"
        case RefusalReason.INVALID_SPEC:
            return f"the spec is invalid: {about}"
        case RefusalReason.METRICS_UNAVAILABLE:
            return f"metrics are not available: {about}; the canary would advance unwatched"
        case RefusalReason.NO_STEP:
            return "no step is in progress"
        case RefusalReason.NO_CANARY:
            return "no canary is in progress"
        case RefusalReason.NOT_REJECTED:
            return "the version that the spec asks for is not rejected"
        case RefusalReason.ROLLBACK_UNCONFIRMED:
            return "not every pod has confirmed the rollback yet"
        case RefusalReason.ROLLBACK_IN_PROGRESS:
            return "a rollback is in progress"
        case RefusalReason.NO_EARLIER_VERSION:
            return "there is no earlier version to go back to"
        case RefusalReason.EARLIER_VERSION_REJECTED:
            return f"the earlier version {about} is rejected"
        case RefusalReason.NO_EARLIER_REVISION:
            return "the spec is invalid and no earlier revision is known"
        case RefusalReason.ALREADY_UNDONE:
            return f"{about} is rolled back already and {refusal.other} serves: there is nothing to undo"


def verb_text(verb: str) -> str:
    """As it is typed: `promote --full`."""
    return verb.replace("-", " --")


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
            return f"{name}: stable was beyond the bound lately too, or answers could not be judged"
        case Missing.ESTIMATE:
            return f"{name}: {missing.text}"
        case Missing.PROOF:
            return f"{name}: not yet shown to be within its margin"


def all_missing_text(missing: Iterable[MissingEvidence]) -> str:
    return "; ".join(missing_text(each) for each in missing)


def first_missing_text(missing: list[MissingEvidence]) -> str:
    """The first few."""
    more = f"; and {len(missing) - MISSING_SHOWN} more" if len(missing) > MISSING_SHOWN else ""
    return all_missing_text(missing[:MISSING_SHOWN]) + more
