"""The answer of `promptrollout plan`: what each step can catch, how long a good version takes, what stays undecided."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from promptrollout.api.rollout import Snapshot
from promptrollout.api.strategy import Step
from promptrollout.simulation.advice import never_decided
from promptrollout.simulation.assumed import Assumed, GoodVersion, worse
from promptrollout.simulation.power import Detection
from promptrollout.simulation.sticky import assumed_users
from promptrollout.simulation.unattended import Unattended, unattended
from promptrollout.simulation.undecidable import Doubt, WeightStep, promoted_weight, undecidable, weight_steps
from promptrollout.simulation.world import Run, simulate

GOOD_RUNS = 9
ENOUGH_HELD = 3
"""If this many good versions in a row do not reach 100 %, no more are simulated."""


@dataclass(frozen=True, slots=True)
class StepForecast:
    step: WeightStep
    canary_requests: float
    stable_requests: float
    catches: Mapping[str, float | None]
    """By objective: the smallest value of the canary that is caught by the end of the step; None: not even the
    worst."""


@dataclass(frozen=True, slots=True)
class Forecast:
    steps: tuple[StepForecast, ...]
    bake: StepForecast | None
    """Of a regression that begins with the promotion; None without a holdback."""
    planned_seconds: int
    """Of all steps with a weight together."""
    good_seconds: float
    """Median time of a version as good as stable to its promotion, without pauses for people; infinity if it holds."""
    good_why: str
    """If it holds: what it waits for."""
    person_pauses: int
    sticky: Unattended | None
    """The same with users who stay on their version; None with `stickiness.by: Request`."""
    doubts: tuple[Doubt, ...]


def forecast(rules: Snapshot, given: Assumed, users: int | None = None) -> Forecast:
    """`users`: how many send the requests; None: assumed from their number."""
    seconds, why = good_version(rules, given)
    sticky = unattended(rules, given, assumed_users(given) if users is None else users)
    asks = sticky.doubt(rules) if sticky is not None else None
    return Forecast(
        steps=tuple(_steps(rules, given)),
        bake=bake_forecast(rules, given),
        planned_seconds=sum(step.seconds for step in weight_steps(rules)),
        good_seconds=seconds,
        good_why=why,
        person_pauses=sum(step.pause is not None and step.pause.duration_seconds is None for step in rules.steps),
        sticky=sticky,
        doubts=(*undecidable(rules), *never_decided(rules, given), *([asks] if asks is not None else ())),
    )


def _steps(rules: Snapshot, given: Assumed) -> Iterator[StepForecast]:
    detections = {o.name: Detection(rules, o, given) for o in rules.objectives}
    bases = {o.name: given.baselines[o.name].value for o in rules.objectives}
    for index, step in enumerate(weight_steps(rules)):
        requests = given.requests_per_minute / 60 * step.seconds
        catches: dict[str, float | None] = {}
        for objective in rules.objectives:
            ratio = detections[objective.name].smallest(index)
            catches[objective.name] = None if ratio is None else worse(objective, bases[objective.name], ratio)
        yield StepForecast(step, requests * step.weight / 100, requests * (100 - step.weight) / 100, catches)


def bake_forecast(rules: Snapshot, given: Assumed) -> StepForecast | None:
    """The bake is a step of its own, whose test begins anew."""
    weight = promoted_weight(rules)
    if weight == 100:
        return None
    step = Step(weight=weight, min_duration_seconds=rules.bake_seconds)
    return next(_steps(rules.model_copy(update={"steps": [step]}), given))


def good_version(rules: Snapshot, given: Assumed) -> tuple[float, str]:
    """Median seconds to 100 % (infinity if most hold until maxDurationSeconds), and what one that holds waits for."""
    attended = [step for step in rules.steps if step.pause is None or step.pause.duration_seconds is not None]
    pauses = sum(step.pause.duration_seconds or 0 for step in attended if step.pause is not None)
    plain = rules.model_copy(update={"steps": attended, "bake_seconds": 0})
    # one interval less than maxDurationSeconds: the run ends with what it waits for, not with the end of its time
    intervals = (rules.max_duration_seconds + pauses) // rules.interval_seconds - 1
    runs: list[Run] = []
    for number in range(GOOD_RUNS):
        traffic = GoodVersion(np.random.default_rng([3, number]), rules.objectives, given, intervals)
        runs.append(simulate(plain, traffic, coarse=True))
        if len(runs) == ENOUGH_HELD and all(run.outcome == "Held" for run in runs):
            break
    held = [run.why for run in runs if run.outcome == "Held"]
    # a good version that is rolled back by chance says nothing about the time to 100 %
    times = [run.seconds if run.outcome == "Promoted" else math.inf for run in runs if run.outcome != "RolledBack"]
    return (median(times) if times else math.inf), (held[0] if held else "")
