"""From objective to test: defaults, the hash that guards evidence, and the wording of numbers."""

import pytest

from promptrollout.api.slo import Objective, VersusStable
from promptrollout.engine.objectives import wording
from promptrollout.engine.objectives.definitions import (
    Bounds,
    bounds_of,
    definition_hash,
    gate_of,
    make_test,
    margins_text,
)
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.evidence import Arm, Counts

USD = SIGNALS["CostPerRequest"]
ERRORS = Objective(name="errors", signal="ErrorRate", versus_stable=VersusStable(max_increase_percent=50))
COST = Objective(name="cost", signal="CostPerRequest", max="0.004", versus_stable=VersusStable(max_increase_percent=10))


def changed(objective: Objective, **fields: object) -> Objective:
    return objective.model_copy(update=fields)


def test_rollback_defaults_to_a_fifth_of_the_margin_for_rates_and_half_of_it_for_cost() -> None:
    assert bounds_of(ERRORS).rollback == 10
    assert bounds_of(COST).rollback == 5
    explicit = changed(ERRORS, versus_stable=VersusStable(max_increase_percent=50, rollback_above_percent=0))
    assert bounds_of(explicit).rollback == 0


def test_a_score_rolls_back_above_half_of_its_margin_whichever_way_is_worse() -> None:
    lower = Objective(name="time", signal="Score", score="seconds", direction="LowerIsBetter")
    assert bounds_of(changed(lower, versus_stable=VersusStable(max_increase_percent=50))).rollback == 25
    higher = changed(lower, direction=None)
    assert bounds_of(changed(higher, versus_stable=VersusStable(max_decrease="0.3"))).rollback == 0.15
    explicit = VersusStable(max_decrease="0.3", rollback_above_decrease="0")
    assert bounds_of(changed(higher, versus_stable=explicit)).rollback == 0


def test_where_less_is_worse_margins_are_in_the_signals_unit() -> None:
    judge = Objective(name="judge", signal="JudgeScore", dimension="helpful", versus_stable=VersusStable())
    assert bounds_of(judge) == Bounds(margin=0.1, rollback=0.05, bound=None, negligible=0.005)
    explicit = changed(judge, min="3.5", versus_stable=VersusStable(max_decrease="0.3", rollback_above_decrease="0.2"))
    assert bounds_of(explicit) == Bounds(margin=0.3, rollback=0.2, bound=3.5, negligible=0.005)
    test = make_test(explicit)
    assert isinstance(test, MeanTest)
    assert (test.margin, test.rollback, test.bound, test.more_is_worse, test.gate) == (0.3, 0.2, 3.5, False, 100)


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (ERRORS, "promotion below +50 %, rollback above +10 %"),
        (COST, "promotion below +10 %, rollback above +5 %"),
        (
            Objective(name="judge", signal="JudgeScore", dimension="helpful", versus_stable=VersusStable()),
            "promotion above -0.1, rollback below -0.05",
        ),
        (Objective(name="errors", signal="ErrorRate", max="0.02"), ""),
    ],
)
def test_both_numbers_stand_side_by_side(objective: Objective, text: str) -> None:
    assert margins_text(objective) == text


def test_margins_of_the_wrong_kind_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"objective errors: more is worse here: set versusStable\.maxIncreasePercent"):
        make_test(changed(ERRORS, versus_stable=VersusStable(max_decrease="1")))
    score = Objective(name="s", signal="Score", score="answered", versus_stable=VersusStable(max_increase_percent=5))
    with pytest.raises(ValueError, match=r"objective s: less is worse here: set versusStable\.maxDecrease"):
        make_test(score)
    with pytest.raises(ValueError, match="set min, versusStable or both"):
        make_test(changed(score, versus_stable=None))
    with pytest.raises(ValueError, match="min must be above 0"):
        make_test(changed(score, versus_stable=None, min="0"))


@pytest.mark.parametrize(
    ("objective", "gate"),
    [
        (ERRORS, 0),
        (changed(ERRORS, min_samples=500), 0),
        (changed(COST, min_samples=1), 200),
        (changed(COST, min_samples=500), 500),
        (Objective(name="j", signal="JudgeScore", dimension="d", min="3", min_samples=10), 50),
    ],
)
def test_only_a_mean_needs_samples_before_it_is_judged(objective: Objective, gate: int) -> None:
    assert gate_of(objective) == gate


