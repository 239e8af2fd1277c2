"""Rendered prompts without a usage report. A crash reports nothing, so a missing report counts as a failure in time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.series import Series

MAX_UNREPORTED: Final = 50_000
"""Per pod: about 20 MB. Further renders count for no arm, whichever arm they are of."""
MAX_REPORTED: Final = 10_000
"""So many reports are recognized when they come again; about 1 MB."""


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
    """By number. Those with the same settle time settle in the order of their rendering."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, limit: int = MAX_UNREPORTED) -> None:
        self.clock = clock
        self._limit = limit
        self._by_settle_seconds: dict[int, OrderedDict[int, UnreportedRender]] = {}
        self._settle_seconds: dict[int, int] = {}
        """By the render's number."""
        self._reported: OrderedDict[int, None] = OrderedDict()
        """Oldest first."""
        self._made = 0
        self.untracked = 0
        """Renders beyond the limit."""

    def __len__(self) -> int:
        return len(self._settle_seconds)

    def add(self, series: Series, outcome: Outcome, settle_seconds: int) -> int | None:
        """Wait for a render's report; returns its number, None beyond the limit. Its series is kept until it is
        counted."""
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
        """When a waiting render was made, on the clock; None if it does not wait."""
        settle_seconds = self._settle_seconds.get(number)
        return None if settle_seconds is None else self._by_settle_seconds[settle_seconds][number].since

    def pop(self, number: int) -> UnreportedRender | None:
        """Remove the render; None if it was counted already."""
        settle_seconds = self._settle_seconds.pop(number, None)
        return None if settle_seconds is None else self._by_settle_seconds[settle_seconds].pop(number)

    def report(self, number: int) -> UnreportedRender | None:
        """Remove the render whose report came, and remember that it came."""
        if (render := self.pop(number)) is not None:
            self._reported[number] = None
            if len(self._reported) > MAX_REPORTED:
                self._reported.popitem(last=False)
        return render

    def was_reported(self, number: int) -> bool:
        """Whether the report came, as far as that is remembered."""
        return number in self._reported

    def settle(self) -> None:
        """Count renders whose time is over as failures of their arms."""
        now = self.clock()
        for settle_seconds, waiting in list(self._by_settle_seconds.items()):
            while waiting:
                number, render = next(iter(waiting.items()))
                if now - render.since < settle_seconds:
                    break
                self.pop(number)
                render.outcome.error_type = "unreported"
                render.outcome.over(float(settle_seconds))
                render.count()
            if not waiting:
                del self._by_settle_seconds[settle_seconds]
