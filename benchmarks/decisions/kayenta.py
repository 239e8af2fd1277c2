"""Kayenta's judge (NetflixACAJudge): Mann-Whitney on the points of a time series, a dead band, a score.

Ported from what its source does; the confidence of 98 % and the tolerance of 0.25 are fixed there too.
"""

from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.decisions.case import Ramp
from benchmarks.decisions.replay import History, Signal, Verdict

Floats = NDArray[np.float64]
Class = Literal["Pass", "High", "Low", "Nodata"]

CONFIDENCE = 0.98
TOLERANCE = 0.25
"""Half of the dead band, as a share of the Hodges-Lehmann estimate."""
STOP_BELOW, PASS_FROM = 75.0, 95.0


class Kayenta:
    """Three hours at 10 %, judged after each hour on everything so far, against a baseline as large as the canary.

    Points are a minute long. A score below 75 stops; 95 in the last hour passes.
    """

    name = "Kayenta"
    lifetime_seconds, every_seconds = 10_800, 3_600
    ramp: Ramp | None = ((10, lifetime_seconds),)

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def decide(self, history: History) -> Verdict:
        width = history.case.scenario.interval_seconds
        passed = history.looks * width
        if passed % self.every_seconds >= width:
            return "hold"
        classes = [classify(*self.points(signal)) for signal in history.signals.values()]
        found = score(classes)
        if passed < self.lifetime_seconds:
            return "rollback" if found < STOP_BELOW else "hold"
        return "advance" if found >= PASS_FROM else "rollback"

    def points(self, signal: Signal) -> tuple[Floats, Floats]:
        """Means by minute of a baseline of the canary's size, and of the canary."""
        canary, stable = signal.canary, signal.stable
        experiment = np.divide(canary.total, canary.n, out=np.full(len(canary.n), np.nan), where=canary.n > 0)
        if not signal.is_rate:
            control = np.divide(stable.total, stable.n, out=np.full(len(stable.n), np.nan), where=stable.n > 0)
            return control, experiment
        n = np.nan_to_num(np.minimum(canary.n, stable.n)).astype(int)
        bad = np.nan_to_num(stable.total).astype(int)
        drawn = self.rng.hypergeometric(bad, np.nan_to_num(stable.n).astype(int) - bad, n)
        return np.divide(drawn, n, out=np.full(len(n), np.nan), where=n > 0), experiment


def score(classes: list[Class]) -> float:
    """Of one group, every metric critical: 0 if any is not a pass; half of them without data is 0 too."""
    return 100.0 if all(each == "Pass" for each in classes) else 0.0


def classify(control: Floats, experiment: Floats, *, allowed_increase: float = 1.0) -> Class:
    """Of a metric where an increase is bad. NaN points are dropped."""
    control, experiment = control[~np.isnan(control)], experiment[~np.isnan(experiment)]
    if len(control) == 0 or len(experiment) == 0:
        return "Nodata"
    if np.array_equal(control, experiment) or len(np.unique(np.concatenate((control, experiment)))) == 1:
        return "Pass"
    lower, _, estimate = mann_whitney(experiment, control)
    base = control.mean()
    ratio = experiment.mean() / base if base != 0 else np.nan
    if lower > TOLERANCE * abs(estimate) and (np.isnan(ratio) or ratio >= allowed_increase):
        return "High"
    return "Pass"


def mann_whitney(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Lower and upper confidence bound and Hodges-Lehmann estimate of the shift x - y.

    As R's wilcox.test: the normal approximation with corrections for ties and continuity is inverted.
    """
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)
    least, most = float(x.min() - y.max()), float(x.max() - y.min())

    grain = (most - least) * 1e-9

    def root(quantile: float) -> float:
        """Where the statistic, which falls in steps, crosses; steps are often at 0 exactly, where points tie."""
        low, high = least, most
        if statistic(x - low, y) <= quantile:
            return low
        if statistic(x - high, y) >= quantile:
            return high
        while high - low > grain / 10:
            middle = (low + high) / 2
            at = statistic(x - middle, y)
            if at == quantile:
                return middle
            low, high = (middle, high) if at > quantile else (low, middle)
        return round((low + high) / 2 / grain) * grain

    return root(z), root(-z), root(0)


def statistic(x: Floats, y: Floats) -> float:
    """Standardised rank sum of x, with average ranks for ties."""
    both = np.round(np.concatenate((x, y)), 12)
    _, place, ties = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]
    m, n = len(x), len(y)
    excess = ranks[:m].sum() - m * (m + 1) / 2 - m * n / 2
    spread = m * n / 12 * ((m + n + 1) - (ties.astype(float) ** 3 - ties).sum() / ((m + n) * (m + n - 1)))
    return float((excess - np.sign(excess) * 0.5) / np.sqrt(spread)) if spread > 0 else 0.0
