"""One rollout under analysis: what is read for it, and what keeps it from reading."""

from __future__ import annotations

from promptrollout.engine.statistics.evidence import Interval
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.evidence.reader import Reader
from promptrollout.operator.evidence.requests import Query


class Analysis:
    """One rollout under analysis: its reader, what it read and nobody folded in yet, and what keeps it from reading."""

    def __init__(self, key: Key, reader: Reader) -> None:
        self.key = key
        self.reader = reader
        self.intervals: list[Interval] = []
        self.problem = ""
        self.note = ""
        """What keeps some of its objectives from being read, while the others are."""
        self.pause_until = 0.0
        self.asking = False
        """Its queries are under way."""
        self.unreadable_since: float | None = None
        self.failing: dict[Query, str] = {}
        """Its own queries that failed, and why. Not asked again before `failing_until`."""
        self.failing_until = 0.0
        self.failing_pause = 0.0


Group = tuple[Query, int, int, int]
"""Query, end of the window, its length, the interval's."""


def group_of(analysis: Analysis, query: Query, end: int) -> Group:
    return query, end, end - analysis.reader.start_of_window(), analysis.reader.request.interval_seconds
