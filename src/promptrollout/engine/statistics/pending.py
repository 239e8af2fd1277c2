"""Intervals with hardly a canary request, put together before they are compared.

Both arms are compared within an interval. At little traffic most intervals have no request of the canary's at all, and
stable's requests in them would be lost: at one request a minute and 5 % a total failure took 22 canary requests to be
seen. So neighbours are added up until the canary has a few. How many is chosen by counts of requests, never by their
outcomes, so what is put together is evidence as before.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from promptrollout.engine.statistics.evidence import Arm, Counts

ENOUGH = 4.0
"""Canary requests that end a pending comparison."""
MOST_SECONDS = 3600
"""What is longer ago is not compared: traffic changes with the hour."""


class Pending(NamedTuple):
    """Counts that are not evidence yet, in single precision as in a checkpoint."""

    intervals: float = 0.0
    promotable: float = 0.0
    """1 if they may promote, where none is an outage."""
    outages: float = 0.0
    """Those among them. They end no block: that would be a choice by outcomes, and the bet of a block is not that of
    its parts."""
    rate: float = 0.0
    """Stable's, and the correlation within an interval, as they were known before the first of them: a bet is placed
    before its outcomes are read."""
    rho: float = 0.0
    canary: float = 0.0
    canary_bad: float = 0.0
    stable: float = 0.0
    stable_bad: float = 0.0

    @classmethod
    def begin(cls, rate: float, rho: float, *, promotable: bool) -> Pending:
        return cls(promotable=float(promotable), rate=rate, rho=rho)

    def add(self, counts: Counts, *, outage: bool) -> Pending:
        """After an interval."""
        c, s = counts.canary, counts.stable
        sums = (self.canary + c.n, self.canary_bad + c.total, self.stable + s.n, self.stable_bad + s.total)
        outages = self.outages + outage
        return Pending(*array("f", (self.intervals + 1, self.promotable, outages, self.rate, self.rho, *sums)))

    @property
    def promotes(self) -> bool:
        return bool(self.promotable) and not self.outages

    def is_enough(self, most: int) -> bool:
        """`most`: intervals."""
        return self.canary >= ENOUGH or self.intervals >= most

    @property
    def counts(self) -> Counts:
        return Counts(Arm(self.canary, self.canary_bad), Arm(self.stable, self.stable_bad))

    @classmethod
    def read(cls, singles: Iterator[float]) -> Pending:
        """ValueError if they are not such counts."""
        found = cls(*islice(singles, len(cls._fields)))
        if len(found) < len(cls._fields) or not all(0 <= x < float("inf") for x in found):
            raise ValueError("damaged checkpoint (these are not counts of requests): its evidence restarts")
        return found
