"""No step passes while what its own samples say is beyond a bound, although nothing is proven yet."""

import pytest

from promptrollout.api.rollout import ObjectiveStatus
from promptrollout.api.slo import Objective
from promptrollout.engine.lifecycle.analysis import missing_evidence
from promptrollout.engine.lifecycle.draft import Draft
from promptrollout.engine.lifecycle.messages import missing_text
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.judgement import Levels
from promptrollout.engine.statistics.evidence import Arm, Counts
from tests.world import COST, ERRORS, World, snapshot, started, version

V2 = version("v2")
LEVELS = Levels(breach=0.05, promote=0.05)
MAXIMUM = Objective.model_validate({"name": "errors", "signal": "ErrorRate", "max": "0.1", "minSamples": 20})
SCORES = Objective.model_validate(
    {
        "name": "scores",
        "signal": "JudgeScore",
        "dimension": "tone",
        "min": "3.5",
        "versusStable": {"maxDecrease": "0.1"},
        "minSamples": 20,
    }
)


def row(world: World) -> ObjectiveStatus:
    return world.status.analysis[0]


def missing(world: World) -> list[str]:
    return [missing_text(each) for each in missing_evidence(Draft(world.facts(), world.now))]


def test_a_step_waits_while_its_estimate_is_beyond_and_passes_once_it_is_not() -> None:
    """Five of 100 against 1 % is no proof of more than 1.1 %, and more than 1.5 %."""
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"weight": 50}), requests=200.0)
    world.error_rate = {V2.digest: 0.05}
    world.tick(5)
    says = "5 % of 100 in this step, more than 50 % above the 1 % on stable"
    assert row(world).verdict == "NoEvidence"
    assert row(world).step_beyond_bound == says
    assert missing(world) == [f"errors: {says}"]
    assert f"waiting for errors: {says}" in world.status.message
    assert world.at == ("Stepping", 10)
    world.restart()
    world.settle()
    assert world.at == ("Stepping", 10)
    world.error_rate = {V2.digest: 0.0}
    waited = 0
    while world.at == ("Stepping", 10):
        assert row(world).step_beyond_bound
        world.tick()
        waited += 1
    assert waited == 9, "(5 - 1)/n is 1.5 % at 267, and an interval has 20"
    assert world.at == ("Stepping", 50)
    world.tick()
    assert row(world).step_beyond_bound is None


def test_a_person_may_pass_it_and_the_next_step_begins_without_its_samples() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"weight": 50}), requests=200.0)
    world.error_rate = {V2.digest: 0.05}
    world.tick(5)
    world.tell("promote")
    assert world.at == ("Stepping", 10), "a person who only skips the time still waits for the evidence"
    assert world.events[-1] == "ApprovalRequired"
    assert row(world).step_beyond_bound
    world.error_rate = {}
    world.tick()
    world.tell("promote")
    world.tick(2)
    assert world.at == ("Stepping", 50)
    assert row(world).step_beyond_bound is None


@pytest.mark.parametrize(
    ("canary", "stable", "says"),
    [
        ((39, 9), (300, 0), "23 % of 39 in this step, its maximum is 10 %"),
        ((39, 4), (300, 3), ""),
        ((0, 0), (300, 90), ""),
        ((100, 90), (0, 0), "90 % of 100 in this step, its maximum is 10 %"),
        ((10, 2), (90, 0), ""),
        ((10, 3), (90, 0), "30 % of 10 in this step, its maximum is 10 %"),
    ],
)
def test_one_bad_request_fewer_than_there_were_must_be_within_the_maximum(
    canary: tuple[int, int], stable: tuple[int, int], says: str
) -> None:
    """10 % of few requests is above 10 % by chance in nearly half of all healthy steps."""
    test = make_test(MAXIMUM)
    state = test.observe(test.start(), (Counts.of(*canary, *stable),), promotable=True)
    assert test.judge(state, LEVELS).beyond == says


@pytest.mark.parametrize(
    ("canary", "stable", "says"),
    [
        ((400, 8), (400, 4), "2 % of 400 in this step, more than 50 % above the 1 % on stable"),
        ((400, 7), (400, 4), ""),
        ((400, 3), (400, 0), ""),
        ((400, 4), (400, 0), "1 % of 400 in this step, more than 50 % above the 0 % on stable"),
        ((400, 400), (0, 0), ""),
    ],
)
def test_and_within_the_margin_or_negligible(canary: tuple[int, int], stable: tuple[int, int], says: str) -> None:
    """6/400 is 1.5 times 4/400; 2/400 is the negligible 0.5 %. Without stable there is no margin."""
    test = make_test(ERRORS)
    state = test.observe(test.start(), (Counts.of(*canary, *stable),), promotable=True)
    assert test.judge(state, LEVELS).beyond == says


def values(n: float, mean: float, deviation: float) -> Arm:
    return Arm(n, n * mean, n * (mean * mean + deviation * deviation))


@pytest.mark.parametrize(
    ("objective", "means", "deviation", "says"),
    [
        (COST, (0.0026, 0.002), 0.002, "$0.00260 of 100 in this step, more than 10 % above the $0.00200 on stable"),
        (COST, (0.0022, 0.002), 0.002, ""),
        (SCORES, (3.0, 4.0), 0.8, "3 of 100 in this step, its minimum is 3.5"),
        (SCORES, (3.7, 4.0), 0.8, "3.7 of 100 in this step, more than 0.1 below the 4 on stable"),
        (SCORES, (3.88, 4.0), 0.8, ""),
    ],
)
def test_a_mean_must_be_within_half_a_standard_error(
    objective: Objective, means: tuple[float, float], deviation: float, says: str
) -> None:
    test = make_test(objective)
    state = test.observe(test.start(), (Counts(values(0, 0, 0), values(300, means[1], deviation)),), promotable=False)
    for _ in range(2):
        counts = Counts(values(50, means[0], deviation), values(450, means[1], deviation))
        state = test.observe(state, (counts,), promotable=True)
    assert test.judge(state, LEVELS).beyond == says
    assert test.judge(test.new_step(state), LEVELS).beyond == ""
