"""Find the one incident of a baseline: a stretch that tells nothing about how much an arm fluctuates otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

MOST_SHARE = 0.75
"""Of the baseline, that an incident may last: the rest must show what is usual."""
USUAL = 0.1
"""A shock that is usual: requests with a correlation of .01, for ten intervals (five minutes at the default of 30 s).
What is within three times its standard deviation is kept, else shocks would be taken for incidents: without the largest
of the six that 60 intervals show, their size is underestimated."""
DEVIATIONS = 3.0


class Seen(NamedTuple):
    """One interval of stable alone."""

    n: float
    total: float
    variance: float
    """Of one request, as known then."""
    kurtosis: float


def incident(baseline: Sequence[Seen]) -> range | None:
    """The contiguous intervals whose mean differs most from that of all others, if by more than is usual."""
    count = len(baseline)
    n = [0.0, *accumulate(seen.n for seen in baseline)]
    total = [0.0, *accumulate(seen.total for seen in baseline)]
    if n[-1] <= 0:
        return None
    mean = total[-1] / n[-1]
    excess = [t - mean * m for t, m in zip(total, n, strict=True)]
    found, most = None, 0.0
    for start in range(count):
        n_before, excess_before = n[start], excess[start]
        for end in range(start + 1, min(count, start + int(MOST_SHARE * count)) + 1):
            inside, difference = n[end] - n_before, excess[end] - excess_before
            # what the stretch explains of the variance between intervals, but for a constant factor
            explained = difference * difference
            if explained > most * inside * (n[-1] - inside):
                found, most = range(start, end), explained / (inside * (n[-1] - inside))
    return found if found is not None and _is_unusual(baseline, found) else None


def _is_unusual(baseline: Sequence[Seen], stretch: range) -> bool:
    inside = [baseline[k] for k in stretch]
    others = [seen for k, seen in enumerate(baseline) if k not in stretch]
    n, n_others = sum(seen.n for seen in inside), sum(seen.n for seen in others)
    difference = sum(seen.total for seen in inside) / n - sum(seen.total for seen in others) / n_others
    variance = sum(seen.variance for seen in others) / len(others)
    usual = variance * (1 / n + 1 / n_others + USUAL / len(inside))
    return difference * difference > DEVIATIONS * DEVIATIONS * usual
