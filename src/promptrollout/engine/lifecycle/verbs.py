"""The verbs of the CLI. Each command is bound to the status that its author saw."""

from collections.abc import Callable

from promptrollout.api.command import Command, MalformedCommand
from promptrollout.api.conditions import ConditionType
from promptrollout.api.decisions import DecisionReason
from promptrollout.engine.lifecycle.conditions import heavy_key
from promptrollout.engine.lifecycle.draft import REMEMBERED, Draft
from promptrollout.engine.lifecycle.messages import malformed_text, problem_text, refusal_text, verb_text, version_name
from promptrollout.engine.lifecycle.moves import STARTS_OVER, begin, current_step, enter_step, withdraw
from promptrollout.engine.lifecycle.reasons import Refusal, RefusalReason
from promptrollout.engine.objectives import sample_ratio


def apply_command(draft: Draft) -> None:
    """Carry out the annotation's command once, or refuse it with an Event. A handled id never acts again."""
    command = draft.facts.command
    if command is None or draft.status.stage is None:
        return
    if command.id in draft.status.handled_commands:
        return
    if (
        isinstance(command, Command)
        and command.verb == "promote"
        and ends_pause(draft)
        and not (draft.metrics_unavailable or draft.source_confirmed)
    ):
        draft.wants_contact = True
        return  # the metrics source is asked first, and the next plan applies it
    draft.set(handled_commands=[command.id, *draft.status.handled_commands][:REMEMBERED])
    if isinstance(command, MalformedCommand):
        draft.record(DecisionReason.COMMAND_REFUSED, malformed_text(command), command=command.id)
        return
    refusal = mismatch(draft, command) or forbidden(draft, command) or VERBS[command.verb](draft, command)
    if refusal:
        text = f"{verb_text(command.verb)} by {author(command)}{why(command)} refused: {refusal_text(refusal)}"
        draft.record(DecisionReason.COMMAND_REFUSED, text, command=command.id)


def mismatch(draft: Draft, command: Command) -> Refusal | None:
    s = draft.status
    if command.rollout_uid != draft.facts.uid:
        return Refusal(RefusalReason.OTHER_OBJECT)
    if (command.revision, command.attempt) != (s.revision, s.attempt):
        given, present = (command.revision, command.attempt), (s.revision, s.attempt)
        return Refusal(RefusalReason.OTHER_ATTEMPT, given=given, present=present)
    if command.verb.startswith("promote") and command.step != s.current_step_index:
        return Refusal(RefusalReason.OTHER_STEP, given=(command.step + 1,), present=(s.current_step_index + 1,))
    return None


def forbidden(draft: Draft, command: Command) -> Refusal | None:
    """What a command may not start while an override or a pause is in force."""
    if command.verb in ("pause", "resume", "abort"):
        return None
    if draft.facts.delivered is not None and draft.facts.delivered.overridden:
        return Refusal(RefusalReason.OVERRIDDEN, draft.facts.name, other=draft.facts.namespace)
    if draft.status.paused and command.verb.startswith("promote"):
        return Refusal(RefusalReason.PAUSED)
    return None


def ends_pause(draft: Draft) -> bool:
    """More users meet the canary after it."""
    step = current_step(draft)
    return step is not None and step.pause is not None


def author(command: Command) -> str:
    return command.by or "a person"


def why(command: Command) -> str:
    return f" ({command.reason})" if command.reason else ""


def pause(draft: Draft, command: Command) -> Refusal | None:
    if draft.status.paused:
        return Refusal(RefusalReason.ALREADY_PAUSED)
    draft.set(paused=True)
    draft.record(
        DecisionReason.ROLLOUT_PAUSED,
        f"{author(command)} paused the rollout{why(command)}: nothing advances, a breach still rolls back",
    )
    return None


def resume(draft: Draft, command: Command) -> Refusal | None:
    if draft.facts.spec.paused:
        return Refusal(RefusalReason.SPEC_PAUSED)
    if not draft.status.paused:
        return Refusal(RefusalReason.NOT_PAUSED)
    draft.set(paused=False)
    draft.record(DecisionReason.ROLLOUT_RESUMED, f"{author(command)} resumed the rollout{why(command)}")
    return None


def promote(draft: Draft, command: Command) -> Refusal | None:
    if draft.facts.spec.paused:
        return Refusal(RefusalReason.SPEC_PAUSED)
    if draft.facts.frozen:
        return Refusal(RefusalReason.FROZEN, draft.facts.frozen)
    step = current_step(draft)
    if step is None:
        return Refusal(RefusalReason.NO_STEP)
    if draft.facts.desired.problems:
        return Refusal(RefusalReason.INVALID_SPEC, problem_text(draft.facts.desired.problems[0]))
    if draft.metrics_unavailable and step.pause is not None:
        return Refusal(RefusalReason.METRICS_UNAVAILABLE, draft.facts.evidence.problem)
    if step.pause is not None:
        draft.record(DecisionReason.PAUSE_PROMOTED, f"{author(command)} ended the pause{why(command)}")
        enter_step(draft, draft.status.current_step_index + 1)
        return None
    asked = draft.status.snapshot is not None and draft.status.snapshot.on_insufficient_traffic == "RequireApproval"
    mismatch_found = any(row.name == sample_ratio.NAME and row.common_cause for row in draft.status.analysis)
    waits = (
        mismatch_found
        or heavy_key(draft)[0] is True
        or (
            asked
            and any(
                c.type == ConditionType.INSUFFICIENT_TRAFFIC and c.status == "True" for c in draft.status.conditions
            )
        )
    )
    draft.set(step_time_waived=True, step_approved=draft.status.step_approved or waits)
    who, step_name = author(command), f"step {draft.status.step}"
    text = f"{who} skipped the minimum time of {step_name}{why(command)}; evidence is still required"
    if waits:
        text = f"{who} approved {step_name} without enough evidence{why(command)}"
    draft.record(DecisionReason.STEP_PROMOTED, text, evidence=True)
    return None


