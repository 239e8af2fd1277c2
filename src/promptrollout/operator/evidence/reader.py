"""From raw counters to the engine's intervals. A pure function of Prometheus' samples: a restart gives the same bits.

- Increments are counted per gateway process and scrape before anything is summed. A value that fell is a restart: all
  of it is new. Shards restart on their own: a gateway drops them some time after a canary ended, and keeps the arm's.
- Samples of several scrapers of one process are of one counter, and counted once.
- The counters that an objective needs of a process advance together: a scrape counts if it has all of them.
- An interval counts for an objective if both arms were scraped in it. Until then the increments of both arms are
  carried, at most `CARRY_SECONDS`.
- The first scrape of a process is its baseline and adds nothing: serving pods create all series at zero when a
  configuration loads.
- Before the canary's exposure stable's counts are used alone, and nothing is carried.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from promptrollout.api.names import AGES, LABEL_SHARD
from promptrollout.engine.statistics.evidence import Arm, Counts, Interval
from promptrollout.operator.evidence.counts import WHOLE, Sums, counts_of
from promptrollout.operator.evidence.requests import (
    SHARD_NUMBERS,
    EvidenceRequest,
    ObjectiveQueries,
    Query,
    SeriesSelector,
)
from promptrollout.operator.sources.series import Series

CARRY_SECONDS = 300
"""How long a series may be silent, and increments wait for the other arm. Prometheus' own lookback, too."""
LATE_SECONDS = 60
"""A scraper writes the time at which it asked: of two at once, the second may have been answered first. So long a lower
value is that; later it is a restarted counter, of a version that comes back after its series were dropped."""
WARM_UP_SECONDS = 2 * CARRY_SECONDS
"""Reading so far back before the first interval gives the state that a reader that never stopped would have."""

Part = tuple[str, int, str]
"""Role, shard, and which series of it."""
Column = tuple[Part, list[float], list[float]]
"""Times and values of a part within an interval."""
Stratum = tuple[str, ...]
"""Values of the labels that divide an objective's evidence into parts that are compared separately."""
Owner = tuple[str, str]
"""Arm and process."""


@dataclass(slots=True)
class _Process:
    """The counters of one process: its last scrape, and what they grew by since the last interval that counted."""

    at: float
    values: dict[Part, tuple[float, float]]
    grown: dict[Part, float] = field(default_factory=dict)

    def known(self, part: Part, at: float, born_at_zero: bool) -> float | None:
        seen, value = self.values.get(part, (-math.inf, 0.0))
        if seen > at - CARRY_SECONDS:
            return value
        return 0.0 if born_at_zero and self.at > at - CARRY_SECONDS else None

    def advance(self, at: float, scrape: Mapping[Part, float], restarts: bool, born_at_zero: bool) -> None:
        """`restarts`: a value that fell is a restart at once."""
        before = {part: known for part in scrape if (known := self.known(part, at, born_at_zero)) is not None}
        fallen = {part for part, value in scrape.items() if value < before.get(part, 0.0)}
        fell = any(shard == WHOLE for _, shard, _ in fallen)
        if fell and not restarts and at <= self.at + LATE_SECONDS:
            return
        for part, value in scrape.items():
            self.grow(part, at, value, value - (0.0 if fell or part in fallen else before.get(part, value)))
        self.at = at

    def grow(self, part: Part, at: float, value: float, increment: float) -> None:
        self.grown[part] = self.grown.get(part, 0.0) + increment
        self.values[part] = (at, value)


@dataclass(slots=True)
class _State:
    """One stratum of one objective."""

    used_until: int
    processes: dict[Owner, _Process] = field(default_factory=dict)

    def sums(self) -> Sums:
        """By arm, role and shard, in an order that does not depend on when what was first seen."""
        found: Sums = {"canary": defaultdict(float), "stable": defaultdict(float)}
        for (arm, _), process in sorted(self.processes.items(), key=lambda item: item[0]):
            sums = found[arm]
            for (role, shard, _), grown in sorted(process.grown.items()):
                sums[role, shard] += grown
        return found

    def clear(self) -> None:
        for process in self.processes.values():
            process.grown.clear()


Windows = Mapping[Query, list[Series]]
"""Series of one rollout by query."""
ByInterval = dict[int, tuple[list[float], list[float]]]
"""Times and values of a series, under the end of the interval that they fall into."""


class _Sliced(NamedTuple):
    part: Part
    by_interval: ByInterval
    self_named: bool


