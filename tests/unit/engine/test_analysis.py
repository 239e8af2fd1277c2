"""The analysis table: error levels, what an interval adds to each row, and what a step still lacks."""

import math

import pytest

from promptrollout.api.rollout import ObjectiveStatus
from promptrollout.engine.lifecycle.analysis import ObjectiveFold, is_outage, levels, missing_evidence
from promptrollout.engine.lifecycle.draft import Draft
from promptrollout.engine.lifecycle.messages import missing_text
from promptrollout.engine.statistics.evidence import Arm, Counts, Interval
from tests.world import COST, ERRORS, World, snapshot, started, version

V1, V2 = version("v1"), version("v2")


def row(world: World, name: str = "errors") -> ObjectiveStatus:
    return next(row for row in world.status.analysis if row.name == name)


# ---------------------------------------------------------------- levels


def test_objectives_share_five_percent_and_attempts_use_up_five_percent_together() -> None:
    for count in (1, 2, 5):
        assert levels(snapshot(objectives=[ERRORS] * count), 1).breach == pytest.approx(0.05 / count)
    assert levels(snapshot(objectives=[]), 1).breach == 0.05
    promote = [levels(snapshot(), n).promote for n in range(1, 5000)]
    assert promote[1] == pytest.approx(promote[0] / 4)
    assert promote[2] == pytest.approx(promote[0] / 9)
    assert 0.0499 < sum(promote) < 0.05  # 1 + 1/4 + 1/9 + ... = pi^2/6


def test_people_read_the_confidence_that_is_left() -> None:
    rules = snapshot({"weight": 50, "minDurationSeconds": 3_000}, objectives=[ERRORS, COST])
    world = started(rules, error_rate={V2.digest: 0.3}).tick(3)
    assert "with 97.5 % confidence" in row(world).message
    world.error_rate = {}
    world.tick(3)
    world.tell("retry")
    world.tick(20)
    assert row(world).verdict == "Pass"
    assert f"with {100 - 100 * 0.05 * 6 / (4 * math.pi**2):.2f} % confidence" in row(world).message


# ---------------------------------------------------------------- intervals


def costs(hits: float, n: float) -> Arm:
    one = 0.003 * (1 - 0.9 * hits) + 0.0012
    return Arm(n, n * one, n * one * one, input_usd=n * 0.003, saved_usd=n * 0.003 * 0.9 * hits)


@pytest.mark.parametrize(("weight", "mean"), [(10, 0.00177), (49, 0.00177), (50, 0.00366), (90, 0.00366)])
def test_costs_are_as_billed_once_the_canary_has_half_of_the_users(weight: int, mean: float) -> None:
    fold = ObjectiveFold(COST, None, 30)
    fold.add([Counts(costs(0.2, 100), costs(0.9, 900))], weight, promotable=True, outage=False)
    assert fold.state.canary.total / fold.state.canary.n == pytest.approx(mean)


def test_a_signal_that_counts_from_full_weight_on_is_not_taken_before() -> None:
    from_weight = ObjectiveFold(COST, None, 30)
    assert from_weight.signal.from_weight <= 1
    hits = COST.model_copy(update={"signal": "CacheHitRate", "name": "hits"})
    fold = ObjectiveFold(hits, None, 30)
    assert fold.signal.from_weight > 1
    for weight, taken in ((fold.signal.from_weight - 1, 0), (fold.signal.from_weight, 100)):
        fold.add([Counts.of(100, 50, 100, 50)], weight, promotable=True, outage=False)
        assert fold.state.canary.n == taken
        assert fold.step_samples == taken


def test_only_usable_requests_of_confirmed_steps_are_samples_of_the_step() -> None:
    fold = ObjectiveFold(ERRORS, None, 30)
    good, bad = Counts.of(60, 1, 500, 5), Counts.of(40, math.nan, 500, 5)
    fold.add([good, bad], 10, promotable=True, outage=False)
    assert fold.step_samples == 60
    fold.add([good], 10, promotable=False, outage=False)
    assert (fold.step_samples, fold.state.canary) == (60, 120)


def test_a_damaged_checkpoint_restarts_the_row_and_no_more() -> None:
    fold = ObjectiveFold(
        ERRORS, ObjectiveStatus(name="errors", signal="ErrorRate", verdict="Pass", checkpoint="2:x:AAAA"), 30
    )
    assert fold.state == fold.test.start()


