"""Whether a canary's requests that wait for its provider take the places of all others in this pod.

Places are one pool for all rollouts. A provider that stays silent keeps those of its requests for the whole first-byte
timeout, and a canary of a few percent fills a pod with them.
"""

from __future__ import annotations

from typing import Final

from promptrollout.gateway.metrics.counters import Counters
from promptrollout.llm.providers.circuit import Circuit

LEAST: Final = 4
"""So many requests of a canary may wait in any case."""
TIMES_SLOWER: Final = 3
"""Than stable's must a canary's be: where both wait alike, the pod is too small, and no version is at fault."""


def crowds_out(canary: Circuit, stable: Circuit, counters: Counters, places: int) -> bool:
    """The canary's waiting requests hold half of the places, a quarter at most is free, and each of them waits far
    longer than one of stable's does.

    How long a request waits is, by Little's law, how many wait divided by how many come. So neither a large weight nor
    one caller with most of the requests is held against the canary; where stable is not asked at all, nothing is.
    """
    if canary.under_way < max(LEAST, places // 2) or counters.in_flight * 4 < places * 3:
        return False
    waited, usual = canary.under_way * stable.came_lately, (stable.under_way + 1) * canary.came_lately
    return waited > TIMES_SLOWER * usual
