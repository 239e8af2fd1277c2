"""The one scheduler of all analyses: what is due is grouped, asked for once per metric, and handed to its rollouts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from promptrollout.engine.evidence import Evidence, Interval
from promptrollout.operator.evidence import Reader
from promptrollout.operator.prometheus import Source, SourceError
from promptrollout.operator.question import Narrowed, Query, Question, widened
from promptrollout.operator.queue import Key
from promptrollout.operator.series import Series

logger = logging.getLogger(__name__)

CATCH_UP_INTERVALS = 100
"""At most so many at once after an outage; the next ones follow at the next look."""
LOOK_SECONDS = 1.0
CLOCK_SECONDS = 10.0
"""How old the reading of a source's clock may get while something is analysed."""
BACKOFF_SECONDS = (1.0, 15.0)

Group = tuple[Query, int, int, int]
"""Query, end of the window, its length, the interval's: what one query answers."""
Answer = dict[str, list[Series]] | SourceError
"""Series by rollout uid."""


class _Analysis:
    """One rollout under analysis: its reader, what it read and nobody folded in yet, and what keeps it from reading."""

    def __init__(self, key: Key, reader: Reader) -> None:
        self.key = key
        self.reader = reader
        self.intervals: list[Interval] = []
        self.problem = ""


class Analyses:
    """Readers by rollout. `changed` is called when a rollout has new intervals or a new problem."""

    def __init__(self, sources: Mapping[str, Source], settle_seconds: float, changed: Callable[[Key], None]) -> None:
        self._sources = sources
        self._settle_seconds = settle_seconds
        self._changed = changed
        self._analyses: dict[Key, _Analysis] = {}
        self._waiting: dict[str, set[Key]] = {}
        """By source: rollouts that want to know whether it answers before they begin."""
        self._wake = asyncio.Event()
        self._clock_read: dict[str, float] = {}
        self._pause_until: dict[str, float] = {}
        self._pause: dict[str, float] = {}

    # ------------------------------------------------------------ for reconciles

    def now(self, source: str | None) -> float:
        """The clock that a rollout's intervals are cut by."""
        found = self._sources.get(source or "")
        return found.now() if found is not None else time.time()

    def want(self, key: Key, question: Question, position: int) -> None:
        """Read evidence from `position` on. The same question at a position within what was read goes on."""
        analysis = self._analyses.get(key)
        if analysis is not None and analysis.reader.question == question:
            starts = [interval.start for interval in analysis.intervals]
            if position == analysis.reader.position or position in starts:
                analysis.intervals = [interval for interval in analysis.intervals if interval.start >= position]
                return
        self._analyses[key] = _Analysis(key, Reader(question, position))
        self._wake.set()

    def drop(self, key: Key) -> None:
        self._analyses.pop(key, None)

    def evidence(self, key: Key, since: int | None, source: str | None, *, about_to_begin: bool = False) -> Evidence:
        """What was read after `since`; whether more can be read now.

        `about_to_begin`: nothing is read for this rollout yet, but it must not meet users while its source is away.
        """
        found = self._sources.get(source or "")
        if found is None:
            return Evidence(available=False, problem="the gateway names no metrics source that the operator has")
        analysis = self._analyses.get(key)
        if analysis is None and about_to_begin:
            self._make_sure(key, found)
        problem = found.problem or (analysis.problem if analysis is not None else "")
        intervals: tuple[Interval, ...] = ()
        if analysis is not None and since is not None:
            intervals = tuple(interval for interval in analysis.intervals if interval.start >= since)
            if intervals and intervals[0].start != since:
                intervals = ()  # a gap: `want` starts a new reader from there
        return Evidence(intervals, available=not problem, problem=problem)

    def _make_sure(self, key: Key, source: Source) -> None:
        answered = self._clock_read.get(source.name)
        if answered is not None and time.monotonic() - answered < 2 * CLOCK_SECONDS:
            return
        source.problem = source.problem or f"metrics source {source.name} has not answered yet"
        self._waiting.setdefault(source.name, set()).add(key)
        self._wake.set()

    # ------------------------------------------------------------ the loop

    async def first_contact(self) -> None:
        """Ask every source once, so that the first plans know whether it is there."""
        await asyncio.gather(*(self._read_clock(source) for source in self._sources.values()))

    async def run(self) -> None:
        """Look for what is due, for ever."""
        while True:
            self._wake.clear()
            await self.look()
            try:
                await asyncio.wait_for(self._wake.wait(), self._seconds_to_next())
            except TimeoutError:
                continue

    async def look(self) -> None:
        """One look: everything that is due now, of all sources that are not in a pause."""
        by_source: dict[str, list[_Analysis]] = defaultdict(list)
        for analysis in self._analyses.values():
            by_source[analysis.reader.question.source].append(analysis)
        for waited_for in self._waiting:
            by_source[waited_for] += []
        await asyncio.gather(*(self._look_at(self._sources[name], found) for name, found in by_source.items()))

    async def _look_at(self, source: Source, analyses: list[_Analysis]) -> None:
        if time.monotonic() < self._pause_until.get(source.name, 0.0):
            return
        stale = time.monotonic() - self._clock_read.get(source.name, -CLOCK_SECONDS) >= CLOCK_SECONDS
        if (stale or source.problem) and not await self._read_clock(source):
            return
        due = [(analysis, end) for analysis in analyses if (end := self._due_end(source, analysis)) is not None]
        if due:
            await self._read(source, due)

    async def _read_clock(self, source: Source) -> bool:
        """Note the source's time, or its problem and a pause before the next try."""
        before = source.problem
        try:
            await source.read_clock()
            source.problem = ""
        except SourceError as error:
            source.problem = str(error)
        if source.problem:
            pause = min(BACKOFF_SECONDS[1], self._pause.get(source.name, BACKOFF_SECONDS[0] / 2) * 2)
            self._pause[source.name] = pause
            self._pause_until[source.name] = time.monotonic() + pause
        else:
            self._pause.pop(source.name, None)
            self._clock_read[source.name] = time.monotonic()
        if source.problem != before:
            log = logger.warning if source.problem else logger.info
            log("%s", source.problem or f"metrics source {source.name} answers")
            for analysis in self._analyses.values():
                if analysis.reader.question.source == source.name:
                    self._changed(analysis.key)
        if not source.problem:
            for key in self._waiting.pop(source.name, ()):
                self._changed(key)
        return not source.problem

    async def _read(self, source: Source, due: list[tuple[_Analysis, int]]) -> None:
        groups: dict[Group, dict[str, str]] = defaultdict(dict)
        narrowed: dict[Group, list[Narrowed]] = defaultdict(list)
        for analysis, end in due:
            question = analysis.reader.question
            for query, narrow in question.queries.items():
                group = _group(analysis, query, end)
                groups[group][question.uid] = analysis.key.namespace
                narrowed[group].append(narrow)
        answers: dict[Group, Answer] = {}

        async def ask(group: Group) -> None:
            try:
                answers[group] = await _ask(source, group, groups[group], widened(narrowed[group]))
            except SourceError as error:
                answers[group] = error

        await asyncio.gather(*(ask(group) for group in groups))
        for analysis, end in due:
            self._take(analysis, end, answers)
            await asyncio.sleep(0)  # after a restart a thousand of them warm up

    def _take(self, analysis: _Analysis, end: int, answers: Mapping[Group, Answer]) -> None:
        """One failed query holds the rollouts that need it, and nobody else."""
        if self._analyses.get(analysis.key) is not analysis:
            return  # dropped, or asked anew, while the queries were under way
        windows: dict[Query, list[Series]] = {}
        problem = ""
        for query in analysis.reader.question.queries:
            answer = answers.get(_group(analysis, query, end), {})
            if isinstance(answer, SourceError):
                problem = problem or str(answer)
            else:
                windows[query] = answer.get(analysis.reader.question.uid, [])
        before = analysis.problem
        if not problem:
            problem = self._read_into(analysis, windows, end)
        analysis.problem = problem
        if problem:
            source = analysis.reader.question.source
            pause = self._pause_until[source] = time.monotonic() + BACKOFF_SECONDS[0]
            logger.debug("%s: %s; next try in %.0f s", analysis.key, problem, pause - time.monotonic())
        if not problem or problem != before:
            self._changed(analysis.key)

    def _read_into(self, analysis: _Analysis, windows: Mapping[Query, list[Series]], end: int) -> str:
        """What went wrong: one rollout's evidence must not stop the others' analyses, whatever it holds."""
        reader = analysis.reader
        try:
            analysis.intervals += reader.take(windows, end)
        except Exception as error:
            analysis.reader = Reader(reader.question, reader.position)  # the old one may have stopped half-way
            problem = f"its metrics cannot be evaluated: {type(error).__name__}: {error}"
            if analysis.problem != problem:
                logger.exception("%s: its metrics cannot be evaluated", analysis.key)
            return problem
        return ""

    def _due_end(self, source: Source, analysis: _Analysis) -> int | None:
        reader = analysis.reader
        width = reader.question.interval_seconds
        settled = source.now() - self._settle(width)
        end = min(int(settled // width) * width, reader.position + CATCH_UP_INTERVALS * width)
        return end if end > reader.position else None

    def _settle(self, width: int) -> float:
        return min(self._settle_seconds, width / 4)

    def _seconds_to_next(self) -> float | None:
        """Until the next interval is over and settled; None if nothing is analysed."""
        seconds: float | None = None
        for analysis in self._analyses.values():
            question = analysis.reader.question
            source = self._sources[question.source]
            width = question.interval_seconds
            left = analysis.reader.position + width + self._settle(width) - source.now()
            pause = self._pause_until.get(source.name, 0.0) - time.monotonic()
            seconds = min(LOOK_SECONDS if seconds is None else seconds, max(left, pause, 0.05))
        return LOOK_SECONDS if seconds is None and self._waiting else seconds


def _group(analysis: _Analysis, query: Query, end: int) -> Group:
    return query, end, end - analysis.reader.start_of_window(), analysis.reader.question.interval_seconds


async def _ask(
    source: Source, group: Group, rollouts: Mapping[str, str], narrowed: Narrowed
) -> dict[str, list[Series]]:
    query, end, seconds, width = group
    if query.form == "metric":
        return await source.window(query.text, rollouts, end, seconds, narrowed)
    if query.form == "selector":
        found = await source.selected(query.text, query.namespace, end, seconds)
    else:
        found = await source.values(query.text, end - seconds + width, end, width)
    return dict.fromkeys(rollouts, found)
