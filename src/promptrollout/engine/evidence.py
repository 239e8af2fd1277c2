"""What the engine sees of the world's metrics: counts of both arms, interval by interval."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RateCounts:
    """Requests and bad requests of both arms within one interval."""

    canary: float
    canary_bad: float
    stable: float
    stable_bad: float


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares of a quantity."""

    n: float
    total: float
    total_squared: float


@dataclass(frozen=True, slots=True)
class MeanCounts:
    """Moments of both arms within one interval."""

    canary: Moments
    stable: Moments


Counts = RateCounts | MeanCounts


@dataclass(frozen=True, slots=True)
class Interval:
    """One analysis interval [start, end), in seconds on the metrics source's clock; both are multiples of the interval.

    `counts` has an entry for each objective that was measured in both arms; what is missing, stale or NaN has none.
    """

    start: int
    end: int
    counts: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read since `clock.evaluated_until`: contiguous intervals, oldest first.

    `available` is False when the source did not answer; `problem` then says why, in a sentence.
    """

    intervals: tuple[Interval, ...] = ()
    available: bool = True
    problem: str = ""
