"""Which rollouts share a query: few queries, and no namespace can make those of others fail.

A namespace is a tenant, and its pods may export anything. Small namespaces share queries and come first; one with many
rollouts has queries of its own, two at once. If an answer is unusable (too large, too slow, unreadable), each namespace
of the query is queried alone. One whose own answer is unusable too stays alone for an hour, in a lane of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from promptrollout.operator.evidence.requests import LabelFilter
from promptrollout.operator.sources.lanes import MAX_ANSWER_BYTES, SourceError
from promptrollout.operator.sources.prometheus import Source
from promptrollout.operator.sources.series import Series

logger = logging.getLogger(__name__)

UIDS_PER_QUERY = 100
UIDS_ALONE = 20
"""A namespace with more rollouts has queries of its own."""
QUERIES_PER_NAMESPACE = 2
"""At once, of those."""
ALONE_SECONDS = 3600.0
RECENT_SECONDS = 60.0
TARGET_BYTES = 4 * 2**20
"""Answers are planned to be about this large."""
SERIES_PER_POD = 70
"""Of one rollout and metric: both arms, by shards."""
SERIES_BYTES, SAMPLE_BYTES = 400, 25
SCRAPE_SECONDS = 5
"""Assumed: an answer with more samples is only nearer to the limit."""
LEAST_LIMIT_BYTES = 2**20
SAFETY = 4
"""An answer so many times larger than the known pods can cause is refused."""
SMALLEST_WINDOW_INTERVALS = 4
"""A window is not halved below that."""

Answer = list[Series] | SourceError
PendingAnswers = dict[str, asyncio.Future[Answer]]
"""By rollout uid: its part of the answer."""


@dataclass(frozen=True, slots=True)
class Window:
    """Raw samples of a metric in (end - seconds, end]. `width`: of the interval."""

    metric: str
    end: int
    seconds: int
    width: int
    label_filter: LabelFilter


class Batches:
    """Queries to one source, and which namespaces made them fail."""

    def __init__(
        self,
        source: Source,
        pods: Callable[[str], int] = lambda _namespace: 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pods`: how many gateway pods a namespace has."""
        self._source = source
        self._pods = pods
        self._clock = clock
        self._alone_until: dict[str, float] = {}
        self._read_at: dict[str, float] = {}
        """When each namespace was last read, for the last minutes."""
        self._gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Of namespaces that are queried alone: none takes all the slots of a lane."""
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, window: Window, rollouts: Mapping[str, str]) -> PendingAnswers:
        """`rollouts`: their namespaces by uid. The futures are done in no order, each as soon as it can be."""
        loop = asyncio.get_running_loop()
        asked: PendingAnswers = {uid: loop.create_future() for uid in rollouts}
        spaces: dict[str, list[str]] = defaultdict(list)
        for uid, namespace in sorted(rollouts.items()):
            spaces[namespace].append(uid)
        together: dict[str, str] = {}
        size = 0
        for namespace in sorted(spaces, key=lambda space: (len(spaces[space]), space)):
            uids = spaces[namespace]
            if self._is_alone(namespace) or len(uids) > UIDS_ALONE:
                self._start(self._one_namespace(window, namespace, uids, asked), asked, uids)
                continue
            for uid in uids:
                estimate = self._estimate(window, namespace)
                if together and (len(together) >= UIDS_PER_QUERY or size + estimate > TARGET_BYTES):
                    self._start(self._batch(window, together, asked), asked, together)
                    together, size = {}, 0
                together[uid] = namespace
                size += estimate
        if together:
            self._start(self._batch(window, together, asked), asked, together)
        return asked

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------------------ asking

    async def _batch(self, window: Window, rollouts: Mapping[str, str], asked: PendingAnswers) -> None:
        """Of several namespaces; each alone if their answer is unusable."""
        try:
            _settle_each(asked, rollouts, await self._read(window, rollouts))
        except SourceError as error:
            if error.spoilt:
                # an unreachable source makes every answer unusable
                error = await self._away() or error
            if not error.spoilt:
                _settle_all(asked, rollouts, error)
                return
            spaces: dict[str, list[str]] = defaultdict(list)
            for uid, namespace in rollouts.items():
                spaces[namespace].append(uid)
            logger.info("%s; querying %d namespaces one by one", error, len(spaces))
            for namespace, uids in spaces.items():
                self._start(self._one_namespace(window, namespace, uids, asked), asked, uids)

    async def _one_namespace(self, window: Window, namespace: str, uids: Sequence[str], asked: PendingAnswers) -> None:
        """In pieces, one after the other; a piece that cannot be read is halved, down to one rollout."""
        size = max(1, min(UIDS_PER_QUERY, TARGET_BYTES // self._estimate(window, namespace)))
        pieces = [list(uids[start : start + size]) for start in range(0, len(uids), size)]
        gate = self._gate(namespace)
        await asyncio.gather(*(self._piece(gate, window, namespace, piece, asked) for piece in pieces))

    async def _piece(
        self, gate: asyncio.Semaphore, window: Window, namespace: str, uids: list[str], asked: PendingAnswers
    ) -> None:
        async with gate:
            await self._halving(window, namespace, uids, asked)

    async def _halving(self, window: Window, namespace: str, uids: list[str], asked: PendingAnswers) -> None:
        if len(uids) == 1:
            _settle_all(asked, uids, await self._one_rollout(window, uids[0], namespace))
            return
        sent = self._clock()
        rollouts = dict.fromkeys(uids, namespace)
        try:
            _settle_each(asked, rollouts, await self._read(window, rollouts))
            return
        except SourceError as error:
            if not error.spoilt:
                _settle_all(asked, uids, error)
                return
            self._accuse(namespace, sent, error)
        half = len(uids) // 2
        await self._halving(window, namespace, uids[:half], asked)
        await self._halving(window, namespace, uids[half:], asked)

    async def _one_rollout(self, window: Window, uid: str, namespace: str) -> Answer:
        """A long window may be too much at once, where two halves are not."""
        sent = self._clock()
        try:
            return (await self._read(window, {uid: namespace})).get(uid, [])
        except SourceError as error:
            if not error.spoilt:
                return error
            self._accuse(namespace, sent, error)
            if window.seconds < 2 * SMALLEST_WINDOW_INTERVALS * window.width:
                return error
        late = window.seconds // (2 * window.width) * window.width
        early = replace(window, end=window.end - late, seconds=window.seconds - late)
        first = await self._one_rollout(early, uid, namespace)
        if isinstance(first, SourceError):
            return first
        second = await self._one_rollout(replace(window, seconds=late), uid, namespace)
        return second if isinstance(second, SourceError) else joined(first, second)

    async def _read(self, window: Window, rollouts: Mapping[str, str]) -> dict[str, list[Series]]:
        """Raises SourceError, whatever goes wrong."""
        w, spaces = window, set(rollouts.values())
        estimate = sum(self._estimate(window, space) for space in rollouts.values())
        alone = any(self._is_alone(space) for space in spaces)
        limit = min(MAX_ANSWER_BYTES, max(LEAST_LIMIT_BYTES, SAFETY * estimate))
        try:
            found = await self._source.window(
                w.metric, rollouts, w.end, w.seconds, w.label_filter, alone=alone, most_bytes=limit
            )
        except SourceError:
            raise
        except Exception as error:  # no answer may stop the analyses
            logger.exception("metrics source %s: asking for %s failed", self._source.name, w.metric)
            raise SourceError(f"metrics source {self._source.name}: {type(error).__name__}: {error}") from error
        now = self._clock()
        self._read_at |= dict.fromkeys(spaces, now)
        if len(self._read_at) > len(spaces) + UIDS_PER_QUERY:
            self._read_at = {space: at for space, at in self._read_at.items() if now - at < RECENT_SECONDS}
        return found

    # ------------------------------------------------------------ small things

    async def _away(self) -> SourceError | None:
        """Why the source does not answer; None: it does."""
        try:
            await self._source.read_clock()
        except SourceError as error:
            return SourceError(str(error))
        return None

    def _estimate(self, window: Window, namespace: str) -> int:
        """Estimated bytes of the answer for one rollout of this namespace."""
        each = SERIES_BYTES + SAMPLE_BYTES * (window.seconds // SCRAPE_SECONDS + 1)
        return max(1, self._pods(namespace)) * SERIES_PER_POD * each

    def _gate(self, namespace: str) -> asyncio.Semaphore:
        found = self._gates.get(namespace)
        if found is None:
            found = self._gates[namespace] = asyncio.Semaphore(QUERIES_PER_NAMESPACE)
        return found

    def _is_alone(self, namespace: str) -> bool:
        until = self._alone_until.get(namespace)
        if until is not None and self._clock() >= until:
            del self._alone_until[namespace]
            return False
        return until is not None

    def _accuse(self, namespace: str, sent: float, error: SourceError) -> None:
        """Only if another namespace was read since the query was sent: else the source is slow for all."""
        if not any(space != namespace and at > sent for space, at in self._read_at.items()):
            return
        if not self._is_alone(namespace):
            logger.warning(
                "namespace %s makes queries of other namespaces fail, it is queried alone for an hour: %s",
                namespace,
                error,
            )
        self._alone_until[namespace] = self._clock() + ALONE_SECONDS

    def _start(self, work: Coroutine[None, None, None], asked: PendingAnswers, uids: Collection[str]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work, asked, uids))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[None, None, None], asked: PendingAnswers, uids: Collection[str]) -> None:
        """An error of ours must not leave rollouts waiting."""
        try:
            await work
        except Exception as error:
            logger.exception("metrics source %s: reading for %d rollouts failed", self._source.name, len(uids))
            _settle_all(asked, uids, SourceError(f"metrics source {self._source.name}: {type(error).__name__}"))


def _settle_each(asked: PendingAnswers, uids: Collection[str], found: Mapping[str, list[Series]]) -> None:
    for uid in uids:
        if not asked[uid].done():
            asked[uid].set_result(found.get(uid, []))


def _settle_all(asked: PendingAnswers, uids: Collection[str], found: Answer) -> None:
    for uid in uids:
        if not asked[uid].done():
            asked[uid].set_result(found)


def joined(first: Sequence[Series], second: Sequence[Series]) -> list[Series]:
    """Series of two windows that follow one another."""
    by_labels = {tuple(sorted(series.labels.items())): series for series in second}
    found = []
    for series in first:
        more = by_labels.pop(tuple(sorted(series.labels.items())), None)
        found.append(series if more is None else replace(series, samples=series.samples + more.samples))
    return found + list(by_labels.values())
