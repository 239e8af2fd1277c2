"""docs/reference/events.md and conditions.md: the reasons of decisions, and the conditions of each kind."""

from collections.abc import Iterator, Mapping
from typing import Final

from promptrollout.api.conditions import CONDITIONS, ROLLOUT_STATES, ConditionRow, ConditionType, Reason
from promptrollout.api.decisions import DECISIONS, DecisionReason
from promptrollout.cli.reference.markdown import HEAD, code, prose

_STATES: Final = "States of a rollout"
_NOTES: Final = {
    "PromptRollout": "`Ready`, `Reconciling` and `Stalled` follow kstatus, so that GitOps tools understand them: "
    "exactly one of the three is True. A *state* is one of the [states of a rollout](#states-of-a-rollout) below.",
}


def events_page() -> str:
    """The reasons of decisions, those of Warnings first: the person on call looks them up."""
    lines = [
        HEAD,
        "# Events",
        "",
        "Each decision is an Event on the PromptRollout and an entry of `status.history`, and counts in",
        "`promptrollout_decisions_total{reason}`. `promptrollout status NAME` shows the last ones with their messages.",
        "Changes of [conditions](conditions.md) of other objects are Events, too, with the condition's reason.",
        "What to look at next: [find out why a rollout does not move](../how-to/troubleshoot.md).",
        "",
    ]
    for kind in ("Warning", "Normal"):
        lines += [f"## {kind}", "", "| reason | meaning | what to do |", "| -- | -- | -- |"]
        for reason, row in DECISIONS.items():
            if row.type == kind:
                lines.append(f"| {code(reason.value)} | {prose(row.meaning)} | {prose(row.action)} |")
        lines.append("")
    return "\n".join(lines)


def conditions_page() -> str:
    """Every condition of each kind, and the reasons it can have."""
    lines = [
        HEAD,
        "# Conditions",
        "",
        "All are `metav1.Condition`. The message of a condition says what is wrong and what to do. A change of a",
        "condition on a PromptGateway, ModelProvider, PromptVersion or PromptSLO is also an Event. The meaning is that",
        "of the condition when it is True. What to look at next:",
        "[find out why a rollout does not move](../how-to/troubleshoot.md).",
        "",
    ]
    for kind, rows in CONDITIONS.items():
        lines += [f"## {kind}", ""]
        if note := _NOTES.get(kind):
            lines += [note, ""]
        for name, row in rows.items():
            lines += _condition(name, row)
        lines.append("")
        if kind == "PromptRollout":
            lines += _states()
    return "\n".join(lines)


def _condition(name: ConditionType, row: ConditionRow) -> Iterator[str]:
    own = {reason: text for reason, text in row.reasons.items() if ROLLOUT_STATES.get(reason) != text}
    states = " Reason: a *state*" if len(own) < len(row.reasons) else ""
    states += ", or:" if states and own else "." if states else ""
    yield f"- **{code(name.value)}**: {prose(row.meaning)}.{states}"
    yield from _reasons(own, "  ")


def _states() -> Iterator[str]:
    yield from (f"### {_STATES}", "")
    decisions = [reason for reason in ROLLOUT_STATES if isinstance(reason, DecisionReason)]
    yield from _reasons({reason: text for reason, text in ROLLOUT_STATES.items() if reason not in decisions}, "")
    named = ", ".join(code(reason.value) for reason in decisions)
    yield from (
        "",
        "While a canary goes to weight 0, and while its version stays rejected, the state is the reason of that",
        f"[decision](events.md): {named}, `InsufficientTraffic` or `EmergencyOverride`.",
        "",
    )


def _reasons(reasons: Mapping[Reason, str], indent: str) -> Iterator[str]:
    for reason, text in reasons.items():
        yield f"{indent}- {code(reason.value)}: {prose(text)}"
