"""How often a version as good as stable reaches 100 % without a person where users stay on theirs, and what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.simulation.advice import either
from promptrollout.simulation.assumed import Assumed, GoodVersion
from promptrollout.simulation.scenario import Users
from promptrollout.simulation.sticky import StickyVersion
from promptrollout.simulation.traffic import Traffic
from promptrollout.simulation.undecidable import Doubt, patience_seconds, weight_steps
from promptrollout.simulation.world import Run, simulate

RUNS = 10
REMEDY_RUNS = 5
"""Of each change that might help: it is named if most of them reach 100 %."""
MOST_INTERVALS = 120
"""Of a run, roughly."""
LONGER, WIDER = (2, 4, 8), (2, 4)
"""Multiples of the last step's time, and of the margins, that are tried."""
_ENDS = {"RequireApproval": "wait for a person", "Hold": "hold", "Rollback": "are rolled back"}


@dataclass(frozen=True, slots=True)
class Unattended:
    """Versions as good as stable, with users who stay on their version. Those that are rolled back by chance do not
    count."""

    users: int
    versions: int
    promoted: int
    """They reach 100 % before `onInsufficientTraffic` applies."""
    missing: tuple[str, ...]
    """The objectives that most of the others have no proof of."""
    remedies: tuple[str, ...]
    """Changes with which most of them reach 100 %."""

    def doubt(self, rules: Snapshot) -> Doubt | None:
        """If most of them do not reach 100 % by themselves."""
        if 2 * self.promoted > self.versions:
            return None
        end = _ENDS[rules.on_insufficient_traffic]
        reason = (
            f"with {self.users:,} users who stay on their version, {self.versions - self.promoted} of {self.versions} "
            f"good versions {end}"
        )
        if self.missing:
            reason += f": too few users to show that {' and '.join(self.missing)} stay within their margins"
        return Doubt("", reason, f"what would help: {either(self.remedies or ('more users',))}")


def unattended(rules: Snapshot, given: Assumed, users: int) -> Unattended | None:
    """None where users do not stay, or nothing is analysed."""
    if rules.stickiness.by == "Request" or not rules.analyse or not weight_steps(rules):
        return None
    who, rules = Users(count=users), _in_long_intervals(rules)
    given = replace(given, interval_seconds=rules.interval_seconds)

    def sticky(these: Snapshot, seed: int) -> Traffic:
        return StickyVersion(np.random.default_rng([4, seed]), these, given, who, _intervals(these))

    runs = [run for run in _runs(rules, sticky, RUNS) if run.outcome != "RolledBack" or _asked(run)]
    promoted = sum(run.outcome == "Promoted" for run in runs)
    held = [run for run in runs if run.outcome != "Promoted"]
    lacking = Counter(row.name for run in held for row in run.rows if row.verdict == "NoEvidence")
    missing = tuple(name for name, count in lacking.most_common() if 2 * count > len(held))
    remedies: tuple[str, ...] = ()
    if 2 * promoted <= len(runs):
        remedies = tuple(_remedies(rules, given, sticky))
    return Unattended(users, len(runs), promoted, missing, remedies)


def _remedies(rules: Snapshot, given: Assumed, sticky: Callable[[Snapshot, int], Traffic]) -> Iterator[str]:
    """Each is tried alone."""

    def independent(these: Snapshot, seed: int) -> Traffic:
        return GoodVersion(np.random.default_rng([5, seed]), these.objectives, given, _intervals(these))

    by_request = rules.stickiness.model_copy(update={"by": "Request", "header": None})
    if _mostly_promoted(rules.model_copy(update={"stickiness": by_request}), independent):
        yield "stickiness.by: Request"
    last = [index for index, step in enumerate(rules.steps) if step.weight is not None][-1]
    for times in LONGER:
        seconds = weight_steps(rules)[-1].seconds * times
        longer = list(rules.steps)
        longer[last] = longer[last].model_copy(update={"min_duration_seconds": seconds})
        if _mostly_promoted(rules.model_copy(update={"steps": longer}), sticky):
            yield f"a last step of {seconds:,} s"
            break
    for times in WIDER:
        if _mostly_promoted(_changed(rules, partial(_widened, times=times)), sticky):
            yield f"margins {times} times as large"
            break
    loose = _changed(rules, lambda o: o.model_copy(update={"advance_on": "NoBreach"}))
    if _mostly_promoted(loose, sticky):
        yield "advanceOn: NoBreach, which promotes what is not shown to be good"


def _widened(objective: Objective, *, times: int) -> Objective:
    versus = objective.versus_stable
    if versus is None:
        return objective
    percent, decrease = versus.max_increase_percent, versus.max_decrease
    wider = {
        "max_increase_percent": None if percent is None else percent * times,
        "max_decrease": None if decrease is None else f"{float(decrease) * times:g}",
    }
    return objective.model_copy(update={"versus_stable": versus.model_copy(update=wider)})


def _changed(rules: Snapshot, change: Callable[[Objective], Objective]) -> Snapshot:
    return rules.model_copy(update={"objectives": [change(objective) for objective in rules.objectives]})


def _mostly_promoted(rules: Snapshot, traffic: Callable[[Snapshot, int], Traffic]) -> bool:
    promoted = others = 0
    for run in _runs(rules, traffic, REMEDY_RUNS):
        promoted, others = promoted + (run.outcome == "Promoted"), others + (run.outcome != "Promoted")
        if 2 * max(promoted, others) > REMEDY_RUNS:
            break
    return promoted > others


def _runs(rules: Snapshot, traffic: Callable[[Snapshot, int], Traffic], count: int) -> Iterator[Run]:
    steps = [step for step in rules.steps if step.pause is None]
    plain = rules.model_copy(update={"steps": steps, "bake_seconds": 0})
    for seed in range(count):
        yield simulate(plain, traffic(plain, seed), coarse=True)


def _intervals(rules: Snapshot) -> int:
    """Until `onInsufficientTraffic` has applied in every step that needed it."""
    return sum(patience_seconds(rules, step) for step in weight_steps(rules)) // rules.interval_seconds


def _in_long_intervals(rules: Snapshot) -> Snapshot:
    """Days are played in fewer and longer intervals, none of them longer than a step."""
    shortest = min(step.seconds for step in weight_steps(rules)) // rules.interval_seconds
    factor = max(1, min(shortest, _intervals(rules) // MOST_INTERVALS))
    return rules.model_copy(update={"interval_seconds": rules.interval_seconds * factor})


def _asked(run: Run) -> bool:
    return run.reason == "InsufficientTraffic"
