"""Run cases: draw each run's traffic once, let every rule meet it, and sum up what they made of it."""

import gc
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.decisions.case import Case, read_cases
from benchmarks.decisions.ours import PromptRollout
from benchmarks.decisions.replay import Outcome, replay
from benchmarks.decisions.rules import classical
from promptrollout.simulation.draws import draw

SEED = 20_261_125
OURS = PromptRollout()
NO_TOLERANCE = PromptRollout(rollback_above=0)
"""What can be compared with an oracle: both test whether the canary is worse at all."""
CHUNK = 20
"""Runs handed to a process at once."""


@dataclass(frozen=True, slots=True)
class Job:
    case: str
    runs: range
    others: bool
    """Other rules than ours, too."""
    rule: str
    """Part of the names of the rules to run; empty for all."""


def _collect_seldom() -> None:
    """Runs make many small tuples and hardly a cycle: looking for some took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@cache
def _cases() -> Mapping[str, Case]:
    return read_cases()


def play(job: Job) -> dict[str, list[Outcome]]:
    """Outcomes by rule. A run's traffic depends on the case's name and the run's number alone."""
    case, found = _cases()[job.case], defaultdict[str, list[Outcome]](list)
    ours = [OURS, NO_TOLERANCE] if case.compares_with_oracle else [OURS]
    for run in job.runs:
        rng = np.random.default_rng([SEED, zlib.crc32(case.name.encode()), run])
        others = classical(case, rng) if job.others else []
        weights = {weight for ramp in (case.ramp, *(rule.ramp or () for rule in others)) for weight, _ in ramp}
        traffic = draw(case.scenario, rng, sorted(weights))
        for ourselves in ours:
            if job.rule in ourselves.name and ourselves.can_judge(case):
                found[ourselves.name].append(ourselves.play(case, traffic))
        for rule in others:
            if job.rule in rule.name:
                found[rule.name].append(replay(rule, case, traffic))
    return found


def run_all(
    names: Sequence[str], *, runs: Mapping[str, int], others: Mapping[str, int], rule: str = "", processes: int
) -> Iterator[tuple[str, dict[str, list[Outcome]]]]:
    """Outcomes by case and rule, case by case; other rules than ours meet the first `others` of its runs."""
    jobs = [
        Job(name, range(start, min(start + CHUNK, runs[name])), start < others[name], rule)
        for name in names
        for start in range(0, runs[name], CHUNK)
    ]
    waiting = {name: -(-runs[name] // CHUNK) for name in names}
    found: dict[str, dict[str, list[Outcome]]] = {name: defaultdict(list) for name in names}
    with ProcessPoolExecutor(processes, initializer=_collect_seldom) as pool:
        for job, outcomes in zip(jobs, pool.map(play, jobs), strict=True):
            for name, played in outcomes.items():
                found[job.case][name] += played
            waiting[job.case] -= 1
            if waiting[job.case] == 0:
                yield job.case, found.pop(job.case)


# ---------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class Figures:
    """One rule in one case. Shares are of runs; requests and excess of those that were rolled back, the time until
    promotion of all others."""

    runs: int
    rolled_back: float
    rolled_back_low: float
    rolled_back_high: float
    promoted: float
    promoted_high: float
    requests_mean: float | None
    """If every run was rolled back."""
    requests_median: float | None
    requests_p90: float | None
    excess_median: float | None
    excess_p90: float | None
    promotion_seconds_median: float | None
    promotion_seconds_p90: float | None
    promotion_requests_median: float | None
    blind_decisions: int


def figures(outcomes: Sequence[Outcome]) -> Figures:
    back = [outcome for outcome in outcomes if outcome.ended == "rolled back"]
    promoted = [outcome for outcome in outcomes if outcome.ended == "promoted"]
    waits = [outcome.seconds if outcome.ended == "promoted" else math.inf for outcome in outcomes]
    waits = [wait for wait, outcome in zip(waits, outcomes, strict=True) if outcome.ended in ("promoted", "open")]
    low, high = wilson(len(back), len(outcomes))
    return Figures(
        runs=len(outcomes),
        rolled_back=len(back) / len(outcomes),
        rolled_back_low=low,
        rolled_back_high=high,
        promoted=len(promoted) / len(outcomes),
        promoted_high=wilson(len(promoted), len(outcomes))[1],
        requests_mean=float(np.mean([o.requests for o in back])) if len(back) == len(outcomes) else None,
        requests_median=quantile([o.requests for o in back], 0.5),
        requests_p90=quantile([o.requests for o in back], 0.9),
        excess_median=quantile([o.excess for o in back], 0.5),
        excess_p90=quantile([o.excess for o in back], 0.9),
        promotion_seconds_median=quantile(waits, 0.5),
        promotion_seconds_p90=quantile(waits, 0.9),
        promotion_requests_median=quantile([o.requests for o in promoted], 0.5),
        blind_decisions=sum(o.blind_decisions for o in outcomes),
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """None without values, and if the runs ended before it."""
    found = float(np.quantile(values, share, method="inverted_cdf")) if values else math.inf
    return found if math.isfinite(found) else None


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)
