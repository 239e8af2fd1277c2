"""A deterministic traffic: the same counts in every interval, with what a test wants changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from promptrollout.api.rollout import Snapshot
from promptrollout.engine.evidence import Arm, Counts
from promptrollout.simulation.traffic import Strata


def certain(_k: int) -> bool:
    return True


@dataclass
class Steady:
    """`requests` an interval; `rates` by objective: bad share on canary and stable; `costs`: means in USD."""

    interval_seconds: int = 30
    intervals: int = 240
    requests: float = 600
    rates: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"errors": (0.01, 0.01)})
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    since: int = 0
    """Before this interval the canary is as good as stable."""
    answers: Callable[[int], bool] = certain
    asked: list[tuple[int, int]] = field(default_factory=list)

    def counts(self, k: int, weight: int) -> Strata:
        self.asked.append((k, weight))
        canary, stable = self.requests * weight / 100, self.requests * (100 - weight) / 100
        found: dict[str, tuple[Counts, ...]] = {}
        for name, (bad, good) in self.rates.items():
            share = bad if k >= self.since else good
            found[name] = (Counts.of(canary, canary * share, stable, stable * good),)
        for name, (dear, cheap) in self.costs.items():
            mean = dear if k >= self.since else cheap
            found[name] = (Counts(spread(canary, mean), spread(stable, cheap)),)
        return found

    def available(self, k: int) -> bool:
        return self.answers(k)


def spread(n: float, mean: float) -> Arm:
    return Arm(n, n * mean, n * mean * mean * 1.25)


def rules(**fields: object) -> Snapshot:
    base = {
        "steps": [{"weight": 10, "minDurationSeconds": 600}, {"weight": 50, "minDurationSeconds": 1200}],
        "objectives": [
            {"name": "errors", "signal": "ErrorRate", "versusStable": {"maxIncreasePercent": 50}, "minSamples": 100}
        ],
        "intervalSeconds": 30,
        "bakeSeconds": 0,
        "maxDurationSeconds": 86_400,
        "onTimeout": "Hold",
        "onInsufficientTraffic": "RequireApproval",
        "analyse": True,
    }
    return Snapshot.model_validate(base | fields)
