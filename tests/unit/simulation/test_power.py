"""`plan`: what it says a step can catch is caught that often, and what it advises helps."""

import math
import re

import numpy as np
import pytest

from promptrollout.api.rollout import Snapshot
from promptrollout.engine.objectives.signals import signal_of
from promptrollout.simulation.advice import never_decided
from promptrollout.simulation.assumed import Assumed, Baseline, assumed, drawn, from_recorded, worse
from promptrollout.simulation.forecast import bake_forecast, forecast
from promptrollout.simulation.power import Detection, seconds_to_pass
from promptrollout.simulation.recorded import Recorded
from promptrollout.simulation.traffic import Strata
from promptrollout.simulation.undecidable import undecidable
from promptrollout.simulation.world import simulate
from tests.unit.simulation.steady import Steady, rules
from tests.unit.simulation.test_recorded import recording

COST = {
    "name": "cost",
    "signal": "CostPerRequest",
    "versusStable": {"maxIncreasePercent": 20},
    "minSamples": 200,
}
JUDGE = {"name": "judge", "signal": "JudgeScore", "dimension": "tone", "versusStable": {"maxDecrease": "0.2"}}


class Worse:
    """Random traffic of a canary that is `ratio` times as bad."""

    def __init__(self, of: Snapshot, given: Assumed, ratio: float, seed: int) -> None:
        self.interval_seconds, self.intervals = of.interval_seconds, 200
        self._objectives, self._given, self._ratio = of.objectives, given, ratio
        self._rng = np.random.default_rng(seed)

    def counts(self, k: int, weight: int) -> Strata:
        found = {}
        for objective in self._objectives:
            n_c, n_s = self._given.samples(objective, self.interval_seconds, weight)
            base = self._given.baselines[objective.name]
            found[objective.name] = tuple(drawn(self._rng, signal_of(objective), base, [n_c], [n_s], self._ratio))
        return found

    def available(self, k: int) -> bool:
        return True

    def unreachable(self, k: int) -> bool:
        return False


@pytest.mark.parametrize("objective", [rules().objectives[0].dump(), COST, JUDGE], ids=["rate", "mean", "less"])
def test_what_a_step_catches_is_caught_by_the_operator_that_often(objective: dict[str, object]) -> None:
    of = rules(objectives=[objective])
    given = assumed(of, 600)
    detection = Detection(of, of.objectives[0], given)
    first, both = detection.smallest(0), detection.smallest(1)
    assert first is not None
    assert both is not None
    assert 1 < both < first, "more evidence catches less"
    runs = [simulate(of, Worse(of, given, first, seed)) for seed in range(100)]
    caught = sum(run.outcome == "RolledBack" and run.seconds <= 600 for run in runs)
    assert 65 <= caught <= 95


def test_the_time_to_pass_is_that_of_the_operator() -> None:
    of = rules(steps=[{"weight": 50, "minDurationSeconds": 30}])
    given = assumed(of, 600)
    said = seconds_to_pass(of, of.objectives[0], given, 50)
    took = sorted(simulate(of, Worse(of, given, 1.0, seed)).seconds for seed in range(31))[15]
    assert said == pytest.approx(took, rel=0.35)


def test_the_time_to_pass_counts_from_the_step_whatever_came_before() -> None:
    steps = [{"weight": 20, "minDurationSeconds": 1200}, {"weight": 50, "minDurationSeconds": 30}]
    of = rules(steps=steps)
    given = assumed(of, 600)
    said = seconds_to_pass(of, of.objectives[0], given, 50)
    assert said > 60
    took = sorted(simulate(of, Worse(of, given, 1.0, seed)).seconds - 1200 for seed in range(31))[15]
    assert said == pytest.approx(took, rel=0.35)


EVERYBODY = [{"weight": 20}, {"weight": 50}, {"pause": {"durationSeconds": 60}}, {"weight": 100}]


