"""How many requests at once the processor keeps up with, told by whether the event loop runs late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LATE_SECONDS: Final = 0.008
"""Timers that usually come later than this: a turn of the loop takes twice as long, there is too much for one."""
TICK_SECONDS: Final = 0.01
TICKS: Final = 10
"""The limit is set by the median of so many ticks: a single burst, or a pause of the machine, is no standing queue
(CoDel, RFC 8289, looks at delays the same way)."""
LEAST: Final = 32
"""The limit never falls below this, however late the loop runs."""
DOWN: Final = 0.9
UP: Final = 1.1


class ConcurrencyLimit:
    """A limit that falls while the event loop runs late, and rises again up to `most` when it does not.

    Requests beyond what the CPU can process only wait in the event loop, and make the others slower: they evict each
    other's data from its caches. Falls and rises by a factor, so a thousand is reached again within four seconds.
    """

    def __init__(self, most: int, in_flight: Callable[[], int], raised: Callable[[], None]) -> None:
        self.limit = most
        self._most = most
        self._in_flight = in_flight
        self._raised = raised
        """Called when the limit has risen."""
        self._timer: asyncio.TimerHandle | None = None
        self._delays: list[float] = []

    def watch(self) -> None:
        """Measure the loop from now on, until it is idle and the limit is at its maximum."""
        if self._timer is None:
            self._delays.clear()
            self._start(asyncio.get_running_loop())

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + TICK_SECONDS
        self._timer = loop.call_at(due, self._tick, loop, due)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._delays.append(loop.time() - due)
        if len(self._delays) >= TICKS:
            self.adjust(sorted(self._delays)[TICKS // 2])
            self._delays.clear()
            if self.limit >= self._most and not self._in_flight():
                self._timer = None
                return
        self._start(loop)

    def adjust(self, delay_seconds: float) -> None:
        """Set the limit by the median delay of the last ticks."""
        if delay_seconds > LATE_SECONDS:
            at_once = min(self.limit, self._in_flight())
            self.limit = min(self._most, max(LEAST, int(at_once * DOWN)))
        elif self.limit < self._most:
            self.limit = min(self._most, int(self.limit * UP) + 1)
            self._raised()
