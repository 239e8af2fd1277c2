"""Many runs in numbers: the chance of each outcome, the time to it, and what the canary cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from promptrollout.simulation.world import Outcome, Run

OUTCOMES: tuple[Outcome, ...] = ("Promoted", "RolledBack", "Held")
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Chance:
    count: int
    share: float
    low: float
    high: float
    """95 % interval of the share."""


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class TollSpread:
    total: Spread
    excess: Spread


@dataclass(frozen=True, slots=True)
class Summary:
    runs: int
    chances: Mapping[Outcome, Chance]
    seconds: Mapping[Outcome, Spread | None]
    canary_requests: Mapping[Outcome, Spread | None]
    tolls: Mapping[str, TollSpread]
    """By objective, over all runs."""
    reasons: Mapping[str, int]
    """How many runs each reason rolled back."""


def summary(runs: Sequence[Run]) -> Summary:
    """At least one run."""

    def spreads(value: Callable[[Run], float]) -> dict[Outcome, Spread | None]:
        by = {o: [value(run) for run in runs if run.outcome == o] for o in OUTCOMES}
        return {outcome: spread(values) if values else None for outcome, values in by.items()}

    reasons: dict[str, int] = {}
    for run in runs:
        if run.outcome == "RolledBack":
            reasons[cause(run)] = reasons.get(cause(run), 0) + 1
    names = list(dict.fromkeys(name for run in runs for name in run.tolls))
    return Summary(
        runs=len(runs),
        chances={o: chance(sum(run.outcome == o for run in runs), len(runs)) for o in OUTCOMES},
        seconds=spreads(lambda run: float(run.seconds)),
        canary_requests=spreads(lambda run: run.canary_requests),
        tolls={
            name: TollSpread(
                spread([run.tolls[name].total for run in runs if name in run.tolls]),
                spread([run.tolls[name].excess for run in runs if name in run.tolls]),
            )
            for name in names
        },
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
    )


def cause(run: Run) -> str:
    """Of a rollback: the objective in breach, or else the decision's reason."""
    breached = next((row.name for row in run.rows if row.verdict == "Breach"), None)
    return breached or run.reason


def chance(count: int, runs: int) -> Chance:
    """Wilson's interval (1927): it does not pretend certainty at 0 and 1."""
    share = count / runs
    centre = (share + _Z**2 / (2 * runs)) / (1 + _Z**2 / runs)
    width = _Z / (1 + _Z**2 / runs) * math.sqrt(share * (1 - share) / runs + (_Z / (2 * runs)) ** 2)
    return Chance(count, share, max(0.0, centre - width), min(1.0, centre + width))


def spread(values: Sequence[float]) -> Spread:
    """Median and 90th percentile: the smallest values that half and nine tenths do not exceed."""
    ordered = sorted(values)
    at = [ordered[max(0, math.ceil(q * len(ordered)) - 1)] for q in (0.5, 0.9)]
    return Spread(*at)
