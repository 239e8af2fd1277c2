"""What people ask for: each verb of the CLI, bound to what its author was looking at."""

import hashlib
from collections.abc import Callable

from promptrollout.api.command import Command
from promptrollout.engine.lifecycle.conditions import heavy_key
from promptrollout.engine.lifecycle.draft import REMEMBERED, Draft
from promptrollout.engine.lifecycle.moves import STARTS_OVER, begin, current_step, enter_step, named, withdraw
from promptrollout.engine.objectives import sample_ratio

Refusal = str | None


def obey(draft: Draft) -> None:
    """Carry out the annotation's command once, or refuse it with an Event. A handled id never acts again."""
    command = draft.facts.command
    if command is None or draft.status.stage is None:
        return
    identity = command.id if isinstance(command, Command) else hashlib.sha256(command.encode()).hexdigest()[:32]
    if identity in draft.status.handled_commands:
        return
    if (
        isinstance(command, Command)
        and command.verb == "promote"
        and ends_pause(draft)
        and not (draft.blind or draft.watched())
    ):
        return  # the metrics source is asked first, and the next plan obeys
    draft.set(handled_commands=[identity, *draft.status.handled_commands][:REMEMBERED])
    if isinstance(command, str):
        draft.record("CommandRefused", command, warning=True)
        return
    refusal = mismatch(draft, command) or forbidden(draft, command) or VERBS[command.verb](draft, command)
    if refusal:
        draft.record("CommandRefused", f"{command.verb}{by(command)} refused: {refusal}", warning=True)


def mismatch(draft: Draft, command: Command) -> Refusal:
    s = draft.status
    if command.rollout_uid != draft.facts.uid:
        return "it was given to an earlier object of this name"
    if (command.revision, command.attempt) != (s.revision, s.attempt):
        return (
            f"it was given at revision {command.revision}, attempt {command.attempt}; "
            f"now it is revision {s.revision}, attempt {s.attempt}"
        )
    if command.verb.startswith("promote") and command.step != s.current_step_index:
        return f"it was given at step {command.step + 1}; now it is step {s.current_step_index + 1}"
    return None


def forbidden(draft: Draft, command: Command) -> Refusal:
    """What nobody may start while something stronger is in force."""
    if command.verb in ("pause", "resume", "abort"):
        return None
    if draft.facts.delivered is not None and draft.facts.delivered.overridden:
        return f"the emergency override is in force: `promptrollout emergency clear {draft.facts.name}` first"
    if draft.status.paused and command.verb.startswith("promote"):
        return "it is paused by a person: `resume` first"
    return None


def ends_pause(draft: Draft) -> bool:
    """More users meet the canary behind it."""
    step = current_step(draft)
    return step is not None and step.pause is not None


def by(command: Command) -> str:
    text = f" by {command.by}" if command.by else ""
    return text + (f" ({command.reason})" if command.reason else "")


def pause(draft: Draft, command: Command) -> Refusal:
    if draft.status.paused:
        return "it is paused already"
    draft.set(paused=True)
    draft.record("RolloutPaused", f"paused{by(command)}: nothing advances, a breach still rolls back")
    return None


def resume(draft: Draft, command: Command) -> Refusal:
    if draft.facts.spec.paused:
        return "spec.paused is true: set it to false where the manifest is kept"
    if not draft.status.paused:
        return "it is not paused; `promote` ends a pause step"
    draft.set(paused=False)
    draft.record("RolloutResumed", f"resumed{by(command)}")
    return None


