"""How much more the arms fluctuate than independent requests would: from interval to interval, and from user to user.

Requests are not independent: a user's habits come back with each of them, and a bad minute at a provider hits all of
one arm's. Tests that take them as independent raise false alarms by the dozen. So every bet is made smaller by the
factor by which the variance is larger. A factor is never below 1 and e^(x/phi) <= (e^x)^(1/phi) keeps an e-value one,
so the tests stay exactly valid for independent requests; for correlated ones they are calibrated
(benchmarks/decisions), not proved.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from promptrollout.engine.evidence import Arm, Counts, Shard

SHARDS = 32
"""Groups of users, by a hash that the bucket does not depend on. Enough that an estimate of their variance is off by 18
% (both arms: 62 degrees of freedom), and few enough to be exported while a rollout progresses."""
LEAST_SHARDS = 10
"""Below so many effective ones nothing can be estimated, and the requests of a shard count as one."""
SKEWED = 3.0
"""Shocks in two arms add twice their share to the variance of the difference; half again as much because they are
skewed: with 2, arm-by-minute shocks of correlation .05 and .01 raised 7.2 and 5.8 % false alarms, with 3 2.2 % both."""

_SHARD_ERROR = math.sqrt(2 / (2 * (SHARDS - 1)))


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Sums of fixed size. Intervals are judged by stable alone: what the canary does cannot make its own bets
    smaller."""

    excess: float = 0.0
    """Sum over intervals of the squared change of stable's mean, less what independent requests would show."""
    scale: float = 0.0
    """Twice the variance of one request, summed over the same intervals."""
    error: float = 0.0
    """Variance of `excess` if requests are independent."""
    last_n: float = 0.0
    """Of stable in the interval before."""
    last_mean: float = 0.0
    canary_free: float = 0.0
    """Requests whose variance the canary's residuals hold if they are independent."""
    stable_free: float = 0.0
    canary: tuple[float, ...] = ()
    """By shard, residuals against the arm's own mean in each interval. Like `stable` and `requests` in single
    precision, as in a checkpoint; empty until shards are known."""
    stable: tuple[float, ...] = ()
    requests: tuple[float, ...] = ()
    """The canary's, by shard."""

    # ------------------------------------------------------------ what it says

    def between_intervals(self) -> float:
        """Correlation of an arm's requests within an interval, as far as it stands out by more than its error.

        Successive differences (von Neumann), so that slow drift is none; E d^2 = v (1/n + 1/n' + 2 rho).
        """
        surplus = self.excess - math.sqrt(self.error)
        return surplus / self.scale if surplus > 0 else 0.0

    def between_users(self, canary_variance: float, stable_variance: float) -> float:
        """Variance of the arms' totals over that of independent requests, at least 1.

        Users' habits add the same share to both arms, so both estimates are averaged, less one standard error.
        """
        if not self.requests:
            return 1.0
        free = (self.canary_free * canary_variance, self.stable_free * stable_variance)
        squares = (math.fsum(z * z for z in arm) for arm in (self.canary, self.stable))
        ratios = [found / expected for found, expected in zip(squares, free, strict=True) if expected > 0]
        factor = sum(ratios) / len(ratios) / (1 + _SHARD_ERROR * math.sqrt(2 / len(ratios))) if ratios else 1.0
        total = math.fsum(self.requests)
        effective = self.effective_shards()
        if 0 < effective < LEAST_SHARDS:
            factor = max(factor, total / effective)
        return max(factor, 1.0)

    def effective_shards(self) -> float:
        """(sum U)^2 / sum U^2 of the canary's requests: how many shards of equal size weigh as much."""
        squares = math.fsum(u * u for u in self.requests)
        return math.fsum(self.requests) ** 2 / squares if squares > 0 else 0.0

    # ------------------------------------------------------------ what it learns

    def observe(self, strata: Sequence[Counts], variance: float, kurtosis: float) -> Dispersion:
        """After one interval. `variance` and `kurtosis` of one request on stable, as known so far."""
        n, total = sum(c.stable.n for c in strata), sum(c.stable.total for c in strata)
        excess, scale, error, last_n, last_mean = self.excess, self.scale, self.error, self.last_n, self.last_mean
        if n > 0:
            if last_n > 0 and variance > 0:
                widths = 1 / n + 1 / last_n
                alone = variance * widths
                change = total / n - last_mean
                excess += change * change - alone
                scale += 2 * variance
                # differences that share an interval are correlated by 1/2: half again as much as alone
                error += alone * alone * (3 + 0.375 * kurtosis * widths)
            last_n, last_mean = n, total / n
        canary, stable, requests = self.canary, self.stable, self.requests
        canary_free, stable_free = self.canary_free, self.stable_free
        for counts in strata:
            c, s = counts.canary.shards, counts.stable.shards
            if len(c) == len(s) == SHARDS:
                canary, freed = _residuals(canary, c)
                canary_free += freed
                stable, freed = _residuals(stable, s)
                stable_free += freed
                requests = _single([u + shard[0] for u, shard in zip(requests or _ZEROS, c, strict=True)])
        return Dispersion(excess, scale, error, last_n, last_mean, canary_free, stable_free, canary, stable, requests)

    def interrupted(self) -> Dispersion:
        """After an interval that teaches nothing of the usual: an outage is no fluctuation, and neither is its end."""
        return replace(self, last_n=0.0)

    # ------------------------------------------------------------ checkpoints

    def numbers(self) -> Iterator[float]:
        yield from (self.excess, self.scale, self.error, self.last_n, self.last_mean)
        yield from (self.canary_free, self.stable_free)

    def singles(self) -> Iterator[float]:
        yield from (*self.canary, *self.stable, *self.requests)

    @classmethod
    def take(cls, numbers: Iterator[float], singles: Iterator[float]) -> Dispersion:
        """The inverse of both; ValueError if they are no such sums."""
        values = [next(numbers) for _ in range(7)]
        canary, stable, requests = (tuple(islice(singles, SHARDS)) for _ in range(3))
        if not all(map(math.isfinite, (*values, *canary, *stable, *requests))) or min(values[1:], default=0) < 0:
            raise ValueError("these are not the sums of a dispersion")
        if len({len(canary), len(stable), len(requests)}) != 1:
            raise ValueError("shards are missing")
        excess, scale, error, last_n, last_mean, canary_free, stable_free = values
        return cls(excess, scale, error, last_n, last_mean, canary_free, stable_free, canary, stable, requests)


