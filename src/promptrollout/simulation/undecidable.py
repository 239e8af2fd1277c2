"""What an objective asks for that no traffic can ever give, and what a step asks for at all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.life import DEFAULT_STEP_SECONDS, GRACE_INTERVALS
from promptrollout.engine.objectives import bounds_of
from promptrollout.engine.signals import signal_of


@dataclass(frozen=True, slots=True)
class WeightStep:
    """A step with a weight, and its time."""

    number: int
    """From 1 on, pauses included."""
    weight: int
    seconds: int


def weight_steps(rules: Snapshot) -> list[WeightStep]:
    found = []
    for number, step in enumerate(rules.steps, start=1):
        if step.weight is not None:
            seconds = DEFAULT_STEP_SECONDS if step.min_duration_seconds is None else step.min_duration_seconds
            found.append(WeightStep(number, step.weight, max(seconds, rules.interval_seconds)))
    return found


def patience_seconds(rules: Snapshot, step: WeightStep) -> int:
    """How long the operator waits for evidence before onInsufficientTraffic applies."""
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


def wants_proof(objective: Objective, *, last: bool) -> bool:
    """Whether a step passes only when the canary is shown to be within its margin."""
    return (objective.advance_on or ("NonInferior" if last else "NoBreach")) == "NonInferior"


def undecidable(rules: Snapshot) -> Iterator[Doubt]:
    """What no traffic can ever decide."""
    steps = weight_steps(rules)
    if not rules.analyse:
        return
    planned = sum(step.seconds for step in steps)
    if planned > rules.max_duration_seconds:
        yield Doubt(
            "",
            f"the steps take {planned} s of active time at least, and maxDurationSeconds is "
            f"{rules.max_duration_seconds}: no version ever reaches 100 %",
            f"raise maxDurationSeconds above {planned}, or shorten the steps",
        )
    for objective in rules.objectives:
        proofs = [step for step in steps if wants_proof(objective, last=step is steps[-1])]
        margin = bounds_of(objective).margin
        if proofs and margin == 0:
            exception = " unless it is below negligibleRate" if signal_of(objective).kind == "rate" else ""
            yield Doubt(
                objective.name,
                f"step {_listed(proofs)} needs proof of a margin of 0 %, and a version as good as stable cannot give "
                f"it{exception}",
                "set versusStable.maxIncreasePercent to 10 or more, or advanceOn: NoBreach",
            )
        seen = [step for step in steps if step.weight >= signal_of(objective).from_weight]
        if not seen:
            least = signal_of(objective).from_weight
            yield Doubt(
                objective.name,
                f"{objective.signal} is compared from {least} % on, and no step goes so far",
                f"add a step with a weight of {least} %",
            )


def _listed(steps: Sequence[WeightStep]) -> str:
    return " and ".join(str(step.number) for step in steps)
