"""How many requests at once the processor keeps up with, told by whether the event loop runs late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LATE_SECONDS: Final = 0.008
"""Timers that usually come later than this: a turn of the loop takes twice as long, there is too much for one."""
TICK_SECONDS: Final = 0.01
TICKS: Final = 10
"""Are looked at together, by their median: a single burst, or a pause of the machine, is no standing queue (which is
what CoDel, RFC 8289, asks of a delay too)."""
LEAST: Final = 32
"""So many may be under way, however late the loop runs."""
DOWN: Final = 0.9
UP: Final = 1.1


class ConcurrencyLimit:
    """A limit that falls while the loop runs late, and rises again up to `most` when it does not.

    What is under way beyond what the processor manages only waits in the event loop, and makes the others dearer: they
    push each other out of its caches. Multiplicative both ways, so a thousand is reached again within four seconds.
    """

    def __init__(self, most: int, in_flight: Callable[[], int], raised: Callable[[], None]) -> None:
        self.limit = most
        self._most = most
        self._in_flight = in_flight
        self._raised = raised
        """Called when more may be taken."""
        self._timer: asyncio.TimerHandle | None = None
        self._delays: list[float] = []

    def watch(self) -> None:
        """Look at the loop from now on, until it is idle and nothing is limited."""
        if self._timer is None:
            self._delays.clear()
            self._start(asyncio.get_running_loop())

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + TICK_SECONDS
        self._timer = loop.call_at(due, self._tick, loop, due)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._delays.append(loop.time() - due)
        if len(self._delays) >= TICKS:
            self.look(sorted(self._delays)[TICKS // 2])
            self._delays.clear()
            if self.limit >= self._most and not self._in_flight():
                self._timer = None
                return
        self._start(loop)

    def look(self, delay: float) -> None:
        """Set the limit by the usual delay (seconds) of some ticks."""
        if delay > LATE_SECONDS:
            at_once = min(self.limit, self._in_flight())
            self.limit = min(self._most, max(LEAST, int(at_once * DOWN)))
        elif self.limit < self._most:
            self.limit = min(self._most, int(self.limit * UP) + 1)
            self._raised()