Processes = dict[Owner, list[_Sliced]]
"""The series of one stratum of an objective, by process."""


class Reader:
    """The counters of one rollout, at `position`: the end of the last interval that was read."""

    def __init__(self, request: EvidenceRequest, position: int) -> None:
        self.request = request
        self.position = position
        self.warm = False
        self._begun = self.start_of_window()
        self._states: dict[str, dict[Stratum, _State]] = {objective.name: {} for objective in request.objectives}

    def start_of_window(self) -> int:
        """Samples after this are needed for the next `read`."""
        width = self.request.interval_seconds
        return self.position if self.warm else self.position - math.ceil(WARM_UP_SECONDS / width) * width

    def read(self, windows: Windows, end: int, unread: Collection[str] = ()) -> list[Interval]:
        """The intervals up to `end`, from samples of (start_of_window(), end]. Objectives that are `unread` have no
        counts in them: increments of theirs are carried."""
        width = self.request.interval_seconds
        filed = _Filed(self.request, windows, unread)
        starts = range(self.start_of_window(), end, width)
        found = [Interval(at, at + width, self._counts(filed, at, at + width)) for at in starts]
        self.warm = True
        found = [interval for interval in found if interval.start >= self.position]
        self.position = end
        return found

    def skip(self, end: int, why: str) -> list[Interval]:
        """The intervals up to `end`, whose samples cannot be read, without counts."""
        width = self.request.interval_seconds
        found = [Interval(at, at + width, problem=why) for at in range(self.position, end, width)]
        self.warm, self.position = True, end
        return found

    def _counts(self, filed: _Filed, start: int, end: int) -> dict[str, tuple[Counts, ...]]:
        found = {}
        for objective in self.request.objectives:
            if objective.is_value:
                values = filed.values.get(objective.name)
                each = [] if values is None else [self._value(values, end)]
            else:
                states = self._states[objective.name]
                strata = filed.strata[objective.name]
                for stratum in strata.keys() - states.keys():
                    states[stratum] = _State(self._begun)
                each = [
                    self._stratum(states[stratum], objective, stratum, strata.get(stratum, {}), start, end)
                    for stratum in sorted(states)
                ]
            if counts := tuple(one for one in each if one is not None):
                found[objective.name] = counts
        return found

    def _stratum(
        self, state: _State, objective: ObjectiveQueries, stratum: Stratum, processes: Processes, start: int, end: int
    ) -> Counts | None:
        fresh = {
            owner[0]
            for owner, all_sliced in processes.items()
            if _add_scrapes(state, owner, all_sliced, objective, end)
        }
        for owner, process in list(state.processes.items()):
            if process.at <= end - CARRY_SECONDS:
                del state.processes[owner]
        before = end <= self.request.exposed_at
        wanted = {"stable"} if before else {arm for arm, _, _ in self.request.arms}
        # feedback may be on answers that were given before the canary met users
        too_early = (
            objective.signal.by_age
            and not before
            and start - self.request.exposed_at < _reach_seconds(objective, stratum)
        )
        if too_early or not wanted <= fresh:
            if before or too_early or end - state.used_until > CARRY_SECONDS:
                state.clear()
            return None
        state.used_until = end
        sums = state.sums()
        state.clear()
        counts = counts_of(objective.signal, sums)
        return Counts(canary=Arm(0, 0), stable=counts.stable) if before else counts

    def _value(self, values: Mapping[str, Mapping[float, float]], end: int) -> Counts | None:
        """One sample an interval."""
        arms = {arm: Arm(1, x, x * x) for arm, by_time in values.items() if (x := by_time.get(end)) is not None}
        if end <= self.request.exposed_at:
            arms["canary"] = Arm(0, 0)
        if self.request.alone:
            arms["stable"] = Arm(0, 0)
        return Counts(**arms) if len(arms) == 2 else None


def _reach_seconds(objective: ObjectiveQueries, stratum: Stratum) -> int:
    """How long ago the answers may have been given that this stratum's feedback is on, in seconds."""
    return AGES.get(stratum[objective.signal.strata.index("age")], max(AGES.values()))


