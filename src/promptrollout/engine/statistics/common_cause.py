"""Is stable above an absolute bound as well? Then the prompt is not the cause, and the bound cannot judge it.

Suspicion is the mean of stable's CUSUMs against the bound (Page 1954), one per alternative: its recent evidence of
being above, never below 1. (The best alternative of each interval would always gain: at little traffic that alone
suspended the bound for good.) It looks at stable's counts alone, so choosing by it which intervals count against the
canary leaves the canary's evidence valid; a wrong suspicion costs time, never a false alarm.
"""

import math
from array import array
from collections.abc import Iterable

from promptrollout.engine.statistics.logspace import log_mix

Cusums = tuple[float, ...]
"""ln per alternative, each at least 0, in single precision as in a checkpoint."""

SUSPECT = math.log(3)
"""From here on an interval is left out of the canary's sums. Stable at half of the bound is here in some 2 % of the
intervals."""
COMMON = math.log(20)
"""From here on people are told, and the weight may be reduced."""
CAP = math.log(1000)
"""Keeps an hour of trouble from casting suspicion for a day."""
FADING = 0.8
"""Suspicion left after an interval without any request on stable, where nothing can show a common cause."""

MOST_PER_INTERVAL = 2.0
"""Cap on the canary's ln e of one interval against an absolute bound: it takes three intervals at least, so that stable
has time to show that it is above too. A smaller bet is still a bet, so it is valid."""


def cusums_after(cusums: Cusums, stable_requests: float, gains: Iterable[float]) -> Cusums:
    """After one interval; `gains` are stable's ln e-values of being above the bound in it, per alternative."""
    if stable_requests <= 0:
        return tuple(array("f", [x * FADING for x in cusums]))
    return tuple(array("f", [min(max(x + gain, 0.0), CAP) for x, gain in zip(cusums, gains, strict=True)]))


def suspicion_of(cusums: Cusums) -> float:
    """ln of the mean over the alternatives."""
    return log_mix(cusums, (1 / len(cusums),) * len(cusums))


def is_common(suspicion: float, stable_excess: float) -> bool:
    """Whether an interval is left out of the canary's sums: stable is beyond the bound in it, or has been lately."""
    return suspicion >= SUSPECT or stable_excess > 0
