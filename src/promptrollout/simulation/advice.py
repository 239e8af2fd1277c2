"""What a given traffic cannot decide, and which change would help: the texts of `plan` and of `lint`."""

import math
from collections.abc import Callable, Iterator, Sequence

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.definitions import bounds_of, gate_of
from promptrollout.engine.objectives.signals import signal_of
from promptrollout.simulation.assumed import Assumed
from promptrollout.simulation.power import seconds_to_pass
from promptrollout.simulation.undecidable import (
    Doubt,
    WeightStep,
    patience_seconds,
    undecidable,
    wants_proof,
    weight_steps,
)

MOST_WEIGHT = 90
"""At higher weights stable has too little traffic left to compare with."""
MOST_MARGIN_PERCENT = 1_000


def never_decided(rules: Snapshot, given: Assumed) -> Iterator[Doubt]:
    """What cannot be decided with this traffic in each step's time, step by step."""
    if not rules.analyse:
        return
    hopeless = {doubt.objective for doubt in undecidable(rules)}
    steps = weight_steps(rules)
    for objective in rules.objectives:
        if objective.name in hopeless:
            continue
        for step in steps:
            if step.weight < signal_of(objective).from_weight:
                continue
            doubt = _samples(rules, objective, given, step)
            if doubt is None and wants_proof(objective, step):
                doubt = _proof(rules, objective, given, step)
            if doubt is not None:
                yield doubt


def _samples(rules: Snapshot, objective: Objective, given: Assumed, step: WeightStep) -> Doubt | None:
    """minSamples are not reached in time."""
    # a mean's gate counts from the rollout's start, minSamples from the step's: the stricter one is reported
    needed = max(objective.min_samples, gate_of(objective))
    patience = patience_seconds(rules, step)
    per_second = given.samples(objective, 1.0, step.weight)[0]
    if needed <= per_second * patience:
        return None
    seconds, weight = needed / per_second, needed * step.weight / (per_second * patience)
    fewer = math.floor(per_second * patience)
    remedies = [f"a step of {_nice(seconds)} s"]
    if weight <= _most_weight(rules, step):
        remedies.append(f"a weight of {math.ceil(weight)} %")
    if fewer >= 1 and fewer >= gate_of(objective):
        remedies.append(f"minSamples: {fewer}")
    return Doubt(
        objective.name,
        f"step {step.number} ({step.weight} %) gets about {per_second * patience:,.0f} canary samples in the "
        f"{patience:,} s after which onInsufficientTraffic applies, and {needed:,} are needed",
        f"what would help: {either(remedies)}",
    )


def _proof(rules: Snapshot, objective: Objective, given: Assumed, step: WeightStep) -> Doubt | None:
    """A version as good as stable is not shown to be within the margin in time."""
    patience = patience_seconds(rules, step)
    takes = seconds_to_pass(rules, objective, given, step.weight)
    if takes <= patience:
        return None
    if math.isinf(takes):
        reason = f"step {step.number} ({step.weight} %) never shows that a version as good as stable is within bounds"
    else:
        reason = (
            f"step {step.number} ({step.weight} %) needs about {_nice(takes):,} s to show that a version as good as "
            f"stable is within bounds, and onInsufficientTraffic applies after {patience:,} s"
        )
    remedies = [] if math.isinf(takes) else [f"a step of {_nice(takes)} s"]
    if _nice(takes) > rules.max_duration_seconds and remedies:
        remedies[0] += f" (with maxDurationSeconds above {rules.max_duration_seconds})"

    def at_weight(weight: int) -> bool:
        return seconds_to_pass(rules, objective, given, weight, patience) <= patience

    unit = given.baselines[objective.name].value / 100  # where less is worse, margins are in the signal's unit

    def at_margin(percent: int) -> bool:
        return seconds_to_pass(rules, _widened(objective, percent, unit), given, step.weight, patience) <= patience

    # above half of the traffic a comparison with stable does not improve
    most = min(50, _most_weight(rules, step))
    if (weight := _least(at_weight, step.weight + 1, most)) is not None:
        remedies.append(f"a weight of {weight} %")
    margin = bounds_of(objective).margin
    if margin is not None:
        least = int(margin if signal_of(objective).direction == "more_is_worse" else margin / unit) + 1
        if (percent := _least(at_margin, least, MOST_MARGIN_PERCENT)) is not None:
            remedies.append(_margin_text(objective, percent, unit))
    remedies.append("advanceOn: NoBreach")
    return Doubt(objective.name, reason, f"what would help: {either(remedies)}")


def _widened(objective: Objective, percent: int, unit: float) -> Objective:
    versus = objective.versus_stable
    assert versus is not None
    if signal_of(objective).direction == "more_is_worse":
        wider = versus.model_copy(update={"max_increase_percent": percent})
    else:
        wider = versus.model_copy(update={"max_decrease": f"{percent * unit:.6f}"})
    return objective.model_copy(update={"versus_stable": wider})


def _margin_text(objective: Objective, percent: int, unit: float) -> str:
    if signal_of(objective).direction == "more_is_worse":
        return f"a margin of {percent} % (versusStable.maxIncreasePercent)"
    return f"a margin of {percent * unit:.3g} (versusStable.maxDecrease)"


def _most_weight(rules: Snapshot, step: WeightStep) -> int:
    """Weights grow from step to step."""
    return min([MOST_WEIGHT, *(each.weight - 1 for each in weight_steps(rules) if each.number > step.number)])


def _least(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from `low` to `high` for which it holds, if it holds for all above it; None without one."""
    if low > high or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _nice(seconds: float) -> int:
    """Two digits, rounded up."""
    if math.isinf(seconds):
        return 0
    unit = 10 ** max(0, math.floor(math.log10(max(seconds, 1))) - 1)
    return int(math.ceil(seconds / unit) * unit)


def either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]
