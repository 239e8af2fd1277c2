"""Evidence as logarithms: sums of exponentials, and mixtures over the moment at which a regression began."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NEVER = -math.inf
"""Logarithm of no mass at all."""
LEAST = -1e15
"""Log evidence is cut off here: e to this power is 0, and sums in a checkpoint stay bounded."""


def log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))


def log_mix(logs: Sequence[float], weights: Sequence[float]) -> float:
    """ln of the weighted mean of e^x; the weights sum to 1."""
    high = max(logs)
    if high == NEVER:
        return NEVER
    return high + math.log(math.fsum(w * math.exp(x - high) for x, w in zip(logs, weights, strict=True)))


def shrunk(log_evidence: float, factor: float) -> float:
    """ln evidence where the variance is `factor` >= 1 times as large: all bets were that much too large. Evidence
    against an alternative stays as it is."""
    return log_evidence / factor if log_evidence > 0 else log_evidence


def log_threshold(level: float) -> float:
    """ln(1/level): evidence above it has chance `level` at most if the null is true (Ville's inequality)."""
    if not 0 < level < 1:
        raise ValueError(f"an error level lies between 0 and 1, not at {level!r}: set for example 0.05")
    return -math.log(level)


FIRST = 0.8
"""Share of a bet that is placed at the first interval; the rest is held back for regressions that begin later."""
EARLY = (1, 2, 4)
"""Intervals after which the first of the later ones begin."""
EVERY = 8
"""Intervals from one of the others to the next."""


@dataclass(frozen=True, slots=True)
class StartMixture:
    """E-process against a set of alternatives, mixed over the interval in which the regression began.

    Evidence summed from a rollout's first request blinds: every good request must first be outweighed. So a share of
    the bet is held back for later starts: the b-th one after EARLY intervals, then at multiples of EVERY. Per
    alternative, M_t = e_t (M_{t-1} + w_{t-1}) with w_0 = FIRST, (1 - FIRST)(1/sqrt(b) - 1/sqrt(b+1)) at the b-th start
    and 0 between. What begins after 300 intervals pays 7.9 nats for that; a start at each interval, by 1/(t (t+1)),
    would cost 13. The mass that has not started after b starts is (1 - FIRST)/sqrt(b+1). A convex mixture of
    e-processes is one, so looking at any time stays valid, and the state stays constant.
    """

    intervals: int
    logs: tuple[float, ...]
    """ln M_t, one per alternative."""

    @classmethod
    def start(cls, alternatives: int) -> "StartMixture":
        return cls(0, (NEVER,) * alternatives)

    def observe(self, increments: Iterable[float]) -> "StartMixture":
        """After one interval; `increments` are ln e_t per alternative."""
        t = self.intervals
        b = _starts(t)
        starts = b > _starts(t - 1)
        starting = math.log(FIRST if t == 0 else (1 - FIRST) * (b**-0.5 - (b + 1) ** -0.5)) if starts else NEVER
        logs = [max(LEAST, x + log_add(m, starting)) for m, x in zip(self.logs, increments, strict=True)]
        return StartMixture(t + 1, tuple(logs))

    def log_evidence(self, weights: Sequence[float]) -> float:
        """ln E_t, the mean over the alternatives by their weights plus the mass not yet started."""
        if not self.intervals:
            return 0.0
        return log_add(log_mix(self.logs, weights), math.log((1 - FIRST) / math.sqrt(_starts(self.intervals - 1) + 1)))

    def numbers(self) -> Iterator[float]:
        yield float(self.intervals)
        yield from self.logs

    @classmethod
    def read(cls, numbers: Iterator[float], alternatives: int) -> "StartMixture":
        """The inverse of `numbers`; ValueError if they are not the state of a mixture."""
        intervals = next(numbers)
        logs = tuple(next(numbers) for _ in range(alternatives))
        if not (intervals >= 0 and intervals.is_integer()) or any(math.isnan(x) or x == math.inf for x in logs):
            raise ValueError("these are not the sums of a mixture over start times")
        return cls(int(intervals), logs)


def _starts(t: int) -> int:
    """How many later starts there were up to interval t; -1 before the first interval."""
    return -1 if t < 0 else t // EVERY + sum(t >= early for early in EARLY)


def log_needed(level: float, weight: float) -> float:
    """ln evidence with which one alternative of a mixture, of this weight and begun at once, crosses 1/level alone."""
    return log_threshold(level) - math.log(weight * FIRST)
