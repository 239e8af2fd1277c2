"""Objectives that no amount of traffic can decide, and what each step requires."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.lifecycle.moves import GRACE_INTERVALS, holdback_percent, is_last_weight, step_seconds
from promptrollout.engine.objectives.definitions import bounds_of
from promptrollout.engine.objectives.signals import signal_of


@dataclass(frozen=True, slots=True)
class WeightStep:
    """A step with a weight, and its time."""

    number: int
    """From 1 on, pauses included."""
    weight: int
    seconds: int
    last: bool
    """After it everybody is on the canary, so this step needs proof."""


def weight_steps(rules: Snapshot) -> list[WeightStep]:
    return [
        WeightStep(
            number=index + 1,
            weight=step.weight,
            seconds=max(step_seconds(step), rules.interval_seconds),
            last=is_last_weight(rules, index),
        )
        for index, step in enumerate(rules.steps)
        if step.weight is not None
    ]


def promoted_weight(rules: Snapshot) -> int:
    """Percent of users who get the version while it bakes."""
    return 100 - holdback_percent(rules, max((step.weight for step in weight_steps(rules)), default=0))


def patience_seconds(rules: Snapshot, step: WeightStep) -> int:
    """How long the operator waits for evidence before onInsufficientTraffic applies (`moves.overdue` of the engine)."""
    return 2 * step.seconds + GRACE_INTERVALS * rules.interval_seconds


@dataclass(frozen=True, slots=True)
class Doubt:
    """One objective, or the rollout as a whole (`objective` empty)."""

    objective: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        name = f"objective {self.objective}: " if self.objective else ""
        return f"{name}{self.reason}; {self.remedy}"


def wants_proof(objective: Objective, step: WeightStep) -> bool:
    """Whether a step passes only on proof that the canary is within its margin (see `missing_evidence`)."""
    return (objective.advance_on or ("NonInferior" if step.last else "NoBreach")) == "NonInferior"


def undecidable(rules: Snapshot) -> Iterator[Doubt]:
    """Objectives, and rollouts, that no traffic can decide."""
    steps = weight_steps(rules)
    if not rules.analyse:
        return
    planned = sum(step.seconds for step in steps)
    if planned > rules.max_duration_seconds:
        yield Doubt(
            "",
            f"the steps need at least {planned} s of active time, and maxDurationSeconds is "
            f"{rules.max_duration_seconds}: no version can reach 100 %",
            f"raise maxDurationSeconds above {planned}, or shorten the steps",
        )
    for objective in rules.objectives:
        proofs = [step for step in steps if wants_proof(objective, step)]
        margin = bounds_of(objective).margin
        if proofs and margin == 0:
            exception = " unless it is below negligibleRate" if signal_of(objective).kind == "rate" else ""
            yield Doubt(
                objective.name,
                f"step {_listed(proofs)} needs proof of a margin of 0 %, and a version as good as stable cannot give "
                f"it{exception}",
                "set versusStable.maxIncreasePercent to 10 or more, or advanceOn: NoBreach",
            )
        least, most = signal_of(objective).from_weight, 100 if margin is None else 99
        if not any(least <= step.weight <= most for step in steps):
            yield Doubt(
                objective.name,
                f"{objective.signal} is compared at weights from {least} % to {most} %, and no step has such a weight",
                f"add a step with a weight of {max(least, 1)} %",
            )


def _listed(steps: Sequence[WeightStep]) -> str:
    return " and ".join(str(step.number) for step in steps)
