"""What the tests can see with a given traffic: the smallest regression, and how long a good version waits to pass.

Monte Carlo with a fixed seed on the engine's own tests, for requests that do not depend on each other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any

import numpy as np

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.lifecycle.analysis import ObjectiveFold, levels
from promptrollout.engine.lifecycle.moves import BASELINE_INTERVALS
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.signals import Signal, signal_of
from promptrollout.engine.statistics.evidence import Counts
from promptrollout.simulation.assumed import Assumed, Baseline, drawn, worst_ratio
from promptrollout.simulation.undecidable import weight_steps

CHANCE = 0.8
"""Chance with which a regression should be caught."""
RUNS = 100
LOOKS_PER_STEP = 12
"""A longer step is evaluated this often, in longer intervals: slightly less often than in reality."""
PRECISION = 1.03
"""Relative precision of the ratios."""
PASS_RUNS = 21
PASS_LOOKS = 250
"""Each distance is a twentieth longer than the one before."""


@dataclass(frozen=True, slots=True)
class _Look:
    """An interval of the ramp, perhaps of several of the rollout's."""

    step: int
    weight: int
    seconds: float


@dataclass(slots=True)
class Detection:
    """The chance that one objective's breach is seen by the end of each step, by how much worse the canary is.

    The canary is worse from its first user on, and evidence of a breach is carried from step to step, as the operator
    does. The same requests are drawn for each ratio, and what catches a regression catches a larger one.
    """

    rules: Snapshot
    objective: Objective
    given: Assumed
    _known: list[dict[float, int]] = field(default_factory=lambda: [{} for _ in range(RUNS)])
    """By run and ratio: index of the step in which it was caught, or how many steps there are."""

    def smallest(self, step: int) -> float | None:
        """The smallest ratio that is caught by the end of step `step` (from 0) with 80 % chance; None if nothing is."""
        low, high = 1.0, worst_ratio(self.objective, self.given.baselines[self.objective.name].value)
        if not math.isfinite(high):
            return None
        if self.chance(step, high) < CHANCE:
            return None
        while high / low > PRECISION:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.chance(step, middle) >= CHANCE else (middle, high)
        return high

    def chance(self, step: int, ratio: float) -> float:
        return sum(self._caught(run, step, ratio) for run in range(RUNS)) / RUNS

    def _caught(self, run: int, step: int, ratio: float) -> bool:
        known = self._known[run]
        if any(r <= ratio and at <= step for r, at in known.items()):
            return True
        if any(r >= ratio and at > step for r, at in known.items()):
            return False
        known[ratio] = self._play(run, ratio)
        return known[ratio] <= step

    def _play(self, run: int, ratio: float) -> int:
        looks = _looks(self.rules)
        n = [self.given.samples(self.objective, look.seconds, look.weight) for look in looks]
        canary, stable = zip(*n, strict=True)
        baseline = self.given.baselines[self.objective.name]
        rng = np.random.default_rng([1, run])
        at, fold = levels(self.rules, 1), ObjectiveFold(self.objective, None)
        fold.state, step = primed(self.objective, self.given, run), 0
        signal = signal_of(self.objective)
        for look, counts in zip(looks, drawn(rng, signal, baseline, canary, stable, ratio), strict=True):
            if look.step != step:
                step, fold.step_samples = look.step, 0
            fold.add([counts], look.weight, promotable=True, outage=False)
            if fold.test.breached(fold.state, at):
                return look.step
        return len(self.rules.steps)


def primed(objective: Objective, given: Assumed, run: int) -> Any:
    """A test's state at the first exposure: it knows stable from the intervals before."""
    test: Any = make_test(objective)
    n = given.samples(objective, given.interval_seconds, 0)
    return _primed(test, signal_of(objective), given.baselines[objective.name], n, run)


@lru_cache(maxsize=8 * RUNS)
def _primed(test: Any, signal: Signal, baseline: Baseline, n: tuple[float, float], run: int) -> Any:
    """The same for all steps and weights of a plan."""
    count = BASELINE_INTERVALS
    state, rng = test.start(), np.random.default_rng([0, run])
    for counts in drawn(rng, signal, baseline, [n[0]] * count, [n[1]] * count, 1.0):
        state = test.observe(state, [counts], promotable=False)
    return state


def _looks(rules: Snapshot) -> list[_Look]:
    looks = []
    for index, step in enumerate(weight_steps(rules)):
        count = min(LOOKS_PER_STEP, max(1, step.seconds // rules.interval_seconds))
        looks += [_Look(index, step.weight, step.seconds / count)] * count
    return looks


def seconds_to_pass(
    rules: Snapshot, objective: Objective, given: Assumed, weight: int, within: float = math.inf
) -> float:
    """Median time that a version as good as stable needs at `weight` percent to be shown within all margins.

    Infinity if it takes longer than `within`, or some hundred thousand intervals, or if nobody is left on stable to
    compare with. It counts from the step's beginning: evidence for promotion is the step's own.
    """
    if weight < signal_of(objective).from_weight:
        return math.inf
    at = levels(rules, 1)
    ends = [end for end in _pass_ends(rules.interval_seconds) if end <= within]
    lengths = [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
    canary, stable = zip(*(given.samples(objective, length, weight) for length in lengths), strict=True)
    baseline, signal = given.baselines[objective.name], signal_of(objective)
    times: list[float] = []
    for run in range(PASS_RUNS):
        fold = ObjectiveFold(objective, None)
        fold.state = primed(objective, given, run)
        rng = np.random.default_rng([2, run])
        times.append(_first_pass(fold, drawn(rng, signal, baseline, canary, stable, 1.0), weight, at, ends))
        if 2 * sum(map(math.isinf, times)) > PASS_RUNS:
            return math.inf
    return median(times)


def _first_pass(fold: ObjectiveFold, counts: Iterator[Counts], weight: int, at: Any, ends: Sequence[float]) -> float:
    for each, end in zip(counts, ends, strict=True):
        fold.add([each], weight, promotable=True, outage=False)
        if fold.test.passed(fold.state, at):
            return end
    return math.inf


def _pass_ends(interval_seconds: int) -> list[float]:
    """Ends of looks: each interval at first, then further and further apart."""
    ends, length = [0.0], float(interval_seconds)
    for _ in range(PASS_LOOKS):
        length = max(length, ends[-1] / 20)
        ends.append(ends[-1] + length)
    return ends[1:]
