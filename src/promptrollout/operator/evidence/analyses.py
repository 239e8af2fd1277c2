"""The scheduler of all analyses: due intervals are grouped, queried once per metric, and given to their rollouts.

Rollouts do not wait for each other: each source has a loop of its own, and each rollout a task that reads it as soon
as its gateways' metrics are there. Its own queries (`Custom`) come after them, one at a time. One that fails leaves its
objective without counts and holds the rollout; the other objectives are still judged, so that they can roll back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from promptrollout.engine.statistics.evidence import Evidence, Interval
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.evidence.analysis import Analysis, Group, group_of
from promptrollout.operator.evidence.batches import Answer, Batches, Window
from promptrollout.operator.evidence.reader import Reader
from promptrollout.operator.evidence.requests import EvidenceRequest, LabelFilter, Query, union_of_filters
from promptrollout.operator.sources.lanes import SourceError
from promptrollout.operator.sources.prometheus import Source
from promptrollout.operator.sources.series import Series

logger = logging.getLogger(__name__)

CATCH_UP_INTERVALS = 100
"""Intervals that are read at once after an outage; the rest follow in the next round."""
LOOK_SECONDS = 1.0
CLOCK_SECONDS = 10.0
"""A source's clock is read again after so long while rollouts are analysed."""
CONFIRMED_SECONDS = 5.0
"""Validity of an answer that was requested before a raise of the weight."""
BACKOFF_SECONDS = (1.0, 15.0)
UNREADABLE_SECONDS = 50.0
"""A window that stays unreadable for so long, while its source answers others, is skipped."""


