"""From raw counters to the engine's intervals. A pure function of Prometheus' samples: a restart gives the same bits.

Per gateway process, increments are taken scrape by scrape (a value that fell is a restart: all of it is new), before
anything is summed. Samples of several scrapers of one process are of one counter, and counted once. What an objective
needs of a process advances together: a scrape counts if it has all of it.
An interval counts for an objective if both arms were scraped in it; until then increments are carried, for both
arms alike, at most `CARRY_SECONDS`. A process's first scrape ever is its baseline and adds nothing: serving pods create
all series at zero when a configuration loads.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from promptrollout.engine.evidence import Arm, Counts, Interval
from promptrollout.engine.signals import SIGNALS
from promptrollout.operator.prometheus import Series

CARRY_SECONDS = 300
"""How long a series may be silent, and increments wait for the other arm. Prometheus' own lookback, too."""
LATE_SECONDS = 60
"""A scraper writes the time at which it asked: of two at once, the second may have been answered first. So long a lower
value is that, and later the counter began anew: a version that comes back after its series were given up."""
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


Part = tuple[str, str]
"""Role, and which series of it."""
Column = tuple[Part, list[float], list[float]]
"""Times and values of a part within an interval."""


@dataclass(slots=True)
class _Process:
    """The counters of one process: its last scrape, and what they grew by since the last interval that counted."""

    at: float
    values: dict[Part, tuple[float, float]]
    grown: dict[Part, float] = field(default_factory=dict)

    def known(self, part: Part, at: float) -> float | None:
        seen, value = self.values.get(part, (-math.inf, 0.0))
        return value if seen > at - CARRY_SECONDS else None

    def advance(self, at: float, scrape: Mapping[Part, float], restarts: bool) -> None:
        """`restarts`: a value that fell is a restart at once."""
        before = {part: known for part in scrape if (known := self.known(part, at)) is not None}
        fell = any(value < before.get(part, 0.0) for part, value in scrape.items())
        if fell and not restarts and at <= self.at + LATE_SECONDS:
            return
        for part, value in scrape.items():
            self.grow(part, at, value, value - (0.0 if fell else before.get(part, value)))
        self.at = at

    def grow(self, part: Part, at: float, value: float, increment: float) -> None:
        self.grown[part] = self.grown.get(part, 0.0) + increment
        self.values[part] = (at, value)


@dataclass(slots=True)
class _Objective:
    processes: dict[tuple[str, str], _Process] = field(default_factory=dict)  # (arm, process)
    used_until: int | None = None


Windows = Mapping[str, list[Series]]
"""Series of one rollout by metric name."""


class _Sliced:
    """A series whose samples are filed under the interval that they fall into: times, and values."""

    __slots__ = ("by_interval", "part", "series")

    def __init__(self, series: Series, role: str, width: int) -> None:
        self.series = series
        self.part: Part = (role, series.part)
        self.by_interval: dict[int, tuple[list[float], list[float]]] = {}
        for at, value in series.samples:
            end = math.ceil(at / width) * width  # an interval includes its end
            times, values = self.by_interval.setdefault(end, ([], []))
            times.append(at)
            values.append(value)


