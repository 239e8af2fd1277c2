"""What a canary cost its users: bad requests, and how many of them stable would have avoided."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from promptrollout.simulation.traffic import Strata


@dataclass(frozen=True, slots=True)
class Toll:
    """Of one objective. A rate counts bad requests; a mean sums its values, USD for a cost."""

    requests: float = 0.0
    total: float = 0.0
    """Of the canary."""
    excess: float = 0.0
    """`total` minus what stable's mean of the same interval would have made of the canary's requests."""


def tolls(met: Iterable[Strata]) -> Mapping[str, Toll]:
    """Summed over intervals in order. Where stable has no requests any more, its last known mean stands for it."""
    found: dict[str, Toll] = {}
    means: dict[tuple[str, int], float] = {}
    for interval in met:
        for name, strata in interval.items():
            toll = found.get(name, Toll())
            for stratum, counts in enumerate(strata):
                canary, stable = counts.canary, counts.stable
                if stable.n > 0:
                    means[name, stratum] = stable.total / stable.n
                expected = canary.n * means[name, stratum] if (name, stratum) in means else canary.total
                toll = Toll(toll.requests + canary.n, toll.total + canary.total, toll.excess + canary.total - expected)
            found[name] = toll
    return found