def test_the_signal_chooses_the_test() -> None:
    rate, mean = make_test(ERRORS), make_test(COST)
    assert isinstance(rate, RateTest)
    assert rate.negligible == 0.005
    assert isinstance(mean, MeanTest)
    assert mean.bound == 0.004
    latency = make_test(Objective(name="slow", signal="Latency", threshold_seconds="2.5", max="0.05"))
    assert isinstance(latency, RateTest)


def test_bounds_that_make_no_sense_name_the_objective_and_the_fix() -> None:
    with pytest.raises(ValueError, match=r"objective errors: max of a rate is a share.*0\.02"):
        make_test(Objective(name="errors", signal="ErrorRate", max="2"))


@pytest.mark.parametrize(
    "other",
    [
        changed(ERRORS, signal="ContractFailureRate"),
        changed(ERRORS, max="0.05"),
        changed(ERRORS, negligible_rate="0.01"),
        changed(ERRORS, versus_stable=VersusStable(max_increase_percent=40)),
        changed(ERRORS, versus_stable=VersusStable(max_increase_percent=50, rollback_above_percent=20)),
    ],
)
def test_an_edited_bound_restarts_the_evidence(other: Objective) -> None:
    state = make_test(ERRORS).observe(make_test(ERRORS).start(), (Counts.of(10, 1, 90, 2),), promotable=True)
    text = make_test(ERRORS).encode(state)
    assert text.startswith(f"5:{definition_hash(ERRORS)}:")
    assert make_test(ERRORS).decode(text) == state
    with pytest.raises(ValueError, match="its evidence restarts"):
        make_test(other).decode(text)


@pytest.mark.parametrize(
    "same",
    [
        changed(ERRORS, name="other"),
        changed(ERRORS, min_samples=7),
        changed(ERRORS, advance_on="NonInferior"),
        changed(ERRORS, negligible_rate="0.0050"),
        changed(ERRORS, versus_stable=VersusStable(max_increase_percent=50, rollback_above_percent=10)),
    ],
)
def test_what_does_not_touch_the_sums_keeps_the_evidence(same: Objective) -> None:
    assert definition_hash(same) == definition_hash(ERRORS)


@pytest.mark.parametrize("text", ["", "5", "1:x:", "4:{}:", "5:{}:", "5:{}:AAAA", "5:{}: %%", "5:{}:" + "0" * 430])
def test_a_damaged_checkpoint_is_refused(text: str) -> None:
    test = make_test(ERRORS)
    with pytest.raises(ValueError, match=r"restarts|not the sums"):
        test.decode(text.replace("{}", definition_hash(ERRORS)))


def test_a_mean_starts_again_from_its_checkpoint() -> None:
    test = make_test(COST)
    state = test.start()
    counts = Counts(Arm(50, 0.11, 0.0005), Arm(450, 0.9, 0.004))
    for _ in range(20):
        state = test.observe(state, (counts,), promotable=True)
    again = test.decode(test.encode(state))
    assert again == state
    assert test.observe(again, (counts,), promotable=False) == test.observe(state, (counts,), promotable=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.share(0.0312), "3.1 %"),
        (wording.share(0.00042), "0.042 %"),
        (wording.share(0.99), "99 %"),
        (wording.share(0), "0 %"),
        (wording.usd(0.0041), "$0.00410"),
        (wording.usd(1240), "$1,240.00"),
        (wording.usd(-0.5), "-$0.500"),
        (wording.usd(0), "$0.00"),
        (wording.usd(1e12), "$1e+12"),
        (wording.count(84511), "84,511"),
        (wording.count(1.2e12), "1.2e+12"),
        (wording.share_difference(0.004, 0.021), "+0.4 to +2.1 points"),
        (wording.share_difference(-2, 2), "-100 to +100 points"),
        (wording.difference(USD, -0.0001, 0.0021, 0.004), "-$0.000100 to +$0.00210 (-2.5 % to +52 % of stable)"),
        (wording.difference(USD, 0, 0.0021, 0), "$0.00 to +$0.00210"),
        (wording.fits("abcdef", 4), "abc…"),
    ],
)
def test_numbers_read_as_people_write_them(text: str, expected: str) -> None:
    assert text == expected
