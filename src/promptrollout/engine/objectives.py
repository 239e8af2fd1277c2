"""From an objective of an SLO to its test: resolved bounds, the right kind, and the hash that guards its evidence."""

import hashlib
import json
from dataclasses import dataclass

from promptrollout.api.slo import Objective
from promptrollout.engine.judgement import ObjectiveTest
from promptrollout.engine.mean import GATE, MeanTest
from promptrollout.engine.rate import RateTest
from promptrollout.engine.signals import SIGNALS

NEGLIGIBLE_RATE = 0.005
"""Default of `negligibleRate`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """An objective's bounds with every default filled in: percent of stable's value, `maximum` in the signal's unit."""

    margin_percent: float | None
    rollback_percent: float | None
    maximum: float | None
    negligible: float


def bounds_of(objective: Objective) -> Bounds:
    """Defaults resolved: `rollbackAbovePercent` is half of the margin for cost and a fifth of it for rates."""
    versus, signal = objective.versus_stable, SIGNALS[objective.signal]
    margin = rollback = None
    if versus is not None:
        margin = float(versus.max_increase_percent)
        explicit = versus.rollback_above_percent
        rollback = margin * signal.margin_share if explicit is None else float(explicit)
    return Bounds(
        margin_percent=margin,
        rollback_percent=rollback,
        maximum=None if objective.max is None else float(objective.max),
        negligible=NEGLIGIBLE_RATE if objective.negligible_rate is None else float(objective.negligible_rate),
    )


def definition_hash(objective: Objective) -> str:
    """Ten hex digits of everything that the sums depend on. Another hash means that the evidence restarts.

    Not in it: name, minSamples and advanceOn, which are applied when the sums are judged.
    """
    bounds = bounds_of(objective)
    threshold = None if objective.threshold_seconds is None else float(objective.threshold_seconds)
    fields = [
        objective.signal,
        threshold,
        bounds.margin_percent,
        bounds.rollback_percent,
        bounds.maximum,
        bounds.negligible if SIGNALS[objective.signal].kind == "rate" else None,
    ]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:10]


def gate_of(objective: Objective) -> int:
    """Canary samples below which nothing is judged: none for a rate, whose test is exact."""
    return max(GATE, objective.min_samples) if SIGNALS[objective.signal].kind == "mean" else 0


def make_test(objective: Objective) -> ObjectiveTest:
    """The test of one objective. ValueError, with the field and the fix, if its bounds make no sense."""
    bounds, signal, definition = bounds_of(objective), SIGNALS[objective.signal], definition_hash(objective)
    try:
        if signal.kind == "rate":
            return RateTest(
                signal=signal,
                definition=definition,
                margin_percent=bounds.margin_percent,
                rollback_percent=bounds.rollback_percent,
                maximum=bounds.maximum,
                negligible=bounds.negligible,
            )
        return MeanTest(
            signal=signal,
            definition=definition,
            margin=bounds.margin_percent,
            rollback=bounds.rollback_percent,
            bound=bounds.maximum,
            gate=gate_of(objective),
        )
    except ValueError as error:
        raise ValueError(f"objective {objective.name}: {error}") from error