@pytest.mark.parametrize(
    ("stable", "down"),
    [
        ((100, 49), False),
        ((100, 50), True),
        ((100, 100), True),
        ((0, 0), False),
        ((1, 1), False),
        ((4, 4), False),
        ((5, 5), True),
        ((10, 5), True),
        ((11, 5), False),
    ],
)
def test_an_outage_is_half_of_stables_requests_and_at_least_five_failures(stable: tuple[int, int], down: bool) -> None:
    counts = {"errors": (Counts.of(10, 10, *stable),), "slow": (Counts.of(10, 10, 10, 10),)}
    latency = ERRORS.model_copy(update={"name": "slow", "signal": "Latency", "threshold_seconds": "1"})
    assert is_outage([latency, ERRORS], Interval(0, 30, counts)) is down
    assert not is_outage([latency], Interval(0, 30, counts))
    assert not is_outage([ERRORS], Interval(0, 30, {}))


def test_samples_of_a_step_begin_anew_and_those_of_the_row_do_not() -> None:
    world = started(requests=1_000.0)
    world.tick()
    assert row(world).step_samples == 100
    world.tick()
    assert world.at == ("Stepping", 50)
    assert (row(world).canary_samples, row(world).step_samples) == (200, 0)
    world.tick()
    assert (row(world).canary_samples, row(world).step_samples) == (700, 500)


def test_the_sample_ratio_is_measured_from_one_percent_on_after_two_minutes_but_not_at_100() -> None:
    world = started(snapshot({"weight": 1, "minDurationSeconds": 60}, bake_seconds=600)).tick(4)
    assert [row.name for row in world.status.analysis] == ["errors"], "requests of before may still be under way"
    world.tick(2)
    ratio = row(world, "sample-ratio")
    assert (ratio.signal, ratio.verdict, ratio.common_cause) == ("SampleRatio", "Pass", None)
    assert (ratio.canary, ratio.stable, ratio.canary_samples) == ("1 %", "1 %", 40)
    assert ratio.message == "the canary gets 1 % of the requests and should get 1 %"
    world.requests = 40_000.0
    while world.status.stage != "Baking":
        world.tick()
    before = row(world, "sample-ratio").canary_samples
    world.tick(3)
    assert row(world, "sample-ratio").canary_samples == before


def test_the_interval_in_which_the_canary_met_its_first_user_counts_whole() -> None:
    world = World()
    world.settle()
    world.now += 17
    world.desired = V2
    world.settle()
    assert world.status.clock.exposed_at == world.now
    world.now += 13 - 30
    world.tick()
    exposed = world.now - 30
    world.recorded[exposed, V1.digest] = {"errors": (Counts.of(20, 1, 180, 2),)}
    world.tick()
    assert row(world).canary_samples >= 20


# ---------------------------------------------------------------- what is lacking

PASSED = ObjectiveStatus(
    name="errors", signal="ErrorRate", verdict="Pass", canary_samples=500, stable_samples=900, step_samples=100
)


def lacks(found: ObjectiveStatus | None, index: int = 0, **objective: object) -> list[str]:
    world = started(snapshot(objectives=[ERRORS.model_copy(update=objective)]))
    draft = Draft(world.facts(), world.now)
    draft.set(analysis=[found] if found else [], current_step_index=index, weight=10)
    return [missing_text(each) for each in missing_evidence(draft)]


def changed(**fields: object) -> ObjectiveStatus:
    return PASSED.model_copy(update=fields)


def test_what_a_step_still_lacks_is_said_by_objective() -> None:
    assert lacks(PASSED) == lacks(PASSED, index=1) == []
    assert lacks(changed(step_samples=99)) == ["errors: 99 of 100 canary samples in this step"]
    assert lacks(changed(step_samples=1200), min_samples=5000) == ["errors: 1,200 of 5,000 canary samples in this step"]
    assert lacks(None) == ["errors: 0 of 100 canary samples in this step"]
    assert lacks(changed(common_cause=True)) == [
        "errors: stable was beyond the bound lately too, or answers could not be judged"
    ]
    open_ = changed(verdict="NoEvidence")
    assert lacks(open_) == [], "before the last weight no breach is enough"
    assert lacks(open_, index=1) == ["errors: not yet shown to be within its margin"]
    assert lacks(open_, index=1, advance_on="NoBreach") == []
    assert lacks(open_, advance_on="NonInferior") == ["errors: not yet shown to be within its margin"]
    assert lacks(None, min_samples=0) == []
    assert lacks(None, min_samples=0, advance_on="NonInferior") == ["errors: not yet shown to be within its margin"]


def test_a_mean_lacks_its_gate_first() -> None:
    cost = {"signal": "CostPerRequest", "min_samples": 300}
    assert lacks(changed(canary_samples=299, step_samples=0), **cost) == [
        "errors: 299 of 300 canary samples before it is judged"
    ]
    assert lacks(changed(canary_samples=300, step_samples=0), **cost) == [
        "errors: 0 of 300 canary samples in this step"
    ]
    assert lacks(None, **cost) == ["errors: 0 of 300 canary samples before it is judged"]


def test_without_analysis_nothing_is_missing_evidence() -> None:
    world = started(snapshot(analyse=False))
    assert missing_evidence(Draft(world.facts(), world.now)) == []
