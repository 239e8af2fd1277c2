"""Assumptions about a rollout's traffic before it is measured: how much, how bad, how spread. Needs numpy."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives import wording
from promptrollout.engine.objectives.signals import Signal, maximum_of, signal_of
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.simulation.recorded import Recorded
from promptrollout.simulation.traffic import Strata


@dataclass(frozen=True, slots=True)
class Baseline:
    """One objective on stable. `value`: a rate's share of bad requests, or a mean in the signal's unit."""

    value: float
    spread: float = 1.0
    """Of a mean: standard deviation of one request over the mean."""
    sampled: float = 1.0
    """Share of requests that give a sample."""


DEFAULTS: Mapping[str, Baseline] = {
    "ErrorRate": Baseline(0.01),
    "ContractFailureRate": Baseline(0.01),
    "Latency": Baseline(0.05),
    "CostPerRequest": Baseline(0.002),
    "NegativeFeedbackRate": Baseline(0.3, sampled=0.05),
    "FeedbackRate": Baseline(0.05),
    "JudgeScore": Baseline(4.0, spread=0.2, sampled=0.2),
    "Score": Baseline(0.8, spread=0.25, sampled=0.05),
    "CostPerAction": Baseline(0.006, sampled=1 / 3),
    "CallsPerAction": Baseline(3.0, spread=0.8, sampled=1 / 3),
    "ErrorsPerAction": Baseline(0.03, spread=5.0, sampled=1 / 3),
    "TokensPerRequest": Baseline(1_000.0),
    "CacheHitRate": Baseline(0.5, spread=0.5),
}
"""Defaults for stable; the output states them."""
AT_ONCE = 100
"""Intervals that are drawn together."""
OTHER_RATE, OTHER_MEAN = Baseline(0.02), Baseline(1.0)


@dataclass(frozen=True, slots=True)
class Assumed:
    requests_per_minute: float
    baselines: Mapping[str, Baseline]
    """By objective."""
    interval_seconds: int

    def per_second(self, objective: Objective) -> float:
        """Samples of one objective, of both arms together."""
        return self.requests_per_minute / 60 * self.baselines[objective.name].sampled

    def samples(self, objective: Objective, seconds: float, weight: int) -> tuple[float, float]:
        """Expected samples on canary and stable within `seconds`. A Custom `value` gives one an interval."""
        if objective.custom is not None and objective.custom.form == "value":
            n = seconds / self.interval_seconds
            return (n if weight > 0 else 0.0), (n if weight < 100 else 0.0)
        n = self.per_second(objective) * seconds
        return n * weight / 100, n * (100 - weight) / 100


def assumed(rules: Snapshot, requests_per_minute: float, known: Mapping[str, Baseline] | None = None) -> Assumed:
    """`known`: baselines by objective or by signal; the rest are defaults, within an objective's `max` or `min`."""
    if not requests_per_minute > 0:
        raise ValueError(f"requests per minute must be above 0, not {requests_per_minute:g}")
    known, objectives = known or {}, rules.objectives
    strangers = set(known) - {o.name for o in objectives} - {o.signal for o in objectives}
    if strangers := strangers - DEFAULTS.keys():
        names = ", ".join(o.name for o in objectives)
        raise ValueError(f"this rollout has no objective {', '.join(sorted(strangers))} (it has {names})")
    baselines = {}
    for objective in objectives:
        given = known.get(objective.name, known.get(objective.signal))
        if given is None:
            other = OTHER_RATE if signal_of(objective).kind == "rate" else OTHER_MEAN
            given = DEFAULTS.get(objective.signal, other)
            if (bound := maximum_of(objective)) is not None:
                given = replace(given, value=min(given.value, bound / 2))
            elif objective.min is not None:
                given = replace(given, value=max(given.value, 1.1 * float(objective.min)))
        ceiling = 1.0 if signal_of(objective).kind == "rate" else math.inf
        if not 0 <= given.value <= ceiling:
            raise ValueError(f"{objective.name} is a share of requests, between 0 and 1, not {given.value:g}")
        baselines[objective.name] = given
    return Assumed(requests_per_minute, baselines, rules.interval_seconds)


def from_recorded(recorded: Recorded, rules: Snapshot, said: Mapping[str, Baseline] | None = None) -> Assumed:
    """Rates, means and traffic as recorded on stable; what is `said` wins. ValueError without any request."""
    sums: dict[str, list[float]] = {}
    measured = 0
    requests = 0.0
    for k in range(-60, recorded.intervals):
        strata = recorded.counts(k, 0)
        measured += bool(strata)
        requests += max((sum(c.canary.n + c.stable.n for c in parts) for parts in strata.values()), default=0.0)
        for name, parts in strata.items():
            for c in parts:
                values = (c.stable.n, c.stable.total, c.stable.total_squared, c.canary.n + c.stable.n)
                sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * 4), values, strict=True)]
    if not requests:
        raise ValueError("the recording has no requests: traffic cannot be assumed from it")
    known: dict[str, Baseline] = {}
    for name, (n, total, squared, both) in sums.items():
        if n <= 0:
            continue
        mean = total / n
        variance = max(squared / n - mean * mean, 0.0)
        spread = math.sqrt(variance) / mean if mean > 0 and squared > 0 else 1.0
        known[name] = Baseline(mean, spread, min(1.0, both / requests))
    wanted = {o.name for o in rules.objectives}
    a_minute = requests / measured / recorded.interval_seconds * 60
    return assumed(rules, a_minute, {name: known[name] for name in known if name in wanted} | dict(said or {}))