Processes = dict[tuple[str, str], list[_Sliced]]
"""By arm and process: all that one objective needs of it."""


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
        processes = {measured.name: self._processes(measured, windows) for measured in self.question.objectives}
        found = [self._interval(processes, at, at + width) for at in range(self.start_of_window(), end, width)]
        found = [interval for interval in found if interval.start >= self.position]
        self.warm = True
        self.position = end
        return found

    def _processes(self, measured: Measured, windows: Windows) -> Processes:
        found: Processes = {}
        edge = float(measured.threshold) if measured.by_bucket and measured.threshold is not None else None
        for role, metric in measured.roles().items():
            for series in windows.get(metric, ()):
                arm = self.question.arm_of(series.variant, series.version)
                if arm is not None and series.le == (edge if role == "bad" else None):
                    sliced = _Sliced(series, role, self.question.interval_seconds)
                    found.setdefault((arm, series.process), []).append(sliced)
        return found

    def _interval(self, processes: Mapping[str, Processes], start: int, end: int) -> Interval:
        counts: dict[str, tuple[Counts, ...]] = {}
        for measured in self.question.objectives:
            found = self._objective(self._objectives[measured.name], measured, processes[measured.name], start, end)
            if found is not None:
                counts[measured.name] = (found,)
        return Interval(start, end, counts)

    def _objective(
        self, state: _Objective, measured: Measured, processes: Processes, start: int, end: int
    ) -> Counts | None:
        roles = measured.roles()
        fresh = {name[0] for name, all_sliced in processes.items() if _take(state, name, all_sliced, roles, end)}
        for name, process in list(state.processes.items()):
            if process.at <= end - CARRY_SECONDS:
                del state.processes[name]
        if state.used_until is None:
            state.used_until = start
        if len(fresh) < (1 if self.question.alone else 2):
            if end - state.used_until > CARRY_SECONDS:
                for process in state.processes.values():
                    process.grown.clear()
            return None
        state.used_until = end
        sums = {(role, variant): 0.0 for role in roles for variant in ("canary", "stable")}
        for (variant, _), process in sorted(state.processes.items(), key=lambda item: item[0]):
            for (role, _), grown in sorted(process.grown.items()):
                sums[role, variant] += grown
            process.grown.clear()
        return _counts(measured, sums)


def _take(
    state: _Objective, name: tuple[str, str], all_sliced: list[_Sliced], roles: Collection[str], end: int
) -> bool:
    """Take one process's scrapes of an interval in. False if there is none with all that is needed."""
    columns = [(each.part, *samples) for each in all_sliced if (samples := each.by_interval.get(end)) is not None]
    if _take_whole(state, name, columns, roles):
        return True
    scrapes: dict[float, dict[Part, float]] = {}
    for part, times, values in columns:
        for at, value in zip(times, values, strict=True):
            scrape = scrapes.setdefault(at, {})
            # two scrapers in the same millisecond: the higher values are the later ones, in all counters
            scrape[part] = max(value, scrape.get(part, 0.0))
    restarts = not all_sliced[0].series.self_named
    found = False
    for at, scrape in sorted(scrapes.items()):
        if len({role for role, _ in scrape}) < len(roles):
            continue
        found = True
        process = state.processes.get(name)
        if process is None:
            state.processes[name] = _Process(at, {part: (at, value) for part, value in scrape.items()})
        else:
            process.advance(at, scrape, restarts)
    return found


def _take_whole(state: _Objective, name: tuple[str, str], columns: list[Column], roles: Collection[str]) -> bool:
    """The usual case at a fraction of the cost: one scraper, every scrape complete, no value that fell."""
    parts = {part for part, _, _ in columns}
    if not columns or len(parts) < len(columns) or len({role for role, _ in parts}) < len(roles):
        return False
    process, times = state.processes.get(name), columns[0][1]
    befores = []
    for part, each, values in columns:
        known = process.known(part, times[0]) if process is not None else None
        before = values[0] if known is None else known
        if each != times or before > values[0] or any(map(operator.gt, values, values[1:])):
            return False
        befores.append(before)
    if process is None:
        process = state.processes[name] = _Process(times[0], {})
    for (part, _, values), before in zip(columns, befores, strict=True):
        process.grow(part, times[-1], values[-1], values[-1] - before)
    process.at = times[-1]
    return True


def _counts(measured: Measured, sums: dict[tuple[str, str], float]) -> Counts:
    if "count" in measured.roles():
        arms = {
            variant: Arm(sums["count", variant], sums["sum", variant], sums["sumsq", variant])
            for variant in ("canary", "stable")
        }
        return Counts(canary=arms["canary"], stable=arms["stable"])
    total = {variant: sums["total", variant] for variant in ("canary", "stable")}
    bad = {variant: sums["bad", variant] for variant in total}
    if measured.by_bucket:  # the bucket holds the quick ones
        bad = {variant: total[variant] - bad[variant] for variant in total}
    # a bucket that was added holds less than it should for a moment; so does what one bad sample is missing of
    bad = {variant: min(total[variant], max(0.0, bad[variant])) for variant in total}
    return Counts.of(total["canary"], bad["canary"], total["stable"], bad["stable"])
