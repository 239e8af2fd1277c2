"""What a simulated rollout meets: the counts of both arms, interval by interval."""

from collections.abc import Mapping
from typing import Protocol

from promptrollout.engine.evidence import Counts

Strata = Mapping[str, tuple[Counts, ...]]
"""By objective: parts of one interval that are compared separately. Most signals have one."""


class Traffic(Protocol):
    """Intervals are numbered from the one in which the canary is first exposed; the same call gives the same answer."""

    @property
    def interval_seconds(self) -> int: ...

    @property
    def intervals(self) -> int:
        """How many there are from the exposure on. The simulation ends with the last."""

    def counts(self, k: int, weight: int) -> Strata:
        """What both arms would show in interval `k` if `weight` percent of the users were on the canary.

        `k` below 0 is the time before the exposure, when there is only stable. No entry: it was not measured.
        """

    def available(self, k: int) -> bool:
        """False: Prometheus does not answer when interval `k` ends. What it recorded can be read later."""
