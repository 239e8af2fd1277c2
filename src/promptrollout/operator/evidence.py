"""From raw counters to the engine's intervals. A pure function of Prometheus' samples: a restart gives the same bits.

Per series, increments are taken sample by sample (a value that fell is a restart: all of it is new), before anything is
summed. An interval counts for an objective if both arms were scraped in it; until then increments are carried, for both
arms alike, at most `CARRY_SECONDS`. A series' first sample ever is its baseline and adds nothing: serving pods create
all series at zero when a configuration loads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from promptrollout.engine.evidence import Counts, Interval, MeanCounts, Moments, RateCounts
from promptrollout.engine.signals import SIGNALS
from promptrollout.operator.prometheus import Series

CARRY_SECONDS = 300
"""How long a series may be silent, and increments wait for the other arm. Prometheus' own lookback, too."""
WARM_UP_SECONDS = 2 * CARRY_SECONDS
"""Reading so far back before the first interval gives the state that a reader that never stopped would have."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One objective: which metrics it needs, in which role."""

    name: str
    signal: str
    threshold: str | None = None

    def roles(self) -> dict[str, str]:
        """Role (`bad`, `total`, `count`, `sum`, `sumsq`) to metric name."""
        signal = SIGNALS[self.signal]
        if signal.kind == "rate":
            return {"total": signal.total, "bad": signal.bad}
        return {"count": signal.count, "sum": signal.sum, "sumsq": signal.sumsq}

    @property
    def by_bucket(self) -> bool:
        return SIGNALS[self.signal].latency_bucket


@dataclass(frozen=True, slots=True)
class Question:
    """What is read for one rollout. Another question starts from nothing."""

    uid: str
    source: str
    interval_seconds: int
    stable_version: str
    canary_version: str
    objectives: tuple[Measured, ...]
    alone: bool = False
    """A first version: its only arm is stable, and it is judged like a canary without anything to compare with."""

    def arm_of(self, variant: str, version: str) -> Literal["canary", "stable"] | None:
        """The arm that a series counts for; None if it is of other traffic or of another revision."""
        if self.alone:
            return "canary" if (variant, version) == ("stable", self.stable_version) else None
        if (variant, version) == ("canary", self.canary_version):
            return "canary"
        return "stable" if (variant, version) == ("stable", self.stable_version) else None


@dataclass(slots=True)
class _Counter:
    """One series: its last sample, and what it grew by since the last interval that counted."""

    at: float
    value: float
    grown: float = 0.0


@dataclass(slots=True)
class _Objective:
    counters: dict[tuple[str, str, str], _Counter] = field(default_factory=dict)  # (role, variant, series)
    used_until: int | None = None


Windows = Mapping[str, list[Series]]
"""Series of one rollout by metric name."""


class _Sliced:
    """A series whose samples are filed under the interval that they fall into."""

    __slots__ = ("by_interval", "series")

    def __init__(self, series: Series, width: int) -> None:
        self.series = series
        self.by_interval: dict[int, list[tuple[float, float]]] = {}
        for at, value in series.samples:
            end = math.ceil(at / width) * width  # an interval includes its end
            self.by_interval.setdefault(end, []).append((at, value))


class Reader:
    """The counters of one rollout, at `position`: the end of the last interval taken in."""

    def __init__(self, question: Question, position: int) -> None:
        self.question = question
        self.position = position
        self.warm = False
        self._objectives = {measured.name: _Objective() for measured in question.objectives}

    def start_of_window(self) -> int:
        """Samples after this are needed for the next `take`."""
        width = self.question.interval_seconds
        return self.position if self.warm else self.position - math.ceil(WARM_UP_SECONDS / width) * width

    def take(self, windows: Windows, end: int) -> list[Interval]:
        """The intervals up to `end`, from samples of (start_of_window(), end]."""
        width = self.question.interval_seconds
        sliced = {metric: [_Sliced(each, width) for each in series] for metric, series in windows.items()}
        found = [self._interval(sliced, at, at + width) for at in range(self.start_of_window(), end, width)]
        found = [interval for interval in found if interval.start >= self.position]
        self.warm = True
        self.position = end
        return found

    def _interval(self, windows: Mapping[str, list[_Sliced]], start: int, end: int) -> Interval:
        counts: dict[str, Counts] = {}
        for measured in self.question.objectives:
            found = self._objective(self._objectives[measured.name], measured, windows, start, end)
            if found is not None:
                counts[measured.name] = found
        return Interval(start, end, counts)

    def _objective(
        self, state: _Objective, measured: Measured, windows: Mapping[str, list[_Sliced]], start: int, end: int
    ) -> Counts | None:
        fresh: set[tuple[str, str]] = set()
        roles = measured.roles()
        for role, metric in roles.items():
            for sliced in windows.get(metric, ()):
                samples = sliced.by_interval.get(end)
                arm = self._arm(sliced.series, measured, role)
                if samples and arm is not None:
                    _advance(state, role, arm, sliced.series.key, samples)
                    fresh.add((role, arm))
        for name, counter in list(state.counters.items()):
            if counter.at <= end - CARRY_SECONDS:
                del state.counters[name]
        if state.used_until is None:
            state.used_until = start
        if len(fresh) < (1 if self.question.alone else 2) * len(roles):
            if end - state.used_until > CARRY_SECONDS:
                for counter in state.counters.values():
                    counter.grown = 0.0
            return None
        state.used_until = end
        sums = {(role, variant): 0.0 for role in roles for variant in ("canary", "stable")}
        for (role, variant, _), counter in sorted(state.counters.items(), key=lambda item: item[0]):
            sums[role, variant] += counter.grown
            counter.grown = 0.0
        return _counts(measured, sums)

    def _arm(self, series: Series, measured: Measured, role: str) -> Literal["canary", "stable"] | None:
        edge = float(measured.threshold or "nan") if measured.by_bucket and role == "bad" else None
        return self.question.arm_of(series.variant, series.version) if series.le == edge else None


def _advance(state: _Objective, role: str, arm: str, series: str, samples: list[tuple[float, float]]) -> None:
    name = (role, arm, series)
    counter = state.counters.get(name)
    for at, value in samples:
        if counter is None:
            counter = state.counters[name] = _Counter(at, value)
            continue
        counter.grown += value - counter.value if value >= counter.value else value
        counter.at, counter.value = at, value


def _counts(measured: Measured, sums: dict[tuple[str, str], float]) -> Counts:
    if "count" in measured.roles():
        arms = {
            variant: Moments(sums["count", variant], sums["sum", variant], sums["sumsq", variant])
            for variant in ("canary", "stable")
        }
        return MeanCounts(canary=arms["canary"], stable=arms["stable"])
    total = {variant: sums["total", variant] for variant in ("canary", "stable")}
    bad = {variant: sums["bad", variant] for variant in total}
    if measured.by_bucket:  # the bucket holds the quick ones
        bad = {variant: total[variant] - bad[variant] for variant in total}
    # a sample may be older in one metric than in the other if a scrape was cut off
    bad = {variant: min(total[variant], max(0.0, bad[variant])) for variant in total}
    return RateCounts(
        canary=total["canary"], canary_bad=bad["canary"], stable=total["stable"], stable_bad=bad["stable"]
    )
