"""Moments of an arm's samples: their variance as far as it is known, and sums over arms."""

from collections.abc import Iterable
from dataclasses import replace

from promptrollout.engine.statistics.dispersion import shard_squares
from promptrollout.engine.statistics.evidence import Arm

LEARN = 50
"""Samples of both arms before the first interval is used: they set the scale."""
PRIOR = 20
"""Pseudo-samples that shrink an arm's variance to that of both arms together."""
LEAST_CV = 0.01
"""Standard deviations count as at least this share of the mean, so that constant costs are no infinite certainty."""

NO_VARIANCE = 1e-100
"""Squares of doubles underflow not far below; no price is that small."""


def variances(canary: Arm, stable: Arm) -> tuple[float, float] | None:
    """Variance of one sample in each arm, shrunk to both arms' together; None before LEARN samples, without squares or
    scale.

    Taken around each arm's mean over all its intervals: shared drift widens it, which only makes the test slower.
    """
    n = canary.n + stable.n
    if n < LEARN or any(arm.total > 0 and arm.total_squared <= 0 for arm in (canary, stable)):
        return None
    squares = [_squares(arm) for arm in (canary, stable)]
    least = LEAST_CV * (canary.total + stable.total) / n
    least *= least  # and not ** 2, which rounds by the magnitude: the unit must not matter, to the last bit
    pooled = max(sum(squares) / (n - 2), least)
    if pooled < NO_VARIANCE:
        return None
    v_c, v_s = (
        max((own + PRIOR * pooled) / (max(arm.n - 1, 0.0) + PRIOR), least)
        for own, arm in zip(squares, (canary, stable), strict=True)
    )
    return v_c, v_s


def _squares(arm: Arm) -> float:
    """Sum of squared deviations from the arm's mean; rounding never makes it negative."""
    return max(arm.total_squared - arm.total / arm.n * arm.total, 0.0) if arm.n > 0 else 0.0


def with_squares(arm: Arm) -> Arm:
    """Where squares are not exported, those estimated from the shards."""
    if arm.total_squared > 0 or arm.total == 0 or not arm.shards:
        return arm
    return replace(arm, total_squared=shard_squares(arm))


def total_of(arms: Iterable[Arm]) -> Arm:
    n = total = squared = 0.0
    for arm in arms:
        n, total, squared = n + arm.n, total + arm.total, squared + arm.total_squared
    return Arm(n, total, squared)
