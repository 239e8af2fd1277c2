"""Rendered prompts that wait for a report. Crashes do not report themselves: in time, silence is a failure."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.series import Series

MAX_UNREPORTED: Final = 50_000
"""Of a pod: about 20 MB. Further renders are counted for no arm; which ones that are says nothing of the arms."""
MAX_REPORTED: Final = 10_000
"""So many reports are known when they come again; about 1 MB."""


@dataclass(slots=True)
class UnreportedRender:
    """A rendered prompt that waits for its report."""

    series: Series
    outcome: Outcome
    since: float
    """On the clock of UnreportedRenders."""

    def count(self) -> None:
        self.series.in_flight -= 1
        self.series.count(self.outcome)


class UnreportedRenders:
    """By their numbers. Those of one settle time settle in the order in which they came."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, limit: int = MAX_UNREPORTED) -> None:
        self.clock = clock
        self._limit = limit
        self._by_settle_seconds: dict[int, OrderedDict[int, UnreportedRender]] = {}
        self._settle_seconds: dict[int, int] = {}
        """By number."""
        self._reported: OrderedDict[int, None] = OrderedDict()
        """The oldest first."""
        self._made = 0
        self.untracked = 0
        """Renders that found no place."""

    def __len__(self) -> int:
        return len(self._settle_seconds)

    def add(self, series: Series, outcome: Outcome, settle_seconds: int) -> int | None:
        """The number of a render from now on; None without a place for it. Its series is kept until it is counted."""
        if len(self) >= self._limit:
            self.untracked += 1
            return None
        self._made += 1
        series.in_flight += 1
        waiting = self._by_settle_seconds.setdefault(settle_seconds, OrderedDict())
        waiting[self._made] = UnreportedRender(series, outcome, self.clock())
        self._settle_seconds[self._made] = settle_seconds
        return self._made

    def since(self, number: int) -> float | None:
        """When a render that waits was made, on the clock; None of one that does not wait."""
        settle_seconds = self._settle_seconds.get(number)
        return None if settle_seconds is None else self._by_settle_seconds[settle_seconds][number].since

    def take(self, number: int) -> UnreportedRender | None:
        """The render; None if it is counted already."""
        settle_seconds = self._settle_seconds.pop(number, None)
        return None if settle_seconds is None else self._by_settle_seconds[settle_seconds].pop(number)

    def report(self, number: int) -> UnreportedRender | None:
        """Take the render whose report is here, and remember that it was."""
        if (pending := self.take(number)) is not None:
            self._reported[number] = None
            if len(self._reported) > MAX_REPORTED:
                self._reported.popitem(last=False)
        return pending

    def was_reported(self, number: int) -> bool:
        """As far as that is remembered."""
        return number in self._reported

    def settle(self) -> None:
        """Count those whose time is over as failures of their arms."""
        now = self.clock()
        for settle_seconds, waiting in list(self._by_settle_seconds.items()):
            while waiting:
                number, pending = next(iter(waiting.items()))
                if now - pending.since < settle_seconds:
                    break
                self.take(number)
                pending.outcome.error_type = "unreported"
                pending.outcome.over(float(settle_seconds))
                pending.count()
            if not waiting:
                del self._by_settle_seconds[settle_seconds]
