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
    their squares (0 where it is not exported). `shards` divides `n` and `total` by groups of units (users), always the
    same number of them in the same order; empty where that is not known. Of a cost, `input_usd` is what the input would
    have cost without the provider's cache, and `saved_usd` what the cache saved of it. `missing`: values that there
    should be, as judgements that failed.
    """

    n: float
    total: float
    total_squared: float = 0.0
    shards: tuple[Shard, ...] = ()
    input_usd: float = 0.0
    saved_usd: float = 0.0
    missing: float = 0.0

    @property
    def is_usable(self) -> bool:
        """NaN, infinite and negative values are not counts, and neither is a sum without requests."""
        n, total, infinite = self.n, self.total, math.inf
        return (
            0 <= n < infinite
            and 0 <= total < infinite
            and 0 <= self.total_squared < infinite
            and 0 <= self.missing < infinite
            and (n > 0 or total == 0)
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """Both arms over the same seconds."""

    canary: Arm
    stable: Arm

    @classmethod
    def of(cls, canary_n: float, canary_total: float, stable_n: float, stable_total: float) -> "Counts":
        """Of a rate, without shards."""
        return cls(Arm(canary_n, canary_total), Arm(stable_n, stable_total))

    def clipped(self) -> "Counts":
        """Of a rate: never more bad requests than requests; a scrape may fall between the two counters' increments."""
        c, s = self.canary, self.stable
        if c.total <= c.n and s.total <= s.n:
            return self
        return Counts(Arm(c.n, min(c.total, c.n), shards=c.shards), Arm(s.n, min(s.total, s.n), shards=s.shards))

    def stable_alone(self) -> "Counts":
        """As if there were no canary yet."""
        return Counts(Arm(0.0, 0.0), self.stable)

    def at_shared_cache(self) -> "Counts":
        """Costs as if both arms found the same share of their input in the provider's cache: stable's, over these
        seconds.

        A new prompt is in no cache yet: at 20 % against 90 % hits an identical one looks 1.58 times as expensive (3,000
        tokens in, 300 out). The squares follow in proportion.
        """
        s = self.stable
        if s.input_usd <= 0:
            return self
        return Counts(_at_cached_share(self.canary, s.saved_usd / s.input_usd), s)


@dataclass(frozen=True, slots=True)
class Interval:
    """One analysis interval [start, end), in seconds on the metrics source's clock; both are multiples of the interval.

    `counts` has an entry for each objective that was measured in both arms; what is missing, stale or NaN has none. Its
    strata are compared separately (answers of like age, hits and misses of a cache); most have one. Intervals before
    the canary met its first user have stable's counts alone.
    """

    start: int
    end: int
    counts: Mapping[str, tuple[Counts, ...]] = field(default_factory=dict)
    problem: str = ""
    """Why its samples could not be read, and were skipped."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read since `clock.evaluated_until`: contiguous intervals, oldest first.

    `available` is False when the source did not answer; `problem` then says why, in a sentence.
    """

    intervals: tuple[Interval, ...] = ()
    available: bool = True
    problem: str = ""
    lost: bool = False
    """Nothing at all can be read for this rollout; short of that, only some of its objectives are not measured."""
    confirmed: bool = True
    """The source answered a moment ago, so a canary with more users from now on can be watched."""


def _at_cached_share(arm: Arm, share: float) -> Arm:
    if arm.total <= 0:
        return arm
    factor = max(0.0, arm.total + arm.saved_usd - arm.input_usd * share) / arm.total
    return Arm(arm.n, arm.total * factor, arm.total_squared * factor**2, tuple((n, x * factor) for n, x in arm.shards))