DOUBLES = 7
_ZEROS = (0.0,) * SHARDS


def shard_squares(arm: Arm) -> float:
    """Sum of squares of single values that the arm's shards stand for, where nobody exports it.

    total^2/n plus the shards' squared residuals, divided by the share of them that is free: the linearised variance of
    a ratio (Deng, Knoblich, Lu: KDD 2018), with shards as its units. 0 without shards.
    """
    n = math.fsum(shard[0] for shard in arm.shards)
    if n <= 0 or arm.n <= 0:
        return 0.0
    mean = math.fsum(shard[1] for shard in arm.shards) / n
    free = 1 - math.fsum(shard[0] ** 2 for shard in arm.shards) / n**2
    squares = math.fsum((shard[1] - mean * shard[0]) ** 2 for shard in arm.shards)
    return arm.total**2 / arm.n + (squares / free * (arm.n / n) if free > 0 else 0.0)


def _residuals(before: tuple[float, ...], shards: Sequence[Shard]) -> tuple[tuple[float, ...], float]:
    """Residuals with this interval's added, and the requests that are free in it: n (1 - sum (n_g/n)^2)."""
    n = total = squares = 0.0
    for requests, bad in shards:
        n += requests
        total += bad
        squares += requests * requests
    if n <= 0:
        return before or _ZEROS, 0.0
    mean = total / n
    added = [z + bad - mean * requests for z, (requests, bad) in zip(before or _ZEROS, shards, strict=True)]
    return _single(added), n - squares / n


def _single(values: list[float]) -> tuple[float, ...]:
    """As a checkpoint keeps them, so that a restart changes no bit."""
    return tuple(array("f", values))