def test_the_step_before_everybody_is_the_one_that_needs_proof() -> None:
    zero = COST | {"versusStable": {"maxIncreasePercent": 0}}
    (doubt,) = undecidable(rules(objectives=[zero], steps=EVERYBODY))
    assert doubt.reason.startswith("step 2 needs proof")
    of = rules(steps=EVERYBODY)
    assert list(never_decided(of, assumed(of, 6000))) == []
    (doubt,) = never_decided(of, assumed(of, 100))
    assert doubt.reason.startswith("step 2 (50 %) needs about")
    assert [step.step.last for step in forecast(of, assumed(of, 6000)).steps] == [False, True, False]


def test_proof_is_never_given_where_nobody_is_on_stable() -> None:
    proof = rules().objectives[0].dump() | {"advanceOn": "NonInferior"}
    of = rules(objectives=[proof], steps=[{"weight": 50, "minDurationSeconds": 1200}, {"weight": 100}])
    given = assumed(of, 6000)
    (doubt,) = never_decided(of, given)
    assert "step 2 (100 %) never shows" in doubt.reason
    assert doubt.remedy == "what would help: advanceOn: NoBreach"
    assert math.isinf(forecast(of, given).good_seconds)


def test_a_signal_that_is_compared_from_a_weight_on_is_not_compared_at_100_percent() -> None:
    cached = {"name": "hits", "signal": "CacheHitRate", "versusStable": {"maxDecrease": "0.2"}}
    (doubt,) = undecidable(rules(objectives=[cached], steps=[{"weight": 10}, {"weight": 100}]))
    assert "from 50 % to 99 %" in doubt.reason


def test_more_traffic_catches_less_and_passes_sooner() -> None:
    of = rules(stickiness={"by": "Request"})
    little, much = (forecast(of, assumed(of, rate)) for rate in (300, 6000))
    for step in (0, 1):
        small, large = much.steps[step].catches["errors"], little.steps[step].catches["errors"]
        assert small is not None
        assert large is not None
        assert 0.01 < small < large
    assert much.good_seconds == much.planned_seconds == 1800
    assert little.good_seconds > 1800
    assert not much.doubts
    assert little.steps[1].canary_requests == pytest.approx(3000)


def test_the_bake_sees_what_begins_with_the_promotion_by_the_holdback() -> None:
    def bake(percent: int, requests: float) -> float:
        of = rules(bakeSeconds=3600, holdbackPercent=percent)
        step = bake_forecast(of, assumed(of, requests))
        assert step is not None
        assert (step.step.weight, step.step.seconds) == (100 - percent, 3600)
        assert step.stable_requests == pytest.approx(requests * 60 * percent / 100)
        found = step.catches["errors"]
        assert found is not None
        return found

    assert 0.01 < bake(10, 6000) < bake(5, 6000) < bake(5, 600)
    for without in (rules(bakeSeconds=3600), rules(holdbackPercent=5)):
        assert bake_forecast(without, assumed(without, 6000)) is None


def test_a_version_that_never_arrives_says_what_it_waits_for() -> None:
    of = rules(maxDurationSeconds=4_000)
    found = forecast(of, assumed(of, 2))
    assert math.isinf(found.good_seconds)
    assert "errors" in found.good_why


@pytest.mark.parametrize(
    ("objective", "requests", "pattern", "field"),
    [
        ({}, 60, r"a step of (\d+) s", "step"),
        ({}, 200, r"a margin of (\d+) %", "margin"),
        ({"minSamples": 4000}, 300, r"minSamples: (\d+)", "minSamples"),
        ({"minSamples": 400, "advanceOn": "NoBreach"}, 60, r"a weight of (\d+) %", "weight"),
    ],
)
def test_the_remedy_helps(objective: dict[str, object], requests: float, pattern: str, field: str) -> None:
    base = {"name": "errors", "signal": "ErrorRate", "versusStable": {"maxIncreasePercent": 50}, "minSamples": 100}
    base |= objective
    steps = [{"weight": 20, "minDurationSeconds": 600}]
    of = rules(objectives=[base], steps=steps)
    (doubt,) = never_decided(of, assumed(of, requests))
    assert doubt.objective == "errors"
    found = re.search(pattern, doubt.remedy)
    assert found, doubt.remedy
    value = int(found[1])
    match field:
        case "step":
            of = rules(objectives=[base], steps=[{"weight": 20, "minDurationSeconds": value}])
        case "weight":
            of = rules(objectives=[base], steps=[{"weight": value, "minDurationSeconds": 600}])
        case "margin":
            of = rules(objectives=[base | {"versusStable": {"maxIncreasePercent": value}}], steps=steps)
        case _:
            of = rules(objectives=[base | {"minSamples": value, "advanceOn": "NoBreach"}], steps=steps)
    assert list(never_decided(of, assumed(of, requests))) == []


