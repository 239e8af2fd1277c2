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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple

from promptrollout.api import names
from promptrollout.engine.statistics.evidence import Arm, Counts, Shard
from promptrollout.engine.statistics.incident import Seen, incident

SHARDS = names.SHARDS
"""Groups of users, by a hash that the bucket does not depend on. Enough that an estimate of their variance is off by
18 % (both arms: 62 degrees of freedom), and few enough to be exported while a rollout progresses."""
LEAST_SHARDS = 10
"""With fewer effective shards their variance cannot be estimated. Each shard counts for at most a tenth."""
LENGTHS = (1, 4, 16, 16)
"""Intervals of the blocks whose means are compared: what disturbs an arm may last longer than one. The last two are
read together: one begins in the middle of the other's blocks, which shows more of long ones."""
BASELINE = 60
"""Intervals of stable alone that are kept to be judged as a whole, without their incident."""
SURPRISE = 25.0
"""A squared change of the baseline counts at most this many times what was expected."""
SURPRISE_LATER = 8.0
"""The same once the canary has users: one incident of stable alone must not blind the test."""
PRIOR = 10
"""Quiet changes that are presumed, for what is expected of the next one."""
QUIET = 10
"""Quiet intervals that are presumed, for the correlation: of long blocks few are ever seen, and as many quiet ones as
of short blocks would hide shocks of minutes."""
LASTING = 1.5
"""How much of what the longest blocks show beyond shorter ones is added again. A shock that lasts nearly as long as a
block is in both neighbours, so they differ by less: of shocks of ten intervals 69 % are seen, of five 85 %."""
DEVIATION, LONG_DEVIATIONS = 1.0, 2.0
"""Standard errors by which a correlation must stand out; the longest blocks' is used enlarged."""
HALF_SHARED = 1.4
"""Variance of two series of blocks together over the sum of theirs: each block shares its halves with two others."""
SHARED = 16.0
"""A change of so many times what was expected, or more, is no unrest of stable's if the canary's is between half of
it and twice as much: what hits both arms is not between them."""
SKEWED = 3.0
"""Shocks in two arms add twice their share to the variance of the difference; half again as much because they are
skewed: with 2, arm-by-minute shocks of correlation .05 and .01 raised 7.2 and 5.8 % false alarms, with 3 2.2 % both."""

Moments = tuple[float, float]
"""Requests, and the sum of their values."""

_SHARD_ERROR = math.sqrt(2 / (2 * (SHARDS - 1))) / 2


class Blocks(NamedTuple):
    """Changes of stable's mean between neighbouring blocks of this many intervals, and the canary's changes then."""

    intervals: float = 0.0
    """Of the present block, so far."""
    n: float = 0.0
    total: float = 0.0
    canary_n: float = 0.0
    canary_total: float = 0.0
    last_n: float = 0.0
    """Of the block before; 0 if there is none to compare with."""
    last_mean: float = 0.0
    last_canary_n: float = 0.0
    last_canary_mean: float = 0.0
    changes: float = 0.0
    """How many were seen."""
    excess: float = 0.0
    """Sum of their squares over the variance of one request, less what independent requests would show."""
    error: float = 0.0
    """Variance of `excess` if requests are independent."""

    def observe(self, length: int, canary: Moments, stable: Moments, variance: float, kurtosis: float) -> Blocks:
        """After an interval with requests on stable."""
        n, total = self.n + stable[0], self.total + stable[1]
        canary_n, canary_total = self.canary_n + canary[0], self.canary_total + canary[1]
        if self.intervals + 1 < length:
            return Blocks(self.intervals + 1, n, total, canary_n, canary_total, *self[5:])
        mean, canary_mean = total / n, canary_total / canary_n if canary_n > 0 else 0.0
        changes, excess, error = self.changes, self.excess, self.error
        if self.last_n > 0 and variance > 0:
            alone = 1 / n + 1 / self.last_n
            expected = alone + max(excess, 0.0) / (changes + PRIOR)
            change = mean - self.last_mean
            square = change * change / variance
            if square > SHARED * expected and canary_n > 0 and self.last_canary_n > 0:
                shared = 0.5 <= (canary_mean - self.last_canary_mean) / change <= 2
                square = expected if shared else square
            changes += 1
            excess += min(square, (SURPRISE_LATER if canary_n > 0 else SURPRISE) * expected) - alone
            # changes that share a block are correlated by 1/2: half again as much as alone
            error += alone * alone * (3 + 0.375 * kurtosis * alone)
        return Blocks(0.0, 0.0, 0.0, 0.0, 0.0, n, mean, canary_n, canary_mean, changes, excess, error)

    def restarted(self, at: float) -> Blocks:
        """With what was learned, and nothing to compare the next block with."""
        return Blocks(intervals=at, changes=self.changes, excess=self.excess, error=self.error)