def worse(objective: Objective, base: float, ratio: float) -> float:
    """`ratio` times as bad as `base`; a share of requests is at most 1."""
    return _worse(signal_of(objective), base, ratio)


def _worse(signal: Signal, base: float, ratio: float) -> float:
    value = base / ratio if signal.direction == "less_is_worse" else base * ratio
    return min(value, 1.0) if signal.kind == "rate" else value


def worst_ratio(objective: Objective, base: float) -> float:
    """The worst case that is searched: a total failure of a rate, twenty times the cost."""
    if signal_of(objective).kind == "rate" and signal_of(objective).direction == "more_is_worse":
        return 1 / base if base > 0 else math.inf
    return 20.0


def drawn(
    rng: Generator, signal: Signal, baseline: Baseline, n_c: Sequence[float], n_s: Sequence[float], ratio: float
) -> Iterator[Counts]:
    """Counts per interval, all drawn at once. `n_c` and `n_s`: expected samples in each; the canary is `ratio` times as
    bad."""
    arms = []
    for expected, value in ((n_s, baseline.value), (n_c, _worse(signal, baseline.value, ratio))):
        n = rng.poisson(np.asarray(expected, dtype=float))
        arms.append(_rates(rng, n, value) if signal.kind == "rate" else _means(rng, n, value, baseline.spread))
    stable, canary = arms
    return map(Counts, canary, stable)


def _rates(rng: Generator, n: "np.ndarray[tuple[int], np.dtype[np.int64]]", share: float) -> Iterator[Arm]:
    return map(Arm, n.astype(float).tolist(), rng.binomial(n, share).astype(float).tolist())


def _means(
    rng: Generator, n: "np.ndarray[tuple[int], np.dtype[np.int64]]", mean: float, spread: float
) -> Iterator[Arm]:
    total, squares = mean_sums(rng, n, mean, spread)
    return map(Arm, n.astype(float).tolist(), total.tolist(), squares.tolist())


def mean_sums(
    rng: Generator, n: "np.ndarray[tuple[int], np.dtype[np.int64]]", mean: float, spread: float
) -> "tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]":
    """Sums of gamma values, and of their squares: the sum is exact, the squares are normal around their regression."""
    shape = 1 / max(spread, 0.01) ** 2
    scale = mean / shape
    first, second = shape, shape * (shape + 1)
    third, fourth = second * (shape + 2), second * (shape + 2) * (shape + 3)
    slope = (third - first * second) / shape
    residual = math.sqrt(max(fourth - second * second - slope * slope * shape, 0.0))
    total = np.where(n > 0, rng.gamma(np.maximum(n, 1e-9) * shape), 0.0)
    squares = n * second + slope * (total - n * first) + np.sqrt(n) * residual * rng.standard_normal(len(n))
    squares = np.maximum(squares, total**2 / np.maximum(n, 1))
    return total * scale, squares * scale**2


class GoodVersion:
    """Traffic of a canary that is as good as stable, for `simulate`."""

    def __init__(self, rng: Generator, objectives: Sequence[Objective], given: Assumed, intervals: int) -> None:
        self.interval_seconds, self.intervals = given.interval_seconds, intervals
        self._rng, self._objectives, self._given = rng, objectives, given
        self._weight = -1
        self._ahead: dict[str, list[Counts]] = {}
        """Drawn in advance for the present weight: many at once are quicker."""

    def counts(self, k: int, weight: int) -> Strata:
        if weight != self._weight:
            self._weight, self._ahead = weight, {}
        return {objective.name: (self._next(objective),) for objective in self._objectives}

    def _next(self, objective: Objective) -> Counts:
        if not self._ahead.get(objective.name):
            n_c, n_s = self._given.samples(objective, self.interval_seconds, self._weight)
            baseline = self._given.baselines[objective.name]
            block = list(drawn(self._rng, signal_of(objective), baseline, [n_c] * AT_ONCE, [n_s] * AT_ONCE, 1.0))
            self._ahead[objective.name] = block
        return self._ahead[objective.name].pop()

    def available(self, k: int) -> bool:
        return True

    def unreachable(self, k: int) -> bool:
        return False


def described(objective: Objective, baseline: Baseline) -> str:
    """`1 %`, `$0.00200, standard deviation 1 times the mean, of 20 % of the requests`."""
    text = wording.value(signal_of(objective), baseline.value)
    if signal_of(objective).kind == "mean":
        text += f" with a standard deviation of {baseline.spread:.2g} times that"
    return text + (f", in {wording.share(baseline.sampled)} of the requests" if baseline.sampled < 1 else "")
