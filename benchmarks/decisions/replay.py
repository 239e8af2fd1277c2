"""Let a rule watch a canary: interval by interval, step by step, on traffic that was drawn for all rules alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.decisions.case import Case, Ramp
from promptrollout.engine.statistics.evidence import Counts
from promptrollout.simulation.draws import Draws

Verdict = Literal["advance", "hold", "rollback"]
Floats = NDArray[np.float64]

LOWER_IS_WORSE = ("JudgeScore",)
RATES = ("ErrorRate", "Latency", "NegativeFeedbackRate")


@dataclass(slots=True)
class Arm:
    """One arm's counts by interval since the first exposure; NaN where nothing could be read."""

    n: Floats
    total: Floats
    squares: Floats
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of all three, over all intervals that could be read."""

    @classmethod
    def empty(cls, intervals: int) -> "Arm":
        return cls(np.full(intervals, np.nan), np.full(intervals, np.nan), np.full(intervals, np.nan))

    def take(self, k: int, n: float, total: float, squares: float) -> None:
        self.n[k], self.total[k], self.squares[k] = n, total, squares
        before = self.sums
        self.sums = before[0] + n, before[1] + total, before[2] + squares

    def until(self, k: int) -> "Arm":
        return Arm(self.n[: k + 1], self.total[: k + 1], self.squares[: k + 1], self.sums)


@dataclass(slots=True)
class Signal:
    """Both arms. A canary is bad if its mean exceeds stable's: scores are turned round."""

    name: str
    canary: Arm
    stable: Arm

    @property
    def is_rate(self) -> bool:
        return self.name in RATES


@dataclass(slots=True)
class History:
    """What a rule may look at. `signals` are those that the rollout has objectives on."""

    case: Case
    """Only an oracle may look at the scenario's truth."""
    looks: int
    """Intervals that have passed."""
    weight: int
    """Percent, in the latest interval."""
    available: bool
    """The metrics source answers."""
    signals: Mapping[str, Signal]
    _arrays: Mapping[str, tuple[Arm, Arm]] = field(default_factory=dict)

    @classmethod
    def begin(cls, case: Case, intervals: int) -> "History":
        arrays = {name: (Arm.empty(intervals), Arm.empty(intervals)) for name in case.signals}
        return cls(case, 0, 0, True, {}, arrays)

    def take(self, weight: int, strata: Mapping[str, tuple[Counts, ...]], available: bool) -> None:
        k, self.looks = self.looks, self.looks + 1
        self.weight, self.available = weight, available
        for name, arms in self._arrays.items():
            counts = strata.get(name)
            if counts is None or not available:
                continue
            sign = -1.0 if name in LOWER_IS_WORSE else 1.0
            for arm, parts in zip(arms, ([c.canary for c in counts], [c.stable for c in counts]), strict=True):
                total = sign * sum(part.total for part in parts)
                arm.take(k, sum(part.n for part in parts), total, sum(part.total_squared for part in parts))
        self.signals = {name: Signal(name, *(arm.until(k) for arm in arms)) for name, arms in self._arrays.items()}

    @property
    def blind(self) -> bool:
        """Nothing could be read of the latest interval."""
        return all(math.isnan(signal.canary.n[-1]) for signal in self.signals.values())


class Rule(Protocol):
    """What a visitor adds: see README.md beside this file. A new instance for each run, so it may remember things."""

    name: str
    ramp: Ramp | None
    """None: the case's."""

    def decide(self, history: History) -> Verdict:
        """At the end of each interval. `advance` raises the weight as soon as the step's time is over, too."""


Ended = Literal["promoted", "rolled back", "too soon", "open"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule made of one run."""

    ended: Ended
    """Too soon: rolled back before the regression began."""
    seconds: int
    """From the first exposure to the end of the interval after which that was decided."""
    requests: int
    """Canary's until then, since the regression began."""
    excess: int
    """Bad requests that stable would have spared the canary's users."""
    blind_decisions: int
    """Rollbacks and raised weights at looks for which nothing could be read, or while only the provider was down."""

    @classmethod
    def of(cls, case: Case, traffic: Draws, weights: Sequence[int], ended: Ended, blind_decisions: int) -> "Outcome":
        """`weights`: of each interval until the end."""
        exposed = [traffic.exposure(k, weight) for k, weight in enumerate(weights)][case.onset :]
        return cls(
            ended="too soon" if ended == "rolled back" and len(weights) <= case.onset else ended,
            seconds=len(weights) * traffic.interval_seconds,
            requests=sum(exposure.requests for exposure in exposed),
            excess=sum(exposure.bad - exposure.bad_on_stable for exposure in exposed),
            blind_decisions=blind_decisions,
        )


def replay(rule: Rule, case: Case, traffic: Draws) -> Outcome:
    ramp, width = rule.ramp or case.ramp, traffic.interval_seconds
    history = History.begin(case, traffic.intervals)
    step, in_step, blind = 0, 0, 0
    ended: Ended = "open"
    weights: list[int] = []
    while ended == "open" and len(weights) < traffic.intervals:
        k, (weight, seconds) = len(weights), ramp[step]
        weights.append(weight)
        history.take(weight, traffic.counts(k, weight), traffic.available(k))
        in_step += width
        verdict = rule.decide(history)
        raises = verdict == "advance" and in_step >= seconds
        if verdict == "rollback" or raises:
            blind += history.blind or traffic.unreachable(k)
        if verdict == "rollback":
            ended = "rolled back"
        elif raises:
            step, in_step = step + 1, 0
            ended = "promoted" if step == len(ramp) else "open"
    return Outcome.of(case, traffic, weights, ended, blind)
