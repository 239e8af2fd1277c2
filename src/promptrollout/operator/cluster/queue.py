"""A deduplicating work queue, like client-go's: events add keys, one worker at a time handles a key.

Namespaces take turns: a thousand keys of one do not delay a single key of another.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 30.0


class Key(NamedTuple):
    """An object by kind, namespace and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class WorkQueue:
    """Not thread-safe: everything happens on one event loop.

    A key that is added while a worker handles it is handed out again once that worker is done.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: OrderedDict[str, dict[Key, float]] = OrderedDict()
        """Keys that wait for a worker, by namespace, and since when; the next namespace comes first."""
        self._processing: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._later: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._closed = False

    # ------------------------------------------------------------ putting in

    def add(self, key: Key) -> None:
        """Reconcile a key as soon as a worker is free."""
        if self._closed:
            return
        if key in self._processing:
            self._again.setdefault(key, self._clock())
        else:
            self._mark(key, self._clock())

    def _mark(self, key: Key, since: float) -> None:
        self._ready.setdefault(key.namespace, {}).setdefault(key, since)
        self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Add a key later; of several times for one key the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if self._closed or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._later, (due, next(self._order), key))
        self._wake.set()

    def next_at(self, key: Key, seconds: float) -> None:
        """Add a key then, and forget earlier times: a reconcile knows everything that its object waits for."""
        self._due.pop(key, None)
        self.add_after(key, seconds)

    def retry(self, key: Key) -> float:
        """Add a key after a pause that doubles with each failure in a row; returns the pause."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 16))
        self.add_after(key, seconds)
        return float(seconds)

    def retry_failed_now(self) -> None:
        """Do not wait for the backoff of keys that failed: the API server answers again."""
        for key in list(self._failures):
            self.add(key)

    def forget(self, key: Key) -> None:
        """A success: the next failure starts from the shortest pause."""
        self._failures.pop(key, None)

    # ------------------------------------------------------------ taking out

    async def get(self) -> Key | None:
        """The key that has waited longest in the namespace whose turn it is; None once the queue is closed."""
        while True:
            self.ripen()
            if self._closed:
                return None
            if self._ready:
                namespace, keys = self._ready.popitem(last=False)
                key = next(iter(keys))
                del keys[key]
                if keys:
                    self._ready[namespace] = keys
                self._processing.add(key)
                if self._ready:
                    self._wake.set()  # for the other workers
                return key
            self._wake.clear()
            pause = self._later[0][0] - self._clock() if self._later else None
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                continue

    def ripen(self) -> None:
        """Move keys that are due to those that wait for a worker."""
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:  # else an earlier time won
                del self._due[key]
                self.add(key)

    def done(self, key: Key) -> None:
        """The worker has finished with it."""
        self._processing.discard(key)
        since = self._again.pop(key, None)
        if since is not None and not self._closed:
            self._mark(key, since)

    def close(self) -> None:
        """Hand out nothing any more."""
        self._closed = True
        self._wake.set()

    # ------------------------------------------------------------ reading

    @property
    def depth(self) -> int:
        return sum(len(keys) for keys in self._ready.values())

    @property
    def lag_seconds(self) -> float:
        """How long the oldest key has waited."""
        since = [next(iter(keys.values())) for keys in self._ready.values()]
        return self._clock() - min(since) if since else 0.0