def test_what_no_traffic_decides() -> None:
    zero = COST | {"versusStable": {"maxIncreasePercent": 0}}
    (doubt,) = undecidable(rules(objectives=[zero]))
    assert doubt.objective == "cost"
    assert "margin of 0 %" in doubt.reason
    assert "maxIncreasePercent to 10 or more" in doubt.remedy
    assert list(undecidable(rules(objectives=[zero | {"advanceOn": "NoBreach"}]))) == []
    (doubt,) = undecidable(rules(maxDurationSeconds=1000))
    assert "no version can reach 100 %" in doubt.reason
    cached = {"name": "hits", "signal": "CacheHitRate", "versusStable": {"maxDecrease": "0.2"}}
    (doubt,) = undecidable(rules(objectives=[cached], steps=[{"weight": 10}, {"weight": 25}]))
    assert "compared at weights from 50 %" in doubt.reason


def test_one_sample_an_interval_knows_no_traffic() -> None:
    query = 'queue_length{version="{{ version }}", variant="{{ variant }}"}'
    custom = {"name": "queue", "signal": "Custom", "custom": {"value": query}, "max": "10", "minSamples": 50}
    of = rules(objectives=[custom])
    (few, many) = (assumed(of, rate).samples(of.objectives[0], 300, 10) for rate in (1, 1000))
    assert few == many == (10, 10)


def test_assumptions_are_checked_and_within_bounds() -> None:
    of = rules(objectives=[{"name": "errors", "signal": "ErrorRate", "max": "0.004"}])
    assert assumed(of, 10).baselines["errors"].value == pytest.approx(0.002)
    assert assumed(of, 10, {"ErrorRate": Baseline(0.1)}).baselines["errors"].value == 0.1
    with pytest.raises(ValueError, match="between 0 and 1, not 3"):
        assumed(of, 10, {"errors": Baseline(3)})
    with pytest.raises(ValueError, match=r"no objective misspelt .*it has errors"):
        assumed(of, 10, {"misspelt": Baseline(0.1)})
    with pytest.raises(ValueError, match="above 0"):
        assumed(of, 0)


def test_traffic_and_values_are_taken_from_a_recording() -> None:
    traffic = Steady(rates={"errors": (0.5, 0.02)}, costs={"cost": (0.01, 0.003)})
    of = rules(objectives=[rules().objectives[0].dump(), COST])
    given = from_recorded(Recorded(recording(traffic, (10, 40))), of)
    assert given.requests_per_minute == pytest.approx(1200)
    assert given.baselines["errors"].value == pytest.approx(0.02)
    assert given.baselines["cost"].value == pytest.approx(0.003)
    assert given.baselines["cost"].spread == pytest.approx(0.5)


def test_drawn_means_have_their_moments() -> None:
    objective = rules(objectives=[COST]).objectives[0]
    counts = list(
        drawn(np.random.default_rng(1), signal_of(objective), Baseline(0.002, 1.5), [400.0] * 500, [4000.0] * 500, 1.25)
    )
    for arms, mean in (([c.canary for c in counts], 0.0025), ([c.stable for c in counts], 0.002)):
        n = sum(arm.n for arm in arms)
        found = sum(arm.total for arm in arms) / n
        variance = sum(arm.total_squared for arm in arms) / n - found**2
        assert found == pytest.approx(mean, rel=0.02)
        assert math.sqrt(variance) == pytest.approx(1.5 * mean, rel=0.03)
        assert all(arm.total_squared * arm.n >= arm.total**2 * (1 - 1e-9) for arm in arms)


def test_worse_goes_the_objectives_own_way() -> None:
    judge = rules(objectives=[JUDGE]).objectives[0]
    assert worse(judge, 4.0, 1.25) == pytest.approx(3.2)
    assert worse(rules().objectives[0], 0.4, 5) == 1.0
