"""A small run of the benchmark. Seeds are fixed; should draws change, a rule that keeps its promise fails
a bound with a chance below 1 in 1,000."""

import numpy as np
import pytest

from benchmarks.decisions.bench import NO_TOLERANCE, OURS, Job, figures, play, wilson
from benchmarks.decisions.case import read_cases
from benchmarks.decisions.ours import rules_of
from benchmarks.decisions.replay import Outcome
from promptrollout.simulation.draws import draw
from promptrollout.simulation.traffic import ByObjective
from promptrollout.simulation.world import simulate

RUNS = 20
MOST_FALSE = 5
"""Of 20 runs at level 5 %: more happen with a chance of 0.0003."""


def outcomes(case: str, runs: int = RUNS, rule: str = "", others: bool = False) -> dict[str, list[Outcome]]:
    return play(Job(case, range(runs), others, rule))


def count(found: list[Outcome], ended: str) -> int:
    return sum(outcome.ended == ended for outcome in found)


@pytest.mark.parametrize("case", ["common-spike", "users-2000", "shocks-0.05"])
def test_harmless_canaries_are_rolled_back_at_most_as_often_as_promised(case: str) -> None:
    assert count(outcomes(case)[OURS.name], "rolled back") <= MOST_FALSE


def test_a_z_test_at_each_look_is_wrong_about_half_of_the_time_and_ours_is_not() -> None:
    found = outcomes("a-a", others=True)
    assert count(found["naive z"], "rolled back") > MOST_FALSE
    assert count(found[OURS.name], "rolled back") <= MOST_FALSE
    assert count(found[OURS.name], "promoted") >= RUNS - MOST_FALSE


def test_what_pools_over_changing_weights_takes_a_common_spike_for_a_regression() -> None:
    assert count(outcomes("common-spike", runs=10, rule="GrowthBook", others=True)["GrowthBook"], "rolled back") == 10


def test_a_threefold_error_rate_is_found_about_as_soon_as_by_an_oracle() -> None:
    found = outcomes("errors-x3", others=True)
    mine, oracle = figures(found[NO_TOLERANCE.name]), figures(found["oracle"])
    assert mine.rolled_back == oracle.rolled_back == 1
    assert mine.requests_median is not None
    assert oracle.requests_median is not None
    assert mine.requests_median < 2 * oracle.requests_median


def test_an_incident_that_is_over_does_not_hide_a_regression() -> None:
    found = figures(outcomes("x3-after-incident")[OURS.name])
    assert found.rolled_back == 1
    assert found.requests_median is not None
    assert found.requests_median < 400, "with the incident as a habit of stable's it takes about 700"


def test_a_canary_at_the_margin_is_not_promoted() -> None:
    assert count(outcomes("errors-at-margin")[OURS.name], "promoted") <= MOST_FALSE


@pytest.mark.parametrize("case", ["nan", "prometheus-outage", "provider-outage"])
def test_what_cannot_be_read_decides_nothing(case: str) -> None:
    assert sum(outcome.blind_decisions for outcome in outcomes(case, runs=6)[OURS.name]) == 0


@pytest.mark.parametrize("name", ["nan", "prometheus-outage", "provider-outage", "judge-delay", "x3-mid-step"])
def test_how_many_intervals_a_plan_takes_changes_no_decision(name: str) -> None:
    """The benchmark hands over many at once, the operator each as it ends."""
    case = read_cases()[name]
    traffic, rules = draw(case.scenario, np.random.default_rng(4)), rules_of(case)
    runs = [simulate(rules, ByObjective(traffic, rules.objectives), at_once=most) for most in (1, None)]
    assert runs[0].timeline == runs[1].timeline


def test_every_case_can_be_drawn_and_judged() -> None:
    for name, case in read_cases().items():
        if OURS.can_judge(case):
            few = case.scenario.intervals < 1_000  # other rules look at all of the past each time
            assert len(outcomes(name, runs=1, others=few)) > few


def test_wilson_intervals() -> None:
    """Brown, Cai, DasGupta 2001: 0 of 10 gives 0 to 27.8 %."""
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
