"""A deterministic traffic: the same counts in every interval, with what a test wants changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from promptrollout.api.rollout import Snapshot
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.simulation.traffic import Strata


def always(_k: int) -> bool:
    return True


def never(_k: int) -> bool:
    return False


def apart(_k: int) -> float | None:
    return None


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
    answers: Callable[[int], bool] = always
    provider_down: Callable[[int], bool] = never
    both: Callable[[int], float | None] = apart
    """Bad share of both arms in an interval, whatever `rates` says."""
    surplus: float = 1.0
    """Users on the canary over those that its weight asks for. Above 1 counts carry shards."""
    asked: list[tuple[int, int]] = field(default_factory=list)

    def counts(self, k: int, weight: int) -> Strata:
        self.asked.append((k, weight))
        canary = min(1, self.surplus * weight / 100) * self.requests
        stable = self.requests - canary
        found: dict[str, tuple[Counts, ...]] = {}
        for name, (bad, good) in self.rates.items():
            common = self.both(k)
            share = common if common is not None else bad if k >= self.since else good
            spared = common if common is not None else good
            found[name] = (Counts(self.rate(canary, share), self.rate(stable, spared)),)
        for name, (dear, cheap) in self.costs.items():
            mean = dear if k >= self.since else cheap
            found[name] = (Counts(spread(canary, mean), spread(stable, cheap)),)
        return found

    def rate(self, n: float, share: float) -> Arm:
        shards = ((n / 32, n * share / 32),) * 32 if self.surplus > 1 else ()
        return Arm(n, n * share, shards=shards)

    def available(self, k: int) -> bool:
        return self.answers(k)

    def unreachable(self, k: int) -> bool:
        return self.provider_down(k)


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
