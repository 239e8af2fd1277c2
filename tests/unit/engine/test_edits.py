"""Objectives that a person edits in mid-canary: the chance of a false alarm stays shared, and nothing starts blind."""

import pytest

from promptrollout.api.rollout import Clock, ObjectiveStatus
from promptrollout.api.slo import Objective, VersusStable
from promptrollout.engine.lifecycle.analysis import FAMILY_LEVEL, levels
from promptrollout.engine.objectives.definitions import definition_hash, make_test
from tests.world import COST, ERRORS, World, snapshot, started, version

LONG = {"weight": 10, "minDurationSeconds": 36_000}
STRICTER = ERRORS.model_copy(update={"versus_stable": VersusStable(max_increase_percent=20)})


def row(world: World, name: str = "errors") -> ObjectiveStatus:
    return next(row for row in world.status.analysis if row.name == name)


def edited(world: World, **fields: object) -> World:
    assert world.rules is not None
    world.rules = world.rules.model_copy(update=fields)
    world.settle()
    return world


def level(world: World) -> float:
    assert world.status.snapshot is not None
    return levels(world.status.snapshot, 1, world.status.clock).breach


def test_an_objective_that_is_removed_leaves_its_share_of_the_level_unused() -> None:
    world = started(snapshot(LONG, objectives=[ERRORS, COST])).tick(3)
    assert level(world) == pytest.approx(FAMILY_LEVEL / 2)
    edited(world, objectives=[ERRORS])
    assert level(world) == pytest.approx(FAMILY_LEVEL / 2)


def test_edits_without_end_keep_false_alarms_below_twice_the_level() -> None:
    total = sum(levels(snapshot(), 1, Clock(objectives=1, restarts=n)).breach for n in range(100_000))
    assert FAMILY_LEVEL < total < 1.65 * FAMILY_LEVEL


def test_each_edit_of_an_objective_is_judged_at_a_stricter_level_and_a_new_version_at_the_first_again() -> None:
    world = started(snapshot(LONG)).tick(3)
    edited(world, objectives=[STRICTER])
    assert level(world) == pytest.approx(FAMILY_LEVEL / 4)
    edited(world, objectives=[ERRORS])
    assert level(world) == pytest.approx(FAMILY_LEVEL / 9)
    world.restart()
    world.settle()
    assert level(world) == pytest.approx(FAMILY_LEVEL / 9)
    world.desired = version("v3")
    world.tick(2)
    assert level(world) == pytest.approx(FAMILY_LEVEL)


@pytest.mark.parametrize("objectives", [[STRICTER], [ERRORS, COST]], ids=["edited", "added"])
def test_an_objective_that_begins_in_mid_canary_knows_how_much_stable_fluctuated_before(
    objectives: list[Objective],
) -> None:
    world = started(snapshot(LONG)).tick(70)
    before = row(world)
    edited(world, objectives=objectives).tick()
    new = objectives[-1]
    state = make_test(new).decode(row(world, new.name).checkpoint or "")
    assert row(world, new.name).canary_samples == 200, "the canary's evidence begins with the edit"
    assert state.dispersion.blocks[0].changes >= 59
    if len(objectives) == 2:
        assert row(world).canary_samples == before.canary_samples + 200, "the others go on, and count nothing twice"
        other = started(snapshot(LONG)).tick(71)
        assert row(other).checkpoint == row(world).checkpoint


def test_time_in_the_step_is_not_counted_twice_by_reading_again() -> None:
    world = started(snapshot(LONG)).tick(70)
    seconds = world.status.clock.step_active_seconds
    edited(world, objectives=[STRICTER]).tick()
    assert world.status.clock.step_active_seconds == seconds + 30


def test_a_checkpoint_of_another_length_of_intervals_is_not_read() -> None:
    assert definition_hash(ERRORS, 30) != definition_hash(ERRORS, 60)
    state = make_test(ERRORS, 30).start()
    with pytest.raises(ValueError, match="restarts"):
        make_test(ERRORS, 60).decode(make_test(ERRORS, 30).encode(state))


def test_a_damaged_checkpoint_begins_anew_at_a_stricter_level_and_with_its_baseline() -> None:
    world = started(snapshot(LONG)).tick(70)
    world.status = world.status.model_copy(
        update={"analysis": [row(world).model_copy(update={"checkpoint": "2:x:AAAA"})]}
    )
    world.tick()
    assert "EvidenceRestarted" in world.events
    assert level(world) == pytest.approx(FAMILY_LEVEL / 4)
    world.tick()
    state = make_test(ERRORS).decode(row(world).checkpoint or "")
    assert row(world).canary_samples > 0
    assert state.dispersion.blocks[0].changes >= 59


def test_an_edit_while_an_earlier_one_is_still_read_counts_nothing_twice() -> None:
    world = started(snapshot(LONG)).tick(70)
    before, seconds = row(world).canary_samples, world.status.clock.step_active_seconds
    world.metrics_available = False
    edited(world, objectives=[ERRORS, COST])
    edited(world, objectives=[ERRORS, COST.model_copy(update={"max": "0.01"})])
    world.metrics_available = True
    world.tick()
    assert [r.canary_samples for r in world.status.analysis][:2] == [before + 200, 200]
    assert world.status.clock.step_active_seconds == seconds + 30


def test_an_edit_that_meets_evidence_of_now_still_reads_what_was_before() -> None:
    """An edit that is first seen together with an interval, say after a restart of the operator."""
    world = started(snapshot(LONG)).tick(70)
    assert world.rules is not None
    world.rules = world.rules.model_copy(update={"objectives": [STRICTER]})
    world.tick()
    state = make_test(STRICTER).decode(row(world).checkpoint or "")
    assert (row(world).canary_samples, state.dispersion.blocks[0].changes >= 59) == (200, True)


def test_an_edit_before_the_canary_was_measured_costs_nothing() -> None:
    world = edited(started(snapshot(LONG)), objectives=[STRICTER])
    assert level(world) == pytest.approx(FAMILY_LEVEL)
    world.tick()
    other = started(snapshot(LONG, objectives=[STRICTER])).tick()
    assert row(world).checkpoint == row(other).checkpoint


def test_an_objective_without_samples_of_the_canary_reads_its_baseline_once() -> None:
    world = started(snapshot(LONG, objectives=[ERRORS, COST]))
    world.lost_on_canary = 1.0
    world.tick(40)
    edited(world, objectives=[ERRORS]).tick()
    edited(world, objectives=[ERRORS, COST]).tick()
    state = make_test(ERRORS).decode(row(world).checkpoint or "")
    assert state.dispersion.blocks[0].changes <= 61
