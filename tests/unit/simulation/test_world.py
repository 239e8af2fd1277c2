"""The simulated world decides as the operator does, and says what it cost."""

from typing import Any

import pytest

from promptrollout.simulation.world import simulate
from tests.unit.simulation.steady import Steady, rules

PAUSE = [{"weight": 10, "minDurationSeconds": 300}, {"pause": {"durationSeconds": 95}}, {"weight": 50}]
COST = {"name": "cost", "signal": "CostPerRequest", "max": "0.0015", "versusStable": {"maxIncreasePercent": 20}}

BOUND = {"name": "errors", "signal": "ErrorRate", "max": "0.05", "versusStable": {"maxIncreasePercent": 50}}

STORIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "good": ({}, {}),
    "bad": ({}, {"rates": {"errors": (0.03, 0.01)}}),
    "bad from the second step on": ({}, {"rates": {"errors": (0.03, 0.01)}, "since": 33}),
    "little worse": ({}, {"rates": {"errors": (0.013, 0.01)}}),
    "little traffic": ({}, {"requests": 20}),
    "little traffic goes back": ({"onInsufficientTraffic": "Rollback"}, {"requests": 6}),
    "out of time": ({"maxDurationSeconds": 900, "onTimeout": "Rollback"}, {}),
    "a pause": ({"steps": PAUSE}, {}),
    "outage": ({}, {"answers": lambda k: not 15 <= k < 35}),
    "outage over the step's end": ({}, {"answers": lambda k: not 19 <= k < 26}),
    "bad behind an outage": ({}, {"rates": {"errors": (0.05, 0.01)}, "answers": lambda k: k >= 15}),
    "bad in the bake": ({"bakeSeconds": 3600, "objectives": [COST]}, {"costs": {"cost": (0.002, 0.001)}, "since": 65}),
    "bad in the bake, compared with the holdback": (
        {"bakeSeconds": 3600, "holdbackPercent": 5},
        {"rates": {"errors": (0.03, 0.01)}, "since": 65},
    ),
    "good, with a holdback": ({"bakeSeconds": 900, "holdbackPercent": 10}, {}),
    "outage in the bake": (
        {"bakeSeconds": 900, "holdbackPercent": 10},
        {"answers": lambda k: not 70 <= k < 110},
    ),
    "outage over the promotion": (
        {"bakeSeconds": 900, "holdbackPercent": 10},
        {"answers": lambda k: not 58 <= k < 90},
    ),
    "both fail in the bake": (
        {"bakeSeconds": 900, "holdbackPercent": 10},
        {"both": lambda k: 0.7 if 70 <= k < 74 else None},
    ),
    "provider away": ({}, {"provider_down": lambda k: 10 <= k < 20}),
    "provider away for long": ({}, {"provider_down": lambda k: 10 <= k < 60}),
    "both fail for a while": ({}, {"both": lambda k: 0.7 if 5 <= k < 9 or k == 30 else None}),
    "both beyond the bound from the second step on": (
        {"objectives": [BOUND], "maxDurationSeconds": 5_000},
        {"both": lambda k: 0.12 if k >= 22 else None},
    ),
    "both beyond the bound now and then": (
        {"objectives": [BOUND]},
        {"both": lambda k: 0.12 if 22 <= k < 35 or 50 <= k < 55 else None},
    ),
    "more users than the weight says": ({}, {"surplus": 1.15}),
    "dear": ({"objectives": [COST]}, {"costs": {"cost": (0.0013, 0.001)}}),
}


@pytest.mark.parametrize("confirm_seconds", [0, 10, 45])
@pytest.mark.parametrize(("change", "traffic"), STORIES.values(), ids=STORIES.keys())
def test_many_intervals_at_once_decide_as_one_by_one(
    change: dict[str, Any], traffic: dict[str, Any], confirm_seconds: int
) -> None:
    asked_at_once, one_by_one = Steady(**traffic), Steady(**traffic)
    quick = simulate(rules(**change), asked_at_once, confirm_seconds=confirm_seconds)
    slow = simulate(rules(**change), one_by_one, confirm_seconds=confirm_seconds, at_once=1)
    assert quick == slow
    intervals = [k for k, _ in asked_at_once.asked]
    assert intervals == list(range(-60, len(intervals) - 60)), "each once, in order"


