"""Whether a canary's requests that wait for its provider take the places of all others in this pod.

All rollouts share one pool of places. A silent provider holds those of its requests for the whole first-byte timeout,
so a canary of a few percent can fill a pod.
"""

from __future__ import annotations

from typing import Final

from promptrollout.gateway.metrics.counters import Counters
from promptrollout.llm.providers.circuit import Circuit

LEAST: Final = 4
"""So many requests of a canary may wait in any case."""
TIMES_SLOWER: Final = 3
"""A canary crowds others out only if its requests wait so many times longer than stable's: where both wait as long, the
pod is too small, and no version is at fault."""


def crowds_out(canary: Circuit, stable: Circuit, counters: Counters, places: int) -> bool:
    """Whether the canary's waiting requests hold half of the places, at most a quarter is free, and each of them waits
    far longer than one of stable's.

    How long a request waits is, by Little's law, how many wait divided by how many arrive. So neither a large weight
    nor a caller with most of the requests counts against the canary. If stable gets no requests, nothing does.
    """
    if canary.in_flight < max(LEAST, places // 2) or counters.in_flight * 4 < places * 3:
        return False
    waited, usual = canary.in_flight * stable.recent_requests, (stable.in_flight + 1) * canary.recent_requests
    return waited > TIMES_SLOWER * usual
