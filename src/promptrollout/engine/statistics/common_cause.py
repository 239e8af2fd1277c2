"""Is stable above an absolute bound as well? Then the prompt is not the cause, and the bound cannot judge it.

Suspicion is stable's CUSUM against the bound (Page 1954): its recent ln evidence of being above, never below 0. It
looks at stable's counts alone, so choosing by it which intervals count against the canary leaves the canary's evidence
valid; a wrong suspicion costs time, never a false alarm.
"""

import math

SUSPECT = math.log(3)
"""From here on stable counts as above the bound."""
CAP = math.log(1000)
"""Keeps an hour of trouble from casting suspicion for a day."""
FADING = 0.8
"""Suspicion left after an interval without any request on stable, where nothing can show a common cause."""

MOST_PER_INTERVAL = 2.0
"""Cap on the canary's ln e of one interval against an absolute bound: it takes three intervals at least, so that stable
has time to show that it is above too. A smaller bet is still a bet, so it is valid."""


def suspicion_after(suspicion: float, stable_requests: float, gain: float) -> float:
    """After one interval; `gain` is stable's ln e-value of being above the bound in it."""
    if stable_requests <= 0:
        return suspicion * FADING
    return min(max(suspicion + gain, 0.0), CAP)


def is_common(suspicion: float, stable_excess: float) -> bool:
    """Whether an interval is left out of the canary's sums: stable is beyond the bound in it, or has been lately."""
    return suspicion >= SUSPECT or stable_excess > 0
