"""Second step of a request's way: whether this pod takes it now, after a short wait, or not at all."""

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
"""Callers whose rate is remembered at once; the one that was seen longest ago is forgotten first."""


IN_TIME: Final = 0.75
"""Of the time that requests may wait: who is likely to wait longer is not let in."""
REFUSALS_PER_SECOND: Final = 500
"""If there are more, callers are told to wait longer: each takes a tenth of a millisecond at most."""
MAX_RETRY_SECONDS: Final = 10
TURN_WEIGHT: Final = 0.05
"""Of the last turn in their mean."""


class Admission:
    """So many requests at once, so many that wait for a place, in order and not for long.

    A pod that takes more than it can answer answers ever less: what is refused at once costs little and is tried
    elsewhere, what waits costs memory only.
    """

    def __init__(self, counters: Counters, max_concurrent: int, max_queued: int, queue_seconds: float) -> None:
        self._counters = counters
        self.concurrency = ConcurrencyLimit(max_concurrent, lambda: counters.in_flight, self._hand_out)
        self._max_queued = max_queued
        self._queue_seconds = queue_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.retry_seconds = 1
        """What refused callers are told to wait."""
        self._refusals, self._refusals_since = 0, 0.0
        self._coming = 0
        """Let in at this turn of the event loop, but not begun."""
        self._turn_seconds = 0.0
        """How long it takes, while requests wait, until the next one's turn comes; 0: not known."""
        self._last_turn: float | None = None

    @property
    def full(self) -> bool:
        """A further request would be refused at once: there is no room for it, or its turn would come too late. To
        wait for nothing costs several times as much as to be refused."""
        free = max(0, self.concurrency.limit - self._counters.in_flight)
        if self._coming < free:
            return False
        ahead = self._counters.queued + self._coming - free
        return ahead >= self._max_queued or ahead * self._turn_seconds > IN_TIME * self._queue_seconds

    def refuses(self) -> bool:
        """Whether a request whose head was read just now is refused; if not, its task will ask for a place.

        The event loop reads from all connections before it goes on with the tasks, so those that were let in at this
        turn count as if they were here: else a whole burst would pass, to be refused at a much higher price.
        """
        if self.full:
            self._note_refusal(time.monotonic())
            return True
        if self._coming == 0:
            asyncio.get_running_loop().call_soon(self._all_came)
        self._coming += 1
        return False

    def _note_refusal(self, now: float) -> None:
        self._refusals += 1
        if (since := now - self._refusals_since) >= 1.0:
            crowd = self._refusals / since / REFUSALS_PER_SECOND * self.retry_seconds
            self.retry_seconds = min(MAX_RETRY_SECONDS, max(1, math.ceil(crowd)))
            self._refusals, self._refusals_since = 0, now

    def _all_came(self) -> None:
        """The tasks of those who were let in run right after this."""
        self._coming = 0

    async def __aenter__(self) -> None:
        """Take a place. Raises Overloaded."""
        self.concurrency.watch()
        if self._counters.in_flight < self.concurrency.limit:  # then nobody waits: places are handed out
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
        """Give the places that are free to those who wait longest."""
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
                await self.__aexit__()  # it came at the very moment
            else:
                with contextlib.suppress(ValueError):  # passed over already
                    self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise Overloaded(self.retry_seconds) from None
            raise
        finally:
            self._counters.queued -= 1


class RateLimiter:
    """A token bucket for each caller: a minute's requests at a steady rate, `burst` of them at once."""

    def __init__(self, per_minute: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By the caller's name: what is left, and when it was counted."""

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, caller: str) -> None:
        """One request. Raises RateLimited, with the time after which there is one again."""
        now = self._clock()
        left, at = self._buckets.get(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_second)
        if left < 1:
            raise RateLimited(math.ceil((1 - left) / self._per_second))
        self._buckets[caller] = (left - 1, now)
        self._buckets.move_to_end(caller)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