def test_a_good_version_takes_its_steps_and_no_longer() -> None:
    run = simulate(rules(), Steady())
    assert (run.outcome, run.seconds) == ("Promoted", 1800)
    assert [(m.seconds, m.weight, m.reason) for m in run.timeline] == [
        (0, 0, "RolloutStarted"),
        (600, 10, "StepCompleted"),
        (1800, 50, "StepCompleted"),
        (1800, 100, "RolloutCompleted"),
    ]
    assert [weight for _, weight in run.weights] == [0, 10, 50, 100]
    assert run.canary_requests == pytest.approx(20 * 60 + 40 * 300)


def test_some_users_are_held_back_until_the_bake_is_over() -> None:
    run = simulate(rules(bakeSeconds=900, holdbackPercent=5), Steady())
    assert [(m.seconds, m.weight, m.reason) for m in run.timeline][-3:] == [
        (1800, 50, "StepCompleted"),
        (1800, 95, "RolloutCompleted"),
        (2700, 100, "BakeCompleted"),
    ]
    assert run.weights == ((0, 0), (0, 10), (600, 50), (1800, 95), (2700, 100))


def test_the_toll_of_a_bad_version_ends_with_its_rollback() -> None:
    run = simulate(rules(), Steady(rates={"errors": (0.03, 0.01)}))
    assert run.outcome == "RolledBack"
    assert "worse by more than 10 %" in run.why
    assert run.seconds % 30 == 0
    met = run.seconds // 30 * 60
    toll = run.tolls["errors"]
    assert toll.requests == pytest.approx(met)
    assert toll.total == pytest.approx(met * 0.03)
    assert toll.excess == pytest.approx(met * 0.02)
    assert run.rows[0].verdict == "Breach"


def test_an_outage_of_prometheus_decides_nothing_and_loses_nothing() -> None:
    away = range(1, 60)
    run = simulate(rules(), Steady(rates={"errors": (0.05, 0.01)}, answers=lambda k: k not in away))
    assert run.outcome == "RolledBack"
    assert run.seconds == 61 * 30, "at the first look after the outage"


def test_a_provider_that_is_away_rejects_nobody() -> None:
    run = simulate(rules(), Steady(intervals=480, provider_down=lambda k: 10 <= k < 60))
    assert run.outcome == "Promoted"
    assert "ProviderUnreachable" in [moment.reason for moment in run.timeline]


def test_a_weight_that_both_arms_suffer_from_is_taken_back() -> None:
    run = simulate(rules(objectives=[BOUND]), Steady(both=lambda k: 0.12 if k >= 22 else None))
    assert ("WeightReduced", 50) in [(moment.reason, moment.weight) for moment in run.timeline]
    assert run.weights[-1][1] == 10


def test_a_mismatch_of_the_sample_ratio_holds() -> None:
    run = simulate(rules(), Steady(surplus=1.4))
    assert run.outcome == "Held"
    assert "should get 10 %" in run.why


def test_what_never_gets_evidence_is_held_and_says_what_it_waits_for() -> None:
    run = simulate(rules(), Steady(requests=6))
    assert (run.outcome, run.seconds) == ("Held", 7200)
    assert "of 100 canary samples" in run.why


def test_confirmations_delay_every_step() -> None:
    prompt, slow = (simulate(rules(), Steady(), confirm_seconds=s) for s in (0, 30))
    assert slow.seconds == prompt.seconds + 3 * 30


def test_looks_carry_the_table_after_every_interval() -> None:
    run = simulate(rules(), Steady(), looks=True)
    assert [look.seconds for look in run.looks[:3]] == [30, 60, 90]
    assert run.looks[0].rows[0].checkpoint
    assert simulate(rules(), Steady()).looks == ()


def test_traffic_of_another_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"analysis\.intervalSeconds is 30"):
        simulate(rules(), Steady(interval_seconds=60))
