"""Which units send a large part of a rollout's recent requests, in bounded memory and by hashes only.

All users behind one key (a service account, a proxy, a load test) are one unit, which moves as a whole from one arm to
the other: if it sends a large part of the requests, the arms' figures are mostly its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

SLICES: Final = 10
SLICE_SECONDS: Final = 60.0
_PLACES: Final = 16
"""Units counted in a slice: every unit with more than a sixteenth of its requests is among them."""


class _Slice:
    """Space-saving (Metwally, Agrawal, El Abbadi 2005): a unit without a place replaces the smallest one, and inherits
    its count. `inherited` is that part of its count: without it, a count is never too large."""

    __slots__ = ("counts", "inherited", "total")

    def __init__(self) -> None:
        self.total = 0
        self.counts: dict[int, int] = {}
        self.inherited: dict[int, int] = {}

    def record(self, unit: int) -> None:
        self.total += 1
        counts = self.counts
        if unit in counts:
            counts[unit] += 1
        elif len(counts) < _PLACES:
            counts[unit] = 1
        else:
            smallest = min(counts, key=counts.__getitem__)
            self.inherited.pop(smallest, None)
            self.inherited[unit] = inherited = counts.pop(smallest)
            counts[unit] = inherited + 1


class HeavyUnits:
    """A ring of one-minute slices. Of one salt: with another one, units have other hashes."""

    __slots__ = ("_clock", "_ring", "_slice", "salt")

    def __init__(self, salt: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.salt = salt
        self._clock = clock
        self._ring = [_Slice() for _ in range(SLICES)]
        self._slice = int(clock() / SLICE_SECONDS)

    def record(self, unit: int) -> None:
        """Count a request of the unit with this hash."""
        self._turn().record(unit)

    def total(self) -> int:
        """Requests of the last ten minutes."""
        self._turn()
        return sum(one.total for one in self._ring)

    def heaviest(self, at_most: int) -> list[tuple[int, int]]:
        """The units with the most requests of the last ten minutes, and a lower bound of their number."""
        self._turn()
        requests: Counter[int] = Counter()
        for one in self._ring:
            for unit, count in one.counts.items():
                requests[unit] += count - one.inherited.get(unit, 0)
        return requests.most_common(at_most)

    def _turn(self) -> _Slice:
        """Empty the slices that are over; returns the current one."""
        now = int(self._clock() / SLICE_SECONDS)
        for passed in range(self._slice + 1, min(now, self._slice + SLICES) + 1):
            self._ring[passed % SLICES] = _Slice()
        self._slice = max(now, self._slice)
        return self._ring[self._slice % SLICES]
