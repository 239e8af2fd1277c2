"""The share of requests without a stickiness key over the last minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_SLICES: Final = 6
_SLICE_SECONDS: Final = 10.0


class ShareWindow:
    """A ring of ten-second slices."""

    __slots__ = ("_clock", "_keyless", "_slice", "_total")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = [0] * _SLICES
        self._keyless = [0] * _SLICES
        self._slice = int(clock() / _SLICE_SECONDS)

    def record(self, keyless: bool) -> None:
        """Count a request."""
        index = self._turn()
        self._total[index] += 1
        self._keyless[index] += keyless

    def share_percent(self) -> int:
        """Rounded up, so that a single request shows; 0 without requests."""
        self._turn()
        total = sum(self._total)
        return -(-100 * sum(self._keyless) // total) if total else 0

    def _turn(self) -> int:
        """Empty the slices that are over; returns the index of the current one."""
        now = int(self._clock() / _SLICE_SECONDS)
        for passed in range(self._slice + 1, min(now, self._slice + _SLICES) + 1):
            self._total[passed % _SLICES] = self._keyless[passed % _SLICES] = 0
        self._slice = max(now, self._slice)
        return self._slice % _SLICES