def promote(draft: Draft, command: Command) -> Refusal:
    if draft.facts.spec.paused:
        return "spec.paused is true: set it to false where the manifest is kept"
    if draft.facts.frozen:
        return f"PromptFreeze {draft.facts.frozen} is in force"
    step = current_step(draft)
    if step is None:
        return "no step is in progress"
    if draft.facts.desired.problems:
        return f"the spec is invalid: {draft.facts.desired.problems[0]}"
    if draft.blind and step.pause is not None:
        return f"metrics are not available: {draft.facts.evidence.problem}; it would go on unwatched"
    if step.pause is not None:
        draft.record("PausePromoted", f"pause ended{by(command)}")
        enter_step(draft, draft.status.current_step_index + 1)
        return None
    asked = draft.status.snapshot is not None and draft.status.snapshot.on_insufficient_traffic == "RequireApproval"
    mismatch_found = any(row.name == sample_ratio.NAME and row.common_cause for row in draft.status.analysis)
    waits = (
        mismatch_found
        or heavy_key(draft)[0] is True
        or (asked and any(c.type == "InsufficientTraffic" and c.status == "True" for c in draft.status.conditions))
    )
    draft.set(step_time_waived=True, step_approved=draft.status.step_approved or waits)
    what = "approved without enough evidence" if waits else "need not wait for the step's time, only for its evidence"
    draft.record("StepPromoted", f"step {draft.status.step} {what}{by(command)}", evidence=True)
    return None


def promote_full(draft: Draft, command: Command) -> Refusal:
    if draft.facts.frozen:
        return f"PromptFreeze {draft.facts.frozen} is in force"
    if draft.facts.desired.problems:
        return f"the spec is invalid: {draft.facts.desired.problems[0]}"
    if draft.facts.spec.paused:
        return "spec.paused is true: set it to false where the manifest is kept"
    if draft.status.stage not in ("Loading", "Stepping"):
        return "no canary is in progress"
    draft.record(
        "FullPromotion",
        f"{named(draft.status.canary)} goes to 100 % without waiting for evidence{by(command)}",
        warning=True,
        evidence=True,
    )
    if draft.status.stage == "Loading":
        # never to an unready arm: the load is acknowledged first
        steps = draft.status.snapshot.steps if draft.status.snapshot else []
        draft.set(current_step_index=len(steps))
    else:
        enter_step(draft, 1 << 30)
    return None


def abort(draft: Draft, command: Command) -> Refusal:
    s = draft.status
    if s.stage == "Withdrawing" and s.canary is not None and s.withdrawal in STARTS_OVER:
        draft.reject(s.canary, "RolloutAborted")
        draft.set(withdrawal="RolloutAborted")
        draft.record("RolloutAborted", f"aborted{by(command)}", warning=True)
        return None
    if not draft.can_go_back:
        return "no canary is in progress"
    withdraw(draft, "RolloutAborted", f"aborted{by(command)}", reject=not s.retracing)
    return None


def retry(draft: Draft, command: Command) -> Refusal:
    desired = draft.desired
    if desired is None or not draft.is_rejected(desired):
        return "the version that the spec asks for is not rejected"
    if draft.status.stage == "Withdrawing":
        return "the rollback is not confirmed by every pod yet"
    draft.set(rejected=[r for r in draft.status.rejected if r.digest != desired.digest])
    draft.count_attempt(desired.digest)
    attempt = draft.attempt_of(desired.digest)
    draft.record(
        "RolloutRetried", f"{named(desired)}: attempt {attempt} from no evidence, at a stricter level{by(command)}"
    )
    return None


def undo(draft: Draft, command: Command) -> Refusal:
    s = draft.status
    if draft.can_go_back:
        withdraw(draft, "RolloutUndone", f"undone{by(command)}", reject=True)
        return None
    if s.stage == "Withdrawing":
        return "a rollback is in progress"
    if s.previous is None or s.stable is None:
        return "there is no earlier version to go back to"
    if draft.is_rejected(s.previous):
        return f"the earlier version {named(s.previous)} is rejected"
    snapshot = s.snapshot or draft.facts.desired.snapshot
    if snapshot is None:
        return "the spec is invalid and no earlier revision is known"
    if s.stage == "Idle" and draft.is_rejected(draft.desired):
        return (
            f"{named(draft.desired)} is taken back already; {named(s.stable)} serves, and is what an `undo` would leave"
        )
    left = s.stable
    begin(draft, s.previous, snapshot, direct=True, why=f"undo of {named(left)}{by(command)}")
    draft.set(retracing=True)
    return None


VERBS: dict[str, Callable[[Draft, Command], Refusal]] = {
    "pause": pause,
    "resume": resume,
    "promote": promote,
    "promote-full": promote_full,
    "abort": abort,
    "retry": retry,
    "undo": undo,
}
