"""All counters of a pod: the series of the versions that are or were served, and what the process counts of itself."""

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
"""After a version retires: several scrapes, so that its last increments are seen."""
ROLLOUTS_WITH_SHARDS = 64
"""At once; a page of metrics must stay one that can be scraped."""

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
        """A label of every series: a pod that two jobs scrape shows the same counters twice, and who reads them must
        be able to tell that from two pods. The scrape's own labels (job, instance) cannot say it."""
        self.in_flight_file = InFlightFile()
        self._series: dict[Labels, Series] = {}
        self._withheld: dict[tuple[str, str], Sequence[Compared]] = {}
        """By rollout uid and name, in the order in which their canaries were loaded: whose shards find no place."""
        self.unassigned: Counter[tuple[str, str]] = Counter()
        """By rollout uid and name."""
        self.diverted: Counter[tuple[str, str]] = Counter()
        self.rejected: Counter[str] = Counter()
        """Requests answered with a caller's error, by its code (a fixed set)."""
        self.swaps = 0
        self.refused: Counter[str] = Counter()
        self.votes_not_counted: Counter[str] = Counter()
        """By why (a fixed set)."""
        self.answers_not_judged: Counter[str] = Counter()
        """Against their output schema, by why (a fixed set)."""
        self.disk_errors: Counter[str] = Counter()
        self.disconnects = 0
        self.retries: Counter[str] = Counter()
        """Further tries of calls, by provider."""
        self.in_flight = 0
        self.queued = 0
        """Requests that wait for a place among those."""

    def series(
        self, uid: str, rollout: str, version: str, variant: Variant, model: str, edges_seconds: Iterable[float] = ()
    ) -> Series:
        """The counters of these labels; the same ones go on counting where a version comes back in time."""
        labels = (uid, rollout, version, variant, model)
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = Series(labels)
        found.add_edges(edges_seconds)
        found.retired_at = None
        return found

    def rollout_loaded(self, uid: str, rollout: str, used: Sequence[Series], compared: Sequence[Compared] = ()) -> None:
        """A configuration was swapped in: what it does not use of this rollout retires, shards too where no arms are
        compared."""
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
        """Begin to count by shards whatever finds a place, and go on with what has one."""
        placed = {labels[:2] for labels, series in self._series.items() if series.shards is not None}
        for rollout, arms in list(self._withheld.items()):
            if rollout in placed or len(placed) < ROLLOUTS_WITH_SHARDS:
                placed.add(rollout)
                for arm in arms:
                    arm.series.compare(arm.edges_seconds, arm.shard_metrics)
                del self._withheld[rollout]

    @property
    def withheld(self) -> Collection[tuple[str, str]]:
        """Rollouts, by uid and name, that have a canary, but no shards for want of a place."""
        return self._withheld.keys()

    def rollout_gone(self, uid: str, rollout: str) -> None:
        """The rollout is served no more."""
        self.rollout_loaded(uid, rollout, ())
        del self.unassigned[uid, rollout], self.diverted[uid, rollout]

    def live(self) -> list[Series]:
        """The series to export; drops what retired long enough ago, series only with nothing under way. Places that
        become free so go to the shards that waited for one."""
        limit = self._clock() - SECONDS_KEPT
        for labels, series in list(self._series.items()):
            if series.shards and series.shards.retired_at is not None and series.shards.retired_at < limit:
                series.shards = None
            if series.retired_at is not None and series.retired_at < limit and not series.in_flight:
                del self._series[labels]
        self._place_shards()
        return list(self._series.values())