_STARTS = (0.0, 0.0, 0.0, LENGTHS[-1] / 2)
"""Intervals that count as seen of each first block."""
_FRESH = tuple(Blocks(intervals=start) for start in _STARTS)


def correlation(series: Sequence[Blocks], length: int, deviations: float) -> float:
    """Of an arm's requests within blocks of this length, as far as it stands out by more than its error:
    E d^2 / v = 1/n + 1/n' + 2 rho. At most 1, when all requests of a block have one outcome."""
    error = math.fsum(each.error for each in series) * (HALF_SHARED if len(series) > 1 else 1.0)
    surplus = math.fsum(each.excess for each in series) - deviations * math.sqrt(error)
    changes = math.fsum(each.changes for each in series) + len(series) * QUIET / length
    return min(1.0, surplus / (2 * changes)) if surplus > 0 else 0.0


def _observed(
    blocks: Sequence[Blocks], canary: Moments, stable: Moments, variance: float, kurtosis: float
) -> tuple[Blocks, ...]:
    pairs = zip(LENGTHS, blocks, strict=True)
    learnt = [each.observe(length, canary, stable, variance, kurtosis) for length, each in pairs]
    return tuple([Blocks(*_single(each)) for each in learnt])


def _restarted(blocks: Sequence[Blocks]) -> tuple[Blocks, ...]:
    return tuple(each.restarted(start) for each, start in zip(blocks, _STARTS, strict=True))


