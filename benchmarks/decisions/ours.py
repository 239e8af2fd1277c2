"""Our rule: the operator's own `plan`, on a virtual clock."""

from bisect import bisect_right
from collections.abc import Mapping

from benchmarks.decisions.case import Case
from benchmarks.decisions.replay import Ended, Outcome
from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.api.strategy import Step
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.simulation.draws import Draws
from promptrollout.simulation.traffic import ByObjective
from promptrollout.simulation.world import simulate

ENDED: Mapping[str, Ended] = {"Promoted": "promoted", "RolledBack": "rolled back", "Held": "open"}
DECISIONS = ("ObjectiveBreached", "StepCompleted", "RolloutCompleted")
"""Reasons of decisions that rest on evidence."""


def rules_of(case: Case, rollback_above: int | None = None) -> Snapshot:
    """The case as a manifest would say it. `rollback_above` overrides every rollbackAbovePercent. ValueError if the API
    has no such objective."""
    objectives = [Objective.model_validate(objective) for objective in case.objectives]
    if rollback_above is not None:
        change = {"rollback_above_percent": rollback_above}
        objectives = [
            o.model_copy(update={"versus_stable": o.versus_stable and o.versus_stable.model_copy(update=change)})
            for o in objectives
        ]
    return Snapshot(
        steps=[Step(weight=weight, min_duration_seconds=seconds) for weight, seconds in case.ramp],
        objectives=objectives,
        interval_seconds=case.scenario.interval_seconds,
        bake_seconds=0,
        max_duration_seconds=7_776_000,
        on_timeout="Hold",
        on_insufficient_traffic="Hold",
        analyse=True,
    )


class PromptRollout:
    """Not a Rule: it has its own idea of when to look and of what a step needs."""

    def __init__(self, rollback_above: int | None = None) -> None:
        self.rollback_above = rollback_above
        self.name = "ours" if rollback_above is None else f"ours, above {rollback_above} %"

    def can_judge(self, case: Case) -> bool:
        """Whether API and engine know the case's objectives."""
        try:
            for objective in rules_of(case).objectives:
                make_test(objective)
        except (ValueError, KeyError):
            return False
        return True

    def play(self, case: Case, traffic: Draws) -> Outcome:
        rules = rules_of(case, self.rollback_above)
        run = simulate(rules, ByObjective(traffic, rules.objectives))
        width = traffic.interval_seconds
        looks = [moment.seconds // width - 1 for moment in run.timeline if moment.reason in DECISIONS]
        sighted = [
            traffic.reads(k, case.signals) and traffic.available(k) and not traffic.unreachable(k) for k in looks
        ]
        starts = [at for at, _ in run.weights]
        weights = [run.weights[bisect_right(starts, k * width) - 1][1] for k in range(run.seconds // width)]
        return Outcome.of(case, traffic, weights, ENDED[run.outcome], sighted.count(False))
