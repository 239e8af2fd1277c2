"""Admit a request now, after a short wait, or not at all; and limit each caller's rate."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from promptrollout.gateway.http.errors import Overloaded, RateLimited
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.server.concurrency_limit import ConcurrencyLimit

MAX_BUCKETS: Final = 10_000
"""So many callers' rates are remembered; the least recently seen is forgotten first."""


IN_TIME: Final = 0.75
"""Of the time that requests may wait: a request that would likely wait longer is refused."""
REFUSALS_PER_SECOND: Final = 500
"""If there are more, Retry-After grows: a refusal takes at most a tenth of a millisecond."""
MAX_RETRY_SECONDS: Final = 10
TURN_WEIGHT: Final = 0.05
"""Weight of the last turn in the mean of all turns."""


class Admission:
    """Limits how many requests run at once, and how many wait for a place, in order and for a short time.

    A pod that admits more than it can answer answers less and less. A request that is refused at once costs little and
    can be sent to another pod; one that waits costs only memory.
    """

    def __init__(self, counters: Counters, max_concurrent: int, max_queued: int, queue_seconds: float) -> None:
        self._counters = counters
        self.concurrency = ConcurrencyLimit(max_concurrent, lambda: counters.in_flight, self._hand_out)
        self._max_queued = max_queued
        self._queue_seconds = queue_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.retry_seconds = 1
        """Retry-After of refused requests."""
        self._refusals, self._refusals_since = 0, 0.0
        self._admitted = 0
        """Admitted in this turn of the event loop, but not started."""
        self._turn_seconds = 0.0
        """While requests wait: the mean time until the next one gets a place; 0: not known."""
        self._last_turn: float | None = None

    @property
    def full(self) -> bool:
        """Whether one more request would be refused at once: the queue is full, or its turn would come too late. To
        wait in vain costs several times as much as to be refused."""
        free = max(0, self.concurrency.limit - self._counters.in_flight)
        if self._admitted < free:
            return False
        ahead = self._counters.queued + self._admitted - free
        return ahead >= self._max_queued or ahead * self._turn_seconds > IN_TIME * self._queue_seconds

    def refuses(self) -> bool:
        """Whether to refuse a request whose headers were just read; if not, its task will ask for a place.

        The event loop reads from all connections before it runs the tasks, so requests that were admitted in this turn
        are counted here. Otherwise a whole burst would pass, to be refused later at a much higher cost.
        """
        if self.full:
            self._record_refusal(time.monotonic())
            return True
        if self._admitted == 0:
            asyncio.get_running_loop().call_soon(self._all_started)
        self._admitted += 1
        return False

    def _record_refusal(self, now: float) -> None:
        self._refusals += 1
        if (since := now - self._refusals_since) >= 1.0:
            wanted = self._refusals / since / REFUSALS_PER_SECOND * self.retry_seconds
            self.retry_seconds = min(MAX_RETRY_SECONDS, max(1, math.ceil(wanted)))
            self._refusals, self._refusals_since = 0, now

    def _all_started(self) -> None:
        """The tasks of the admitted requests run right after this."""
        self._admitted = 0

    async def __aenter__(self) -> None:
        """Take a place. Raises Overloaded."""
        self.concurrency.watch()
        # then the queue is empty: free places are given to it first
        if self._counters.in_flight < self.concurrency.limit:
            self._counters.in_flight += 1
            return
        if self.full:
            raise Overloaded(self.retry_seconds)
        await self._wait()

    async def __aexit__(self, *exc_info: object) -> None:
        """Give the place back."""
        self._counters.in_flight -= 1
        if self._waiting:
            now = time.monotonic()
            if self._last_turn is not None:
                turn = now - self._last_turn
                before = self._turn_seconds or turn
                self._turn_seconds = before + TURN_WEIGHT * (turn - before)
            self._last_turn = now
        else:
            self._last_turn = None
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free places to the requests that wait longest."""
        while self._waiting and self._counters.in_flight < self.concurrency.limit:
            first = self._waiting.popleft()
            if not first.done():
                self._counters.in_flight += 1
                first.set_result(None)

    async def _wait(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._counters.queued += 1
        try:
            async with asyncio.timeout(self._queue_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                await self.__aexit__()  # the place was given at the same moment
            else:
                with contextlib.suppress(ValueError):  # it was removed already
                    self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise Overloaded(self.retry_seconds) from None
            raise
        finally:
            self._counters.queued -= 1


class RateLimiter:
    """A token bucket per caller: `per_minute` requests at a steady rate, up to `burst` at once."""

    def __init__(self, per_minute: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By the caller's name: the tokens left, and when they were counted."""

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, caller: str) -> None:
        """Spend a token for one request. Raises RateLimited with the time until the next token."""
        now = self._clock()
        left, at = self._buckets.get(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_second)
        if left < 1:
            raise RateLimited(math.ceil((1 - left) / self._per_second))
        self._buckets[caller] = (left - 1, now)
        self._buckets.move_to_end(caller)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