class Analyses:
    """Readers by rollout. `changed` is called when a rollout has new intervals or a new problem."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        settle_seconds: float,
        changed: Callable[[Key], None],
        pods: Callable[[str], int] = lambda _namespace: 2,
    ) -> None:
        """`pods`: how many gateway pods a namespace has."""
        self._sources = sources
        self._batches = {name: Batches(source, pods) for name, source in sources.items()}
        self._settle_seconds = settle_seconds
        self._changed = changed
        self._analyses: dict[Key, Analysis] = {}
        self._waiting: dict[str, set[Key]] = {}
        """By source: rollouts that check whether it answers before their canary gets more users."""
        self._asked: dict[Key, float] = {}
        """When each of them asked: an earlier answer does not count."""
        self._wake = {name: asyncio.Event() for name in sources}
        self._under_way: set[asyncio.Task[None]] = set()
        self._folding = asyncio.Lock()
        """After a restart a thousand of them warm up: one at a time, with other work in between."""
        self._clock_read: dict[str, float] = {}
        self._pause_until: dict[str, float] = {}
        self._pause: dict[str, float] = {}

    # ------------------------------------------------------------ for reconciles

    def now(self, source: str | None) -> float:
        """The source's clock, by which intervals are cut; ours without a source."""
        found = self._sources.get(source or "")
        return found.now() if found is not None else time.time()

    def request(self, key: Key, request: EvidenceRequest, position: int) -> None:
        """Read evidence from `position` on. The same request at a position within what was read goes on."""
        analysis = self._analyses.get(key)
        if analysis is not None and analysis.reader.request == request:
            starts = [interval.start for interval in analysis.intervals]
            if position == analysis.reader.position or position in starts:
                analysis.intervals = [interval for interval in analysis.intervals if interval.start >= position]
                return
        self._analyses[key] = Analysis(key, Reader(request, position))
        if (wake := self._wake.get(request.source)) is not None:
            wake.set()

    def stop(self, key: Key) -> None:
        self._analyses.pop(key, None)

    def forget(self, key: Key) -> None:
        """The rollout is gone."""
        self.stop(key)
        self._asked.pop(key, None)

    def evidence(self, key: Key, since: int | None, source: str | None) -> Evidence:
        """What was read after `since`; whether more can be read now."""
        found = self._sources.get(source or "")
        if found is None:
            problem = "the gateway's metricsSource is not in the operator's configuration"
            return Evidence(available=False, problem=problem, lost=True)
        analysis = self._analyses.get(key)
        problem = found.problem or (analysis.problem if analysis is not None else "")
        intervals: tuple[Interval, ...] = ()
        if analysis is not None and since is not None:
            intervals = tuple(interval for interval in analysis.intervals if interval.start >= since)
            if intervals and intervals[0].start != since:
                intervals = ()  # a gap: `request` starts a new reader from there
        lost = bool(problem)
        problem = problem or (analysis.note if analysis is not None else "")
        return Evidence(intervals, not problem, problem, lost, confirmed=self._confirmed(key, found))

    def check_source(self, key: Key, source: str | None) -> None:
        """Check that the source answers; `changed` is called with either result."""
        if source is not None and source in self._sources:
            self._asked.setdefault(key, time.monotonic())
            self._waiting.setdefault(source, set()).add(key)
            self._wake[source].set()

    def _confirmed(self, key: Key, source: Source) -> bool:
        """True once: the next raise checks again."""
        asked, answered = self._asked.get(key), self._clock_read.get(source.name)
        if source.problem or asked is None or answered is None or answered < asked:
            return False
        del self._asked[key]
        return time.monotonic() - answered < CONFIRMED_SECONDS

    # ------------------------------------------------------------ the loop

    async def first_contact(self) -> None:
        """Query every source once, so that the first plans know whether it answers."""
        await asyncio.gather(*(self._read_clock(source) for source in self._sources.values()))

    async def run(self) -> None:
        """Read what is due, for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                for source in self._sources.values():
                    group.create_task(self._keep_looking(source), name=f"analyses of {source.name}")
                await asyncio.Event().wait()  # there may be no source at all
        finally:
            for batches in self._batches.values():
                batches.close()
            for task in self._under_way:
                task.cancel()

    async def _keep_looking(self, source: Source) -> None:
        wake = self._wake[source.name]
        while True:
            wake.clear()
            try:
                await self._look_at(source)
                seconds = self._seconds_to_next(source)
            except Exception:  # an error of ours must not end the analyses
                logger.exception("metrics source %s: a look at what is due failed", source.name)
                seconds = BACKOFF_SECONDS[0]
            # not wait_for: before Python 3.12 it loses a cancellation that comes together with the event
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await wake.wait()

    async def look(self) -> None:
        """One look: everything that is due now, of all sources that are not in a pause, until it is read."""
        await asyncio.gather(*(self._look_at(source) for source in self._sources.values()))
        await asyncio.gather(*self._under_way)

    async def _look_at(self, source: Source) -> None:
        analyses = [each for each in self._analyses.values() if each.reader.request.source == source.name]
        if not analyses and source.name not in self._waiting:
            return
        if time.monotonic() < self._pause_until.get(source.name, 0.0):
            return
        stale = time.monotonic() - self._clock_read.get(source.name, -CLOCK_SECONDS) >= CLOCK_SECONDS
        stale = stale or source.name in self._waiting
        if (stale or source.problem) and not await self._read_clock(source):
            return
        now = time.monotonic()
        free = [analysis for analysis in analyses if not analysis.asking and now >= analysis.pause_until]
        due = [(analysis, end) for analysis in free if (end := self._due_end(source, analysis)) is not None]
        if due:
            self._read(source, due)

    async def _read_clock(self, source: Source) -> bool:
        """Note the source's time, or its problem and a pause before the next try."""
        before, sent = source.problem, time.monotonic()
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
            self._clock_read[source.name] = sent
        if source.problem != before:
            log = logger.warning if source.problem else logger.info
            log("%s", source.problem or f"metrics source {source.name} answers")
            for analysis in self._analyses.values():
                if analysis.reader.request.source == source.name:
                    self._changed(analysis.key)
        for key in self._waiting.pop(source.name, ()) if not source.problem else self._waiting.get(source.name, ()):
            self._changed(key)
        return not source.problem

    def _read(self, source: Source, due: list[tuple[Analysis, int]]) -> None:
        """Start queries for all of them; each rollout continues as soon as its answers are there."""
        rollouts: dict[Group, dict[str, str]] = defaultdict(dict)
        filters: dict[Group, list[LabelFilter]] = defaultdict(list)
        for analysis, end in due:
            request = analysis.reader.request
            for query, label_filter in request.queries.items():
                if query.form == "metric":
                    group = group_of(analysis, query, end)
                    rollouts[group][request.uid] = analysis.key.namespace
                    filters[group].append(label_filter)
        batches = self._batches[source.name]
        asked = {
            (query, end, seconds, width): batches.ask(
                Window(query.text, end, seconds, width, union_of_filters(filters[query, end, seconds, width])),
                rollouts[query, end, seconds, width],
            )
            for query, end, seconds, width in rollouts
        }
        for analysis, end in due:
            request = analysis.reader.request
            needed = {
                query: asked[group_of(analysis, query, end)][request.uid]
                for query in request.queries
                if query.form == "metric"
            }
            analysis.asking = True
            task = asyncio.create_task(self._read_one(source, analysis, end, needed))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _read_one(
        self, source: Source, analysis: Analysis, end: int, needed: Mapping[Query, asyncio.Future[Answer]]
    ) -> None:
        """The gateways' metrics of a rollout, then its own queries. A failed query of the first kind holds this rollout
        only."""
        try:
            windows: dict[Query, list[Series]] = {}
            for query, answer in needed.items():
                found = await answer
                if self._analyses.get(analysis.key) is not analysis:
                    return  # dropped, or asked anew, while the queries were under way
                if isinstance(found, SourceError):
                    self._unread(analysis, end, found)
                    return
                windows[query] = found
            request = analysis.reader.request
            failed = analysis.failing if time.monotonic() < analysis.failing_until else {}
            own = [query for query in request.queries if query.form != "metric" and query not in failed]
            if own:
                failed = await self._ask_own(source, analysis, end, windows, own, dict(failed))
            async with self._folding:
                if self._analyses.get(analysis.key) is analysis:
                    self._store(analysis, end, windows, failed)
                await asyncio.sleep(0)
        finally:
            analysis.asking = False
            self._wake[source.name].set()

    def _unread(self, analysis: Analysis, end: int, error: SourceError) -> None:
        """A window that stays unreadable is skipped, so that the rollout can read what comes after it."""
        now = time.monotonic()
        self._hold(analysis, str(error), BACKOFF_SECONDS[0])
        if not error.spoilt:
            analysis.unreadable_since = None
        elif analysis.unreadable_since is None:
            analysis.unreadable_since = now
        elif now - analysis.unreadable_since >= UNREADABLE_SECONDS:
            analysis.unreadable_since = None
            logger.warning("%s: metrics up to %d are skipped: %s", analysis.key, end, error)
            analysis.intervals += analysis.reader.skip(end, str(error))
            self._changed(analysis.key)

    async def _ask_own(
        self,
        source: Source,
        analysis: Analysis,
        end: int,
        windows: dict[Query, list[Series]],
        asked: list[Query],
        failed: dict[Query, str],
    ) -> dict[Query, str]:
        """One after the other, so that no rollout takes all the slots, and not longer than one query may take, because
        the other objectives wait. Returns what failed, and why."""
        until = asyncio.get_running_loop().time() + source.answer_seconds
        failures = 0
        for query in asked:
            try:
                async with asyncio.timeout_at(until):
                    windows[query] = await _own(source, group_of(analysis, query, end))
            except TimeoutError:
                failed[query] = (
                    f"metrics source {source.name}: Custom queries were not answered within {source.answer_seconds:g} s"
                )
            except SourceError as error:
                failed[query] = str(error)
            failures += query in failed
        if failures:
            pause = min(BACKOFF_SECONDS[1], max(BACKOFF_SECONDS[0], analysis.failing_pause * 2))
            analysis.failing_pause, analysis.failing_until = pause, time.monotonic() + pause
        elif not failed:
            analysis.failing_pause = 0.0
        return failed

    def _store(
        self, analysis: Analysis, end: int, windows: Mapping[Query, list[Series]], failed: Mapping[Query, str]
    ) -> None:
        request = analysis.reader.request
        unread = request.failing(failed)
        note = "; ".join(f"objective {name} is not measured: {why}" for name, why in unread.items())
        if note != analysis.note:
            logger.log(
                logging.WARNING if note else logging.INFO, "%s: %s", analysis.key, note or "all objectives are measured"
            )
        analysis.failing, analysis.note = dict(failed), note
        if unread and len(unread) == len(request.objectives):
            self._hold(analysis, note, max(BACKOFF_SECONDS[0], analysis.failing_until - time.monotonic()))
            return
        if problem := self._read_into(analysis, windows, end, unread):
            self._hold(analysis, problem, BACKOFF_SECONDS[1])
            return
        analysis.problem, analysis.unreadable_since = "", None
        self._changed(analysis.key)

    def _hold(self, analysis: Analysis, problem: str, seconds: float) -> None:
        """Read nothing now, and try the same window again later."""
        before, analysis.problem = analysis.problem, problem
        analysis.pause_until = time.monotonic() + seconds
        logger.debug("%s: %s; next try in %.0f s", analysis.key, problem, seconds)
        if problem != before:
            self._changed(analysis.key)

    def _read_into(
        self, analysis: Analysis, windows: Mapping[Query, list[Series]], end: int, unread: Collection[str]
    ) -> str:
        """Returns what went wrong: one rollout's metrics must not stop the analyses of others."""
        reader = analysis.reader
        try:
            analysis.intervals += reader.read(windows, end, unread)
        except Exception as error:
            analysis.reader = Reader(reader.request, reader.position)  # the old one may have stopped half-way
            problem = f"its metrics cannot be evaluated: {type(error).__name__}: {error}"
            if analysis.problem != problem:
                logger.exception("%s: its metrics cannot be evaluated", analysis.key)
            return problem
        return ""

    def _due_end(self, source: Source, analysis: Analysis) -> int | None:
        reader = analysis.reader
        width = reader.request.interval_seconds
        settled = source.now() - self._settle(width)
        end = min(int(settled // width) * width, reader.position + CATCH_UP_INTERVALS * width)
        return end if end > reader.position else None

    def _settle(self, width: int) -> float:
        return min(self._settle_seconds, width / 4)

    def _seconds_to_next(self, source: Source) -> float | None:
        """Until the next interval is over and settled; None if nothing is analysed."""
        seconds: float | None = None
        now, clock = time.monotonic(), source.now()
        for analysis in self._analyses.values():
            request = analysis.reader.request
            if request.source != source.name or analysis.asking:
                continue
            width = request.interval_seconds
            left = analysis.reader.position + width + self._settle(width) - clock
            pause = max(analysis.pause_until, self._pause_until.get(source.name, 0.0)) - now
            seconds = min(LOOK_SECONDS if seconds is None else seconds, max(left, pause, 0.05))
        return LOOK_SECONDS if seconds is None and source.name in self._waiting else seconds


async def _own(source: Source, group: Group) -> list[Series]:
    """Raises SourceError, whatever goes wrong."""
    query, end, seconds, width = group
    try:
        if query.form == "selector":
            return await source.selected(query.text, query.namespace, end, seconds)
        return await source.values(query.text, query.namespace, end - seconds + width, end, width)
    except SourceError:
        raise
    except Exception as error:  # no answer may stop the analyses
        logger.exception("metrics source %s: asking for %s failed", source.name, query.text)
        raise SourceError(f"metrics source {source.name}: {type(error).__name__}: {error}") from error
