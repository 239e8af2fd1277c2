"""From an objective of an SLO to its test: resolved bounds, the right kind, and the hash that guards its evidence."""

import hashlib
import json
from dataclasses import dataclass

from promptrollout.api.slo import Objective
from promptrollout.engine.judgement import ObjectiveTest
from promptrollout.engine.mean import MeanTest
from promptrollout.engine.rate import RateTest
from promptrollout.engine.signals import edge_seconds, maximum_of, own_series, signal_of

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
    versus, signal = objective.versus_stable, signal_of(objective)
    margin = rollback = None
    if versus is not None and versus.max_increase_percent is not None:
        margin = float(versus.max_increase_percent)
        explicit = versus.rollback_above_percent
        rollback = margin * signal.margin_share if explicit is None else float(explicit)
    return Bounds(
        margin_percent=margin,
        rollback_percent=rollback,
        maximum=maximum_of(objective),
        negligible=NEGLIGIBLE_RATE if objective.negligible_rate is None else float(objective.negligible_rate),
    )


def definition_hash(objective: Objective) -> str:
    """Ten hex digits of everything that the sums depend on. Another hash means that the evidence restarts.

    Not in it: name, minSamples and advanceOn, which are applied when the sums are judged.
    """
    bounds = bounds_of(objective)
    edge, signal = edge_seconds(objective), signal_of(objective)
    fields: list[object] = [
        objective.signal,
        None if edge is None else float(edge),
        bounds.margin_percent,
        bounds.rollback_percent,
        bounds.maximum,
        bounds.negligible if signal.kind == "rate" else None,
    ]
    if own := own_series(objective):
        fields.append(own)  # only where there are such: hashes of what ran before stay as they were
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:10]


def make_test(objective: Objective) -> ObjectiveTest:
    """The test of one objective. ValueError, with the field and the fix, if its bounds make no sense."""
    try:
        signal = signal_of(objective)
        bounds, definition = bounds_of(objective), definition_hash(objective)
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
            margin_percent=bounds.margin_percent,
            rollback_percent=bounds.rollback_percent,
            maximum=bounds.maximum,
            min_samples=objective.min_samples,
        )
    except ValueError as error:
        raise ValueError(f"objective {objective.name}: {error}") from error
