"""Rules to compare with: thresholds as Argo Rollouts and Flagger apply them, and tests of the pooled counts."""

import contextlib
import math
from statistics import NormalDist

import numpy as np

from benchmarks.decisions.case import ALPHA, Case, Ramp
from benchmarks.decisions.kayenta import Kayenta
from benchmarks.decisions.replay import Arm, History, Rule, Signal, Verdict
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.definitions import bounds_of
from promptrollout.engine.statistics.bernoulli import two_arm_bet
from promptrollout.engine.statistics.evidence import Counts


class ArgoRollouts:
    """The documentation's example: `successCondition: result >= 0.95` on irate[5m] of the canary every five minutes,
    failureLimit 3, in the background of the steps.

    With a success condition alone whatever is no success has failed, NaN too; more than failureLimit failures abort,
    consecutive or not. Errors are retried after ten seconds, and the fifth in a row aborts.
    """

    ramp: Ramp | None = None
    every_seconds = 300
    failure_limit = 3

    def __init__(self, at_least: float = 0.95) -> None:
        self.name = f"Argo >= {at_least:g}"
        self.at_least = at_least
        self.failures = 0

    def decide(self, history: History) -> Verdict:
        width = history.case.scenario.interval_seconds
        if history.looks * width % self.every_seconds >= width:
            return "advance"
        if not history.available:
            return "rollback"  # four more tries in the next 40 seconds find no answer either
        canary = history.signals["ErrorRate"].canary
        n, bad = canary.n[-1], canary.total[-1]
        succeeded = n > 0 and 1 - bad / n >= self.at_least  # NaN compares as False
        self.failures += not succeeded
        return "rollback" if self.failures > self.failure_limit else "advance"


class Flagger:
    """Every minute the canary's success rate of the last minute: a pass raises the weight by 10 up to 50 and then
    promotes; a failure, no data or a query error counts, and `threshold` of them roll back at the next tick.

    Passes do not take failures back. The threshold on success is the user's to choose.
    """

    ramp: Ramp | None = ((10, 60), (20, 60), (30, 60), (40, 60), (50, 60))
    threshold = 5

    def __init__(self, at_least: float = 0.97) -> None:
        self.name = f"Flagger >= {at_least:g}"
        self.at_least = at_least
        self.failures = 0

    def decide(self, history: History) -> Verdict:
        if self.failures >= self.threshold:
            return "rollback"
        canary = history.signals["ErrorRate"].canary
        n, bad = canary.n[-1], canary.total[-1]
        if history.available and n > 0 and 1 - bad / n >= self.at_least:
            return "advance"
        self.failures += 1
        return "hold"


class NaiveZ:
    """A one-sided z-test of the pooled counts, p < .05, at each look."""

    name = "naive z"
    ramp: Ramp | None = None
    quantile = NormalDist().inv_cdf(1 - ALPHA)

    def decide(self, history: History) -> Verdict:
        for signal in history.signals.values():
            estimate = difference(signal, pooled=True)
            if estimate is not None and estimate[0] > self.quantile * estimate[1]:
                return "rollback"
        return "advance"


class GrowthBook:
    """The formula of Safe Rollouts: a one-sided asymptotic confidence sequence of the pooled counts, tuned for 5,000.

    Waudby-Smith et al., arXiv 2103.06476v7, equation 134. (GrowthBook keeps its monitored steps at equal shares.)
    """

    name = "GrowthBook"
    ramp: Ramp | None = None
    tuning = 5_000

    def decide(self, history: History) -> Verdict:
        for signal in history.signals.values():
            estimate = difference(signal, pooled=False)
            if estimate is None:
                continue
            n = signal.canary.sums[0] + signal.stable.sums[0]
            if estimate[0] > estimate[1] * math.sqrt(n) * self.width(n):
                return "rollback"
        return "advance"

    def width(self, n: float) -> float:
        """Of the confidence sequence after `n` observations of standard deviation 1."""
        logs = -2 * math.log(2 * ALPHA)
        rho2 = (logs + math.log(logs + 1)) / self.tuning
        spread = n * rho2 + 1
        return math.sqrt(2 * spread / (n * n * rho2) * math.log(1 + math.sqrt(spread) / (2 * ALPHA)))


def difference(signal: Signal, *, pooled: bool) -> tuple[float, float] | None:
    """Canary's mean minus stable's and its standard error, all intervals pooled; None while there is no spread.

    `pooled`: under the hypothesis that both rates are the same.
    """
    (n_c, sum_c, _), (n_s, sum_s, _) = signal.canary.sums, signal.stable.sums
    if n_c == 0 or n_s == 0:
        return None
    if signal.is_rate:
        means = [(sum_c + sum_s) / (n_c + n_s)] * 2 if pooled else [sum_c / n_c, sum_s / n_s]
        v_c, v_s = (mean * (1 - mean) for mean in means)
    else:
        v_c, v_s = (variance(arm) for arm in (signal.canary, signal.stable))
    error = math.sqrt(v_c / n_c + v_s / n_s)
    return (sum_c / n_c - sum_s / n_s, error) if error > 0 else None