class _Filed:
    """Series of the windows by objective, stratum and process, and there by interval."""

    def __init__(self, request: EvidenceRequest, windows: Windows, unread: Collection[str]) -> None:
        self._request = request
        self._windows = windows
        self._arms = {(variant, version): arm for arm, variant, version in request.arms}
        self._sliced: dict[int, ByInterval] = {}
        self.strata: dict[str, dict[Stratum, Processes]] = {}
        self.values: dict[str, dict[str, dict[float, float]]] = {}
        """Of expressions: by objective, arm and time."""
        for objective in request.objectives:
            self.strata[objective.name] = {}
            if objective.name in unread:
                continue
            if objective.is_value:
                self.values[objective.name] = {
                    arm: {at: value for series in windows.get(query, ()) for at, value in series.samples}
                    for _, arm, query in request.own_queries(objective)
                }
            elif objective.own:
                for role, arm, query in request.own_queries(objective):
                    for series in windows.get(query, ()):
                        self._file(objective, role, WHOLE, arm, series)
            else:
                for selector in objective.selectors:
                    self._file_selected(objective, selector)

    def _file_selected(self, objective: ObjectiveQueries, selector: SeriesSelector) -> None:
        role, divided, query, edge, labels, _ = selector
        shard = WHOLE
        for series in self._windows.get(query, ()):
            arm = self._arms.get((series.variant, series.version))
            if arm is None or series.le != edge:
                continue
            if labels and any(series.labels.get(name) != value for name, value in labels):
                continue
            if divided and (shard := SHARD_NUMBERS.get(series.labels.get(LABEL_SHARD, ""), WHOLE)) == WHOLE:
                continue
            self._file(objective, role, shard, arm, series)

    def _file(self, objective: ObjectiveQueries, role: str, shard: int, arm: str, series: Series) -> None:
        names = objective.signal.strata
        stratum = tuple([series.labels.get(name, "") for name in names]) if names else ()
        by_interval = self._sliced.get(id(series))
        if by_interval is None:
            by_interval = self._sliced[id(series)] = _slice(series, self._request.interval_seconds)
        processes = self.strata[objective.name].setdefault(stratum, {})
        processes.setdefault((arm, series.process), []).append(
            _Sliced((role, shard, series.part), by_interval, series.self_named)
        )


def _slice(series: Series, width: int) -> ByInterval:
    found: ByInterval = {}
    for at, value in series.samples:
        end = math.ceil(at / width) * width  # an interval includes its end
        times, values = found.setdefault(end, ([], []))
        times.append(at)
        values.append(value)
    return found


def _add_scrapes(state: _State, owner: Owner, all_sliced: list[_Sliced], objective: ObjectiveQueries, end: int) -> bool:
    """Add one process's scrapes of an interval. False if no scrape has all required roles."""
    columns = [(each.part, *samples) for each in all_sliced if (samples := each.by_interval.get(end)) is not None]
    if _add_complete_scrapes(state, owner, columns, objective):
        return True
    scrapes: dict[float, dict[Part, float]] = {}
    for part, times, values in columns:
        for at, value in zip(times, values, strict=True):
            scrape = scrapes.setdefault(at, {})
            # two scrapers in the same millisecond: the higher values are the later ones, in all counters
            scrape[part] = max(value, scrape.get(part, 0.0))
    restarts = not all_sliced[0].self_named
    found = False
    for at, scrape in sorted(scrapes.items()):
        if not objective.required <= {role for role, shard, _ in scrape if shard == WHOLE}:
            continue
        found = True
        process = state.processes.get(owner)
        if process is None:
            state.processes[owner] = _Process(at, {part: (at, value) for part, value in scrape.items()})
        else:
            process.advance(at, scrape, restarts, objective.born_at_zero)
    return found


def _add_complete_scrapes(state: _State, owner: Owner, columns: list[Column], objective: ObjectiveQueries) -> bool:
    """The usual case at a fraction of the cost: one scraper, every scrape complete, no value that fell."""
    parts = {part for part, _, _ in columns}
    whole = {role for role, shard, _ in parts if shard == WHOLE}
    if not columns or len(parts) < len(columns) or not objective.required <= whole:
        return False
    process, times = state.processes.get(owner), columns[0][1]
    befores = []
    for part, each, values in columns:
        known = process.known(part, times[0], objective.born_at_zero) if process is not None else None
        before = values[0] if known is None else known
        if each != times or before > values[0] or any(map(operator.gt, values, values[1:])):
            return False
        befores.append(before)
    if process is None:
        process = state.processes[owner] = _Process(times[0], {})
    for (part, _, values), before in zip(columns, befores, strict=True):
        process.grow(part, times[-1], values[-1], values[-1] - before)
    process.at = times[-1]
    return True
