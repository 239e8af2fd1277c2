"""What the engine sees of the world's metrics: counts of both arms, interval by interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Shard = tuple[float, float]
"""`n` and `total` of one group of units."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What one arm did within one interval.

    A rate: `n` requests, `total` bad ones. A mean: `n` values (requests, scores, actions), their sum and the sum of
    their squares (0 where nobody exports it). `shards` divides `n` and `total` by groups of units (users), always the
    same number of them in the same order; empty where that is not known.
    """

    n: float
    total: float
    total_squared: float = 0.0
    shards: tuple[Shard, ...] = ()
    input_usd: float = 0.0
    """`CostPerRequest`: what the input would have cost without the provider's cache."""
    saved_usd: float = 0.0
    """What the cache saved of it."""

    @property
    def is_usable(self) -> bool:
        """NaN, infinite or negative is no count; a sum without requests belongs to nobody."""
        numbers = (self.n, self.total, self.total_squared)
        return all(math.isfinite(x) and x >= 0 for x in numbers) and (self.n > 0 or self.total == 0)


@dataclass(frozen=True, slots=True)
class Counts:
    """Both arms over the same seconds."""

    canary: Arm
    stable: Arm

    @classmethod
    def of(cls, canary_n: float, canary_total: float, stable_n: float, stable_total: float) -> "Counts":
        """Of a rate, without shards."""
        return cls(Arm(canary_n, canary_total), Arm(stable_n, stable_total))


@dataclass(frozen=True, slots=True)
class Interval:
    """One analysis interval [start, end), in seconds on the metrics source's clock; both are multiples of the interval.

    `counts` has an entry for each objective that was measured in both arms; what is missing, stale or NaN has none. An
    entry holds strata that are compared separately: answers of like age for delayed feedback, cache hits and misses
    for the time to the first token. Most signals have one. Before the canary's exposure stable stands alone, beside a
    canary without requests.
    """

    start: int
    end: int
    counts: Mapping[str, tuple[Counts, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read since `clock.evaluated_until`: contiguous intervals, oldest first.

    `available` is False when the source did not answer; `problem` then says why, in a sentence.
    """

    intervals: tuple[Interval, ...] = ()
    available: bool = True
    problem: str = ""