def variance(arm: Arm) -> float:
    n, total, squares = arm.sums
    return max(0.0, squares - total * total / n) / (n - 1) if n > 1 else 0.0


class OracleSPRT:
    """Wald's test for somebody who knows both rates: nobody can roll back at this level with fewer requests."""

    name = "oracle"
    ramp: Ramp | None = None

    def __init__(self, case: Case) -> None:
        self.good, self.bad = rates(case)

    def decide(self, history: History) -> Verdict:
        n, bad, _ = history.signals[history.case.judged].canary.sums
        of_good = math.log((1 - self.bad) / (1 - self.good)) if self.bad < 1 else -math.inf
        log_ratio = bad * math.log(self.bad / self.good) + ((n - bad) * of_good if n > bad else 0.0)
        return "rollback" if log_ratio >= math.log(1 / ALPHA) else "advance"


class TwoArmOracle:
    """The test of our null (worse than stable by rollbackAbovePercent) for somebody who knows both rates."""

    name = "two-arm oracle"
    ramp: Ramp | None = None

    def __init__(self, case: Case) -> None:
        self.good, self.bad = rates(case)
        objective = Objective.model_validate(case.objectives[0])
        self.theta0 = 1 + (bounds_of(objective).rollback or 0) / 100
        self.log_ratio = 0.0

    def decide(self, history: History) -> Verdict:
        signal = history.signals[history.case.judged]
        counts = Counts.of(signal.canary.n[-1], signal.canary.total[-1], signal.stable.n[-1], signal.stable.total[-1])
        if counts.canary.n > 0:
            multiple = self.bad / self.good / self.theta0
            bet = two_arm_bet(self.theta0, multiple, self.good, counts.canary.n, counts.stable.n)
            self.log_ratio += bet.log_value(counts)
        return "rollback" if self.log_ratio >= math.log(1 / ALPHA) else "advance"


def rates(case: Case) -> tuple[float, float]:
    """Stable's and canary's true rate. ValueError if the case has no two constant rates."""
    scenario = case.scenario
    known = {
        "ErrorRate": (scenario.errors.rate, scenario.errors.canary_multiple, scenario.errors.onset),
        "Latency": (scenario.latency.slow_share, scenario.latency.canary_multiple, scenario.latency.onset)
        if scenario.latency
        else None,
    }.get(case.judged)
    if known is None or known[1] <= 1 or known[2] > 0 or scenario.users is not None or scenario.errors.shocks > 0:
        raise ValueError(f"{case.name}: no two constant rates that an oracle could know")
    return known[0], known[0] * known[1]


def floor(case: Case) -> float | None:
    """Mean canary requests that any rule of level ALPHA needs at least: ln(1/ALPHA) / KL; None where rates vary.

    Robbins, Siegmund: power one. With sums of squares for means: 2 sigma^2 ln(1/ALPHA) / delta^2.
    """
    scenario = case.scenario
    if case.judged == "JudgeScore" and (judge := scenario.judge) is not None and judge.canary_difference < 0:
        scores = 2 * (judge.standard_deviation / judge.canary_difference) ** 2 * math.log(1 / ALPHA)
        return scores / judge.sampled_share
    if case.judged == "CostPerRequest" and (cost := scenario.cost) is not None and cost.canary_multiple > 1:
        spread = cost.coefficient_of_variation * cost.canary_multiple / (cost.canary_multiple - 1)
        return 2 * spread**2 * math.log(1 / ALPHA)
    try:
        good, bad = rates(case)
    except ValueError:
        return None
    divergence = bad * math.log(bad / good)
    divergence += (1 - bad) * math.log((1 - bad) / (1 - good)) if bad < 1 else 0.0
    return math.log(1 / ALPHA) / divergence


def classical(case: Case, rng: np.random.Generator) -> list[Rule]:
    """A fresh instance of each rule that can judge the case at all. This is where a visitor's rule goes."""
    rules: list[Rule] = [NaiveZ(), GrowthBook(), Kayenta(rng)]
    if "ErrorRate" in case.signals:
        rules += [ArgoRollouts(0.95), ArgoRollouts(0.97), Flagger(0.97)]
    with contextlib.suppress(ValueError):
        rules.append(OracleSPRT(case))
        if case.times_two_arm_oracle is not None:
            rules.append(TwoArmOracle(case))
    return rules
