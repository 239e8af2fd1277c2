"""What a simulated rollout meets: the counts of both arms, interval by interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from promptrollout.api.slo import Objective
from promptrollout.engine.statistics.evidence import Counts

Strata = Mapping[str, tuple[Counts, ...]]
"""By objective: parts of one interval that are compared separately. Most signals have one."""


class Traffic(Protocol):
    """Intervals are numbered from the one in which the canary is first exposed, and asked for once each, in order."""

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

    def unreachable(self, k: int) -> bool:
        """True: only the canary's provider is down during interval `k`."""


@dataclass(frozen=True, slots=True)
class ByObjective:
    """Traffic that counts by signal, given to the objectives that measure these signals."""

    drawn: Traffic
    objectives: Sequence[Objective]

    @property
    def interval_seconds(self) -> int:
        return self.drawn.interval_seconds

    @property
    def intervals(self) -> int:
        return self.drawn.intervals

    def counts(self, k: int, weight: int) -> Strata:
        found = self.drawn.counts(k, weight)
        return {o.name: found[o.signal] for o in self.objectives if o.signal in found}

    def available(self, k: int) -> bool:
        return self.drawn.available(k)

    def unreachable(self, k: int) -> bool:
        return self.drawn.unreachable(k)