def promote_full(draft: Draft, command: Command) -> Refusal | None:
    if draft.facts.frozen:
        return Refusal(RefusalReason.FROZEN, draft.facts.frozen)
    if draft.facts.desired.problems:
        return Refusal(RefusalReason.INVALID_SPEC, problem_text(draft.facts.desired.problems[0]))
    if draft.facts.spec.paused:
        return Refusal(RefusalReason.SPEC_PAUSED)
    if draft.holds_back:
        text = f"{author(command)} ended the holdback{why(command)}: {version_name(draft.status.stable)} goes to 100 %"
        draft.record(DecisionReason.FULL_PROMOTION, text, evidence=True)
        draft.set(weight=100)
        return None
    if draft.status.stage not in ("Loading", "Stepping"):
        return Refusal(RefusalReason.NO_CANARY)
    draft.record(
        DecisionReason.FULL_PROMOTION,
        f"{author(command)} sends {version_name(draft.status.canary)} to 100 % without waiting for evidence"
        f"{why(command)}",
        evidence=True,
    )
    if draft.status.stage == "Loading":
        # never to an unready arm: the load is acknowledged first
        steps = draft.status.snapshot.steps if draft.status.snapshot else []
        draft.set(current_step_index=len(steps))
    else:
        enter_step(draft, 1 << 30, everybody=True)
    return None


def abort(draft: Draft, command: Command) -> Refusal | None:
    s = draft.status
    if s.stage == "Withdrawing" and s.canary is not None and s.withdrawal in STARTS_OVER:
        draft.reject(s.canary, DecisionReason.ROLLOUT_ABORTED)
        draft.set(withdrawal=DecisionReason.ROLLOUT_ABORTED.value)
        draft.record(DecisionReason.ROLLOUT_ABORTED, f"{author(command)} aborted the rollout{why(command)}")
        return None
    if not draft.can_go_back:
        return Refusal(RefusalReason.NO_CANARY)
    withdraw(
        draft,
        DecisionReason.ROLLOUT_ABORTED,
        f"{author(command)} aborted the rollout{why(command)}",
        reject=not s.retracing,
    )
    return None


def retry(draft: Draft, command: Command) -> Refusal | None:
    desired = draft.desired
    if desired is None or not draft.is_rejected(desired):
        return Refusal(RefusalReason.NOT_REJECTED)
    if draft.status.stage == "Withdrawing":
        return Refusal(RefusalReason.ROLLBACK_UNCONFIRMED)
    draft.set(rejected=[r for r in draft.status.rejected if r.digest != desired.digest])
    draft.count_attempt(desired.digest)
    attempt = draft.attempt_of(desired.digest)
    draft.record(
        DecisionReason.ROLLOUT_RETRIED,
        f"{author(command)} retried {version_name(desired)}{why(command)}: attempt {attempt}, without earlier "
        "evidence, at a stricter confidence level",
    )
    return None


def undo(draft: Draft, command: Command) -> Refusal | None:
    s = draft.status
    if draft.can_go_back:
        withdraw(
            draft, DecisionReason.ROLLOUT_UNDONE, f"{author(command)} undid the rollout{why(command)}", reject=True
        )
        return None
    if s.stage == "Withdrawing":
        return Refusal(RefusalReason.ROLLBACK_IN_PROGRESS)
    if s.previous is None or s.stable is None:
        return Refusal(RefusalReason.NO_EARLIER_VERSION)
    if draft.is_rejected(s.previous):
        return Refusal(RefusalReason.EARLIER_VERSION_REJECTED, version_name(s.previous))
    snapshot = s.snapshot or draft.facts.desired.snapshot
    if snapshot is None:
        return Refusal(RefusalReason.NO_EARLIER_REVISION)
    if s.stage == "Idle" and draft.is_rejected(draft.desired):
        return Refusal(RefusalReason.ALREADY_UNDONE, version_name(draft.desired), other=version_name(s.stable))
    left = s.stable
    begin(
        draft,
        s.previous,
        snapshot,
        direct=True,
        why=f"{author(command)} went back from {version_name(left)}{why(command)}",
    )
    draft.set(retracing=True)
    return None


VERBS: dict[str, Callable[[Draft, Command], Refusal | None]] = {
    "pause": pause,
    "resume": resume,
    "promote": promote,
    "promote-full": promote_full,
    "abort": abort,
    "retry": retry,
    "undo": undo,
}