def _learned(baseline: Sequence[Seen]) -> tuple[Blocks, ...]:
    """From a baseline without its incident."""
    left_out = incident(baseline) or range(0)
    blocks = _FRESH
    for k, seen in enumerate(baseline):
        if k not in left_out:
            blocks = _observed(blocks, (0.0, 0.0), (seen.n, seen.total), seen.variance, seen.kurtosis)
    return _restarted(blocks) if left_out.stop == len(baseline) else blocks


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Sums of fixed size, in single precision as in a checkpoint.

    Intervals are judged by stable alone: what the canary does cannot make its own bets smaller.
    """

    blocks: tuple[Blocks, ...] = _FRESH
    waiting: tuple[Seen, ...] = ()
    """The baseline, until the canary has users or it is long enough: an incident that was over before the first user
    says nothing about the time after it."""
    canary_free: float = 0.0
    """Requests whose variance the canary's residuals hold if they are independent."""
    stable_free: float = 0.0
    canary: tuple[float, ...] = ()
    """By shard, residuals against the arm's own mean in each interval; like the next two empty until shards are
    known."""
    stable: tuple[float, ...] = ()
    requests: tuple[float, ...] = ()
    """The canary's, by shard."""

    # ------------------------------------------------------------ what it says

    def between_intervals(self) -> float:
        """Correlation of an arm's requests within an interval, as what lasts for several of them adds to sums over
        time: a block of b intervals with correlation rho counts like single ones with b rho.

        Successive differences (von Neumann), so that slow drift does not count.
        """
        single, four, *long = _learned(self.waiting) if self.waiting else self.blocks
        short = max(correlation((single,), 1, DEVIATION), 4 * correlation((four,), 4, DEVIATION))
        lasting = 16 * correlation(long, 16, LONG_DEVIATIONS)
        return lasting + LASTING * (lasting - short) if lasting > short else short

    def between_users(self, canary_variance: float, stable_variance: float) -> float:
        """Variance of the arms' totals over that of independent requests, at least 1.

        Users' habits add the same share to both arms, so both estimates are averaged, less half a standard error.
        """
        if not self.requests:
            return 1.0
        free = (self.canary_free * canary_variance, self.stable_free * stable_variance)
        squares = (math.fsum([z * z for z in arm]) for arm in (self.canary, self.stable))
        ratios = [found / expected for found, expected in zip(squares, free, strict=True) if expected > 0]
        factor = sum(ratios) / len(ratios) / (1 + _SHARD_ERROR * math.sqrt(2 / len(ratios))) if ratios else 1.0
        if 0 < self.effective_shards() < LEAST_SHARDS:
            tenth = sorted(self.requests)[-LEAST_SHARDS]
            counted = math.fsum(max(min(u, tenth), 1.0) for u in self.requests if u > 0)
            factor = max(factor, math.fsum(self.requests) / counted)
        return max(factor, 1.0)

    def effective_shards(self) -> float:
        """(sum U)^2 / sum U^2 of the canary's requests: how many shards of equal size weigh as much."""
        squares = math.fsum([u * u for u in self.requests])
        return math.fsum(self.requests) ** 2 / squares if squares > 0 else 0.0

    # ------------------------------------------------------------ what it learns

    def observe(self, strata: Sequence[Counts], variance: float, kurtosis: float) -> Dispersion:
        """After one interval. `variance` and `kurtosis` of one request on stable, as known so far."""
        of_canary, of_stable = both_moments(strata)
        blocks = self.blocks
        waiting = self.waiting
        if of_canary[0] > 0 and waiting:
            blocks, waiting = _learned(waiting), ()
        if of_stable[0] > 0 and of_canary[0] <= 0 and blocks == _FRESH:
            waiting = (*waiting, Seen(*_single((*of_stable, variance, kurtosis))))
            if len(waiting) == BASELINE:
                blocks, waiting = _learned(waiting), ()
        elif of_stable[0] > 0:
            blocks = _observed(blocks, of_canary, of_stable, variance, kurtosis)
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
        canary_free, stable_free = _single((canary_free, stable_free))
        return Dispersion(blocks, waiting, canary_free, stable_free, canary, stable, requests)

    def interrupted(self) -> Dispersion:
        """After an interval that is not typical: neither an outage nor its end counts as fluctuation."""
        return replace(self, blocks=_restarted(self.blocks))

    # ------------------------------------------------------------ checkpoints

    def singles(self) -> Iterator[float]:
        yield float(len(self.waiting))
        yield from chain.from_iterable(self.waiting)
        for length, each in zip(LENGTHS, self.blocks, strict=True):
            yield from each[_kept_from(length) :]
        yield from (self.canary_free, self.stable_free, *self.canary, *self.stable, *self.requests)

    @classmethod
    def read(cls, singles: Iterator[float]) -> Dispersion:
        """The inverse of `singles`; ValueError if they are not the sums of a dispersion."""
        count, *left = singles
        size = count * len(Seen._fields)
        if not (count.is_integer() and 0 <= count < BASELINE and len(left) + 1 - size in _SINGLES):
            raise ValueError("damaged checkpoint (these are not the sums of a dispersion): its evidence restarts")
        singles = iter(left)
        waiting = tuple(Seen(*islice(singles, len(Seen._fields))) for _ in range(int(count)))
        fields = [Blocks._fields[_kept_from(length) :] for length in LENGTHS]
        blocks = tuple(Blocks(**dict(zip(names, islice(singles, len(names)), strict=False))) for names in fields)
        canary_free, stable_free = next(singles), next(singles)
        canary, stable, requests = (tuple(islice(singles, SHARDS)) for _ in range(3))
        flat = [x for each in (*blocks, *waiting) for x in each]
        never_negative = [x for each in blocks for x in each._replace(excess=0.0)]
        if not all(map(math.isfinite, (*flat, canary_free, stable_free, *canary, *stable, *requests))) or (
            min(*never_negative, *(seen.n for seen in waiting), canary_free, stable_free, *requests, 0.0) < 0
        ):
            raise ValueError("damaged checkpoint (these are not the sums of a dispersion): its evidence restarts")
        return cls(blocks, waiting, canary_free, stable_free, canary, stable, requests)


def _kept_from(length: int) -> int:
    """Index of the first field that a checkpoint keeps: a block of one interval is never half done."""
    return 0 if length > 1 else Blocks._fields.index("last_n")


_LEAST = 1 + sum(len(Blocks._fields) - _kept_from(length) for length in LENGTHS) + 2
_SINGLES = (_LEAST, _LEAST + 3 * SHARDS)
SINGLES = tuple(most + waiting * len(Seen._fields) for waiting in range(BASELINE) for most in _SINGLES)
"""How many a checkpoint may hold: by how much of the baseline waits, without shards and with them."""
_ZEROS = (0.0,) * SHARDS


def shard_squares(arm: Arm) -> float:
    """Sum of squares of single values, estimated from the arm's shards, where it is not exported.

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


def both_moments(strata: Sequence[Counts]) -> tuple[Moments, Moments]:
    """Of canary and stable, over all strata."""
    if len(strata) == 1:  # of nearly all signals: a quarter of the time that sums take
        canary, stable = strata[0].canary, strata[0].stable
        return (canary.n, canary.total), (stable.n, stable.total)
    of_canary = sum(c.canary.n for c in strata), sum(c.canary.total for c in strata)
    return of_canary, (sum(c.stable.n for c in strata), sum(c.stable.total for c in strata))


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


def _single(values: Iterable[float]) -> tuple[float, ...]:
    """As a checkpoint keeps them, so that a restart changes no bit."""
    return tuple(array("f", values))
