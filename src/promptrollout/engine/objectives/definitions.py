"""From an objective of an SLO to its test: resolved bounds, the right kind, and the hash that guards its evidence."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

from promptrollout.api.slo import Objective
from promptrollout.engine.objectives import rate, rate_state, wording
from promptrollout.engine.objectives.judgement import ObjectiveTest
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.mean_state import SUSPECT_EFFECTS
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.signals import Kind, edge_seconds, maximum_of, own_series, signal_of
from promptrollout.engine.statistics.contrast import EFFECTS
from promptrollout.engine.statistics.dispersion import LENGTHS
from promptrollout.engine.statistics.logspace import EARLY, EVERY, FIRST
from promptrollout.engine.statistics.pending import ENOUGH

NEGLIGIBLE_RATE = 0.005
"""Default of `negligibleRate`."""
ROLLBACK_SHARE: dict[Kind, float] = {"rate": 0.2, "mean": 0.5}
"""Of the margin for promotion: the defaults of `rollbackAbovePercent` and `rollbackAboveDecrease`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """An objective's bounds with every default filled in.

    Margins are percent of stable's value where more is worse, else by how much less, in the signal's unit; None without
    `versusStable`. `bound` is `max` or `min` in the unit of the test.
    """

    margin: float | None
    rollback: float | None
    bound: float | None
    negligible: float


def bounds_of(objective: Objective) -> Bounds:
    """Defaults resolved: a version is rolled back above a fifth of the margin for rates, above half of it for means.
    ValueError if a margin is of the wrong kind."""
    versus, signal = objective.versus_stable, signal_of(objective)
    margin: float | None = None
    explicit: int | str | None = None
    if versus is not None and signal.direction == "more_is_worse":
        if versus.max_increase_percent is None:
            raise ValueError("more is worse here: set versusStable.maxIncreasePercent")
        margin = float(versus.max_increase_percent)
        explicit = versus.rollback_above_percent
    elif versus is not None:
        if versus.max_decrease is None and signal.margin is None:
            raise ValueError("less is worse here: set versusStable.maxDecrease, in the signal's unit")
        margin = float(versus.max_decrease or signal.margin or 0)
        explicit = versus.rollback_above_decrease
    rollback = None
    if margin is not None:
        rollback = margin * ROLLBACK_SHARE[signal.kind] if explicit is None else float(explicit)
    if signal.direction == "more_is_worse":
        bound = maximum_of(objective)
    else:
        bound = None if objective.min is None else float(objective.min)
    negligible = NEGLIGIBLE_RATE if objective.negligible_rate is None else float(objective.negligible_rate)
    return Bounds(margin, rollback, bound, negligible)


def margins_text(objective: Objective) -> str:
    """`promotion below +50 %, rollback above +10 %`: a margin alone reads like a tolerance. Empty without one."""
    bounds, signal = bounds_of(objective), signal_of(objective)
    if bounds.margin is None or bounds.rollback is None:
        return ""
    if signal.direction == "more_is_worse":
        return f"promotion below +{bounds.margin:g} %, rollback above +{bounds.rollback:g} %"
    return (
        f"promotion above -{wording.value(signal, bounds.margin)}, "
        f"rollback below -{wording.value(signal, bounds.rollback)}"
    )


STARTS = (FIRST, EARLY, EVERY)
GRIDS = {
    "rate": (
        rate_state.MEANING,
        rate_state.WORSE,
        rate_state.BETTER,
        rate_state.WORSE_ODDS,
        rate_state.SUSPECT_ODDS,
        rate.FADING,
        LENGTHS,
        STARTS,
        ENOUGH,
    ),
    "mean": (EFFECTS, SUSPECT_EFFECTS, LENGTHS, STARTS),
}
"""What the sums were made with: sums of other alternatives are not sums of these."""


def definition_hash(objective: Objective, interval_seconds: int = 30) -> str:
    """Ten hex digits of everything that the sums depend on. Another hash means that the evidence restarts.

    Not in it: name, minSamples and advanceOn, which are applied when the sums are judged.
    """
    bounds, edge = bounds_of(objective), edge_seconds(objective)
    fields: list[object] = [
        objective.signal,
        None if edge is None else float(edge),
        bounds.margin,
        bounds.rollback,
        bounds.bound,
        bounds.negligible if signal_of(objective).kind == "rate" else None,
        own_series(objective),
        interval_seconds,
        repr(GRIDS[signal_of(objective).kind]),
    ]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:10]


def gate_of(objective: Objective) -> int:
    """Canary samples that are needed before a verdict: 0 for a rate, whose test is exact."""
    signal = signal_of(objective)
    return max(signal.gate, objective.min_samples) if signal.kind == "mean" else 0


@lru_cache(maxsize=1024)
def make_test(objective: Objective, interval_seconds: int = 30) -> ObjectiveTest:
    """The test of one objective, on intervals of this length. ValueError, with the field and the fix, if its bounds
    make no sense."""
    try:
        signal = signal_of(objective)
        bounds, definition = bounds_of(objective), definition_hash(objective, interval_seconds)
        if signal.kind == "rate":
            return RateTest(
                signal=signal,
                definition=definition,
                margin_percent=bounds.margin,
                rollback_percent=bounds.rollback,
                maximum=bounds.bound,
                negligible=bounds.negligible,
                interval_seconds=interval_seconds,
            )
        return MeanTest(
            signal=signal,
            definition=definition,
            margin=bounds.margin,
            rollback=bounds.rollback,
            bound=bounds.bound,
            more_is_worse=signal.direction == "more_is_worse",
            gate=gate_of(objective),
        )
    except ValueError as error:
        raise ValueError(f"objective {objective.name}: {error}") from error
