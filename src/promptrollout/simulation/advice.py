"""What cannot be decided with a given traffic, and the change that would help: the words of `plan` and of `lint`."""

import math
from collections.abc import Callable, Iterator, Sequence

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives import bounds_of, gate_of
from promptrollout.simulation.assumed import Assumed
from promptrollout.simulation.power import seconds_to_pass
from promptrollout.simulation.undecidable import (
    Doubt,
    WeightStep,
    patience_seconds,
    signal_of,
    undecidable,
    wants_proof,
    weight_steps,
)

MOST_WEIGHT = 90
"""Above, too little traffic is left on stable to compare with."""
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
            last = step is steps[-1]
            if step.weight < signal_of(objective).from_weight:
                continue
            doubt = _proof(rules, objective, given, step) if wants_proof(objective, last=last) else None
            doubt = doubt or _samples(rules, objective, given, step)
            if doubt is not None:
                yield doubt


def _samples(rules: Snapshot, objective: Objective, given: Assumed, step: WeightStep) -> Doubt | None:
    """minSamples are not reached in time."""
    # the gate of a mean counts from the rollout's start, minSamples from the step's: the stricter is what people see
    needed = max(objective.min_samples, gate_of(objective))
    per_second = given.per_second(objective.name) * step.weight / 100
    patience = patience_seconds(rules, step)
    if needed <= per_second * patience:
        return None
    seconds, weight = needed / per_second, needed / (given.per_second(objective.name) * patience / 100)
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
        f"what would help: {_either(remedies)}",
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
        return seconds_to_pass(rules, objective, given, weight) <= patience

    def at_margin(percent: int) -> bool:
        versus = objective.versus_stable
        assert versus is not None
        wider = versus.model_copy(update={"max_increase_percent": percent})
        return (
            seconds_to_pass(rules, objective.model_copy(update={"versus_stable": wider}), given, step.weight)
            <= patience
        )

    weights = [w for w in range(5, _most_weight(rules, step) + 1, 5) if w > step.weight]
    if (weight := next((w for w in weights if at_weight(w)), None)) is not None:
        remedies.append(f"a weight of {weight} %")
    margin = bounds_of(objective).margin_percent
    if margin is not None and (percent := _least(at_margin, int(margin) + 1, MOST_MARGIN_PERCENT)) is not None:
        remedies.append(f"a margin of {percent} % (versusStable.maxIncreasePercent)")
    remedies.append("advanceOn: NoBreach")
    return Doubt(objective.name, reason, f"what would help: {_either(remedies)}")


def _most_weight(rules: Snapshot, step: WeightStep) -> int:
    """Weights grow from step to step."""
    return min([MOST_WEIGHT, *(each.weight - 1 for each in weight_steps(rules) if each.number > step.number)])


def _least(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from `low` to `high` for which it holds, if it holds for all above; None if for none."""
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


def _either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]
