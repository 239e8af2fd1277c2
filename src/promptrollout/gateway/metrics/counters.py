"""All counters of a pod: the series of the versions that it serves or served, and the process's own."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from promptrollout.gateway.assignment.assign import Variant
from promptrollout.gateway.metrics.in_flight import InFlightFile
from promptrollout.gateway.metrics.series import Series

SECONDS_KEPT = 120.0
"""A retired version's series are kept for several scrapes, so that its last increments are seen."""
ROLLOUTS_WITH_SHARDS = 64
"""At the same time: the metrics page must stay small enough to be scraped."""

Labels = tuple[str, str, str, Variant, str]


class Compared(NamedTuple):
    """One arm of a rollout with a canary."""

    series: Series
    edges_seconds: Sequence[float]
    shard_metrics: frozenset[str]


class Counters:
    """The pod's counters. Used from the event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.process = secrets.token_hex(4)
        """A label of every series: if two jobs scrape a pod, the same counters appear twice, and a reader must be able
        to tell that from two pods. The scrape's own labels (job, instance) do not show it."""
        self.in_flight_file = InFlightFile()
        self._series: dict[Labels, Series] = {}
        self._withheld: dict[tuple[str, str], Sequence[Compared]] = {}
        """Rollouts without a place for their shards, by uid and name, in the order in which their canaries were
        loaded."""
        self.unassigned: Counter[tuple[str, str]] = Counter()
        """By rollout uid and name."""
        self.diverted: Counter[tuple[str, str]] = Counter()
        self.rejected: Counter[str] = Counter()
        """Requests answered with a caller's error, by its code (a fixed set)."""
        self.swaps = 0
        self.refused: Counter[str] = Counter()
        self.votes_not_counted: Counter[str] = Counter()
        """By reason (a fixed set)."""
        self.answers_not_judged: Counter[str] = Counter()
        """Not checked against their output schema, by reason (a fixed set)."""
        self.disk_errors: Counter[str] = Counter()
        self.disconnects = 0
        self.retries: Counter[str] = Counter()
        """Retries of calls, by provider."""
        self.in_flight = 0
        self.queued = 0
        """Requests that wait for a place."""

    def series(
        self, uid: str, rollout: str, version: str, variant: Variant, model: str, edges_seconds: Iterable[float] = ()
    ) -> Series:
        """The counters of these labels. A version that comes back in time gets its former counters."""
        labels = (uid, rollout, version, variant, model)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Series(labels)
        series.add_edges(edges_seconds)
        series.retired_at = None
        return series

    def rollout_loaded(self, uid: str, rollout: str, used: Sequence[Series], compared: Sequence[Compared] = ()) -> None:
        """A configuration was put in service: retire the rollout's series that it does not use, and shards if no arms
        are compared."""
        self.unassigned[uid, rollout] += 0
        self.diverted[uid, rollout] += 0
        if not compared:
            self._withheld.pop((uid, rollout), None)
        keep = {id(series) for series in used}
        now = self._clock()
        for labels, series in self._series.items():
            outside = labels[3].endswith("-outside") and any(labels[2] == kept.labels[2] for kept in used)
            if labels[1] == rollout and id(series) not in keep and not outside and series.retired_at is None:
                series.retired_at = now
            if labels[1] == rollout and not compared and series.shards and series.shards.retired_at is None:
                series.shards.retired_at = now
        if compared:
            self._withheld[uid, rollout] = compared
            self._place_shards()

    def _place_shards(self) -> None:
        """Start to count by shards where there is a place; rollouts with a place keep it."""
        placed = {labels[:2] for labels, series in self._series.items() if series.shards is not None}
        for rollout, arms in list(self._withheld.items()):
            if rollout in placed or len(placed) < ROLLOUTS_WITH_SHARDS:
                placed.add(rollout)
                for arm in arms:
                    arm.series.compare(arm.edges_seconds, arm.shard_metrics)
                del self._withheld[rollout]

    @property
    def withheld(self) -> Collection[tuple[str, str]]:
        """Rollouts, by uid and name, with a canary but without a place for shards."""
        return self._withheld.keys()

    def rollout_gone(self, uid: str, rollout: str) -> None:
        """The rollout is no longer served."""
        self.rollout_loaded(uid, rollout, ())
        del self.unassigned[uid, rollout], self.diverted[uid, rollout]

    def live(self) -> list[Series]:
        """The series to export. Drops what retired long enough ago, except series with requests in flight. Places that
        become free go to the shards that wait for one."""
        limit = self._clock() - SECONDS_KEPT
        for labels, series in list(self._series.items()):
            if series.shards and series.shards.retired_at is not None and series.shards.retired_at < limit:
                series.shards = None
            if series.retired_at is not None and series.retired_at < limit and not series.in_flight:
                del self._series[labels]
        self._place_shards()
        return list(self._series.values())
