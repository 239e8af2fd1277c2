"""The difference between two arms, stratified by interval, and what normal mixtures say of it at any time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from promptrollout.engine.statistics.common_cause import MOST_PER_INTERVAL

TUNED_FOR_SAMPLES = 500
"""Canary samples at which the mixtures are sharpest. Fixed in advance; any value is valid."""
_TAIL = 2 * math.log(1 / (2 * 0.05))
TUNING = TUNED_FOR_SAMPLES / (_TAIL + math.log1p(_TAIL))
"""Howard et al.'s rho for a variance of 1 and level 0.05 (confseq, `best_rho`)."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sums over intervals k with weight w = n_c n_s / (n_c + n_s), so that both arms are compared within the interval.

    Drift that both arms share cancels, whatever the weights were at the time (no Simpson's paradox).
    """

    weight: float = 0.0
    """Sum of w."""
    canary: float = 0.0
    """Sum of w times the canary's mean."""
    stable: float = 0.0
    canary_spread: float = 0.0
    """Sum of w^2 v / n: the variance of `canary` (v = 1 where the caller multiplies by the variance later)."""
    stable_spread: float = 0.0

    def add(
        self, n_c: float, total_c: float, n_s: float, total_s: float, v_c: float = 1.0, v_s: float = 1.0
    ) -> "Contrast":
        """After an interval with both counts above 0; totals are sums over requests, v variances of one request."""
        w = n_c / (n_c + n_s) * n_s
        return Contrast(
            self.weight + w,
            self.canary + w * (total_c / n_c),
            self.stable + w * (total_s / n_s),
            self.canary_spread + w * (w / n_c) * v_c,
            self.stable_spread + w * (w / n_s) * v_s,
        )

    def plus(self, other: "Contrast", factor: float) -> "Contrast":
        """With another's sums, whose variances are `factor` times as large as they say."""
        return Contrast(
            self.weight + other.weight,
            self.canary + other.canary,
            self.stable + other.stable,
            self.canary_spread + factor * other.canary_spread,
            self.stable_spread + factor * other.stable_spread,
        )

    def numbers(self) -> Iterator[float]:
        yield from (self.weight, self.canary, self.stable, self.canary_spread, self.stable_spread)

    @classmethod
    def read(cls, numbers: Iterator[float]) -> "Contrast":
        """The inverse of `numbers`; ValueError if they are not the sums of a contrast."""
        values = [next(numbers) for _ in range(5)]
        if any(not (math.isfinite(x) and x >= 0) for x in values):
            raise ValueError("these are not the sums of a contrast")
        return cls(*values)


EFFECTS = (0.03, 0.06, 0.12)
"""Alternatives of the breach test: rise over the bound, in standard deviations of one sample.

With 0.12 a large rise crosses well before the gate, so larger alternatives would buy nothing, and they would let single
expensive requests decide."""


def log_bets(
    scale: float, total: float, variance: float, factor: float = 1.0, most: float = MOST_PER_INTERVAL
) -> Iterator[float]:
    """ln e-value of one interval per effect d: (lambda S - lambda^2 V / 2) / factor with lambda = d / scale.

    `total` is the interval's sum of excess over the bound, `variance` its variance as earlier intervals know it, if
    samples are independent, `factor` how many times as large it is. Capped at `most`, versus stable too: it
    keeps a heavy tail's single requests from deciding. With a coefficient of variation of 2.9, no rise and level 5 %,
    false breaches were 0 of 200 instead of 20; a late doubling takes seven intervals instead of three.
    """
    for effect in EFFECTS:
        bet = effect / scale
        yield min((bet * total - bet * bet * variance / 2) / factor, most)


def log_one_sided(total: float, variance: float, rho: float) -> float:
    """ln of the one-sided normal mixture: evidence that the sum `total`, of this variance, has a mean above 0.

    1/2 ln(4 rho/(V+rho)) + S^2/(2(V+rho)) + ln Phi(S/sqrt(V+rho)): Howard, Ramdas, McAuliffe, Sekhon (arXiv
    1810.08240), as confseq's `OneSidedNormalMixture`; with estimated variances valid asymptotically (arXiv 2103.06476).
    """
    z = total / math.sqrt(variance + rho)
    return math.log(2) - math.log1p(variance / rho) / 2 + z * z / 2 + _log_normal_cdf(z)


def half_width(variance: float, rho: float, level: float) -> float:
    """Of the two-sided confidence sequence for the mean of a sum of this variance (arXiv 2103.06476, theorem 2.2)."""
    return math.sqrt((variance + rho) * (math.log1p(variance / rho) - 2 * math.log(level)))


def _log_normal_cdf(z: float) -> float:
    if z > -30:
        return math.log(0.5 * math.erfc(-z / math.sqrt(2)))
    # erfc underflows from -38 on; Mills' ratio to second order is exact to 1e-6 here
    return -z * z / 2 - math.log(-z * math.sqrt(2 * math.pi)) + math.log1p(-1 / (z * z))
