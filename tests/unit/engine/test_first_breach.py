"""`onFirstBreach: WithdrawAndRetry`: the first breach takes the canary back, the second one rejects it."""

import pytest

from promptrollout.api.command import Command
from promptrollout.engine.lifecycle.analysis import FAMILY_LEVEL, levels
from promptrollout.engine.lifecycle.holds import RETRY_SECONDS
from tests.world import ERRORS, INTERVAL, World, snapshot, started, version

V1, V2 = version("v1"), version("v2")
LONG = {"weight": 10, "minDurationSeconds": 36_000}
TWICE = {"on_first_breach": "WithdrawAndRetry"}


def breached(world: World, reason: str) -> World:
    world.error_rate = {V2.digest: 0.3}
    for _ in range(20):
        if reason in world.events:
            return world
        world.tick()
    raise AssertionError(f"no {reason}: {world.status.message}")


def undo_of(world: World) -> Command:
    s = world.status
    fields = {"revision": s.revision, "attempt": s.attempt, "step": s.current_step_index}
    return Command.model_validate({"id": "undo", "verb": "undo", "rolloutUID": world.uid} | fields)


def tried_again(world: World) -> World:
    world.error_rate = {}
    return world.tick(RETRY_SECONDS // INTERVAL)


def test_by_default_the_first_breach_rejects() -> None:
    world = breached(started(snapshot(LONG)), "ObjectiveBreached")
    assert [r.digest for r in world.status.rejected] == [V2.digest]


def test_the_first_breach_goes_to_weight_0_at_once_and_rejects_nothing() -> None:
    world = breached(started(snapshot({"weight": 5}, LONG, **TWICE)).tick(12), "FirstBreach")
    assert world.weights[-1] == (0, V2.digest)
    assert world.status.rejected == []
    assert "ObjectiveBreached" not in world.events
    decision = next(d for d in world.status.history if d.reason == "FirstBreach")
    assert decision.type == "Warning"
    assert decision.evidence[0].verdict == "Breach", "the Event has its evidence"
    world.tick()
    assert world.at == ("Loading", 0)
    assert "taken back by a first breach: tried once more in" in world.status.message


def test_it_is_tried_once_more_from_the_first_step_and_without_evidence_of_before() -> None:
    world = breached(started(snapshot({"weight": 5}, LONG, **TWICE)).tick(12), "FirstBreach")
    world.tick(RETRY_SECONDS // INTERVAL - 2)
    assert world.at == ("Loading", 0)
    tried_again(world)
    assert world.at[0] == "Stepping"
    row = next(row for row in world.status.analysis if row.name == "errors")
    assert row.verdict != "Breach"
    assert world.status.snapshot is not None
    assert levels(world.status.snapshot, 1, world.status.clock).breach == FAMILY_LEVEL


def test_the_second_breach_rejects_also_after_a_restart() -> None:
    world = breached(started(snapshot(LONG, **TWICE)), "FirstBreach")
    tried_again(world)
    world.restart()
    world.settle()
    breached(world, "ObjectiveBreached")
    world.tick(2)
    assert [r.digest for r in world.status.rejected] == [V2.digest]
    assert world.status.stable == V1
    assert world.events.count("FirstBreach") == 1


def test_a_healthy_second_try_is_promoted() -> None:
    world = breached(started(snapshot(**TWICE)), "FirstBreach")
    tried_again(world)
    for _ in range(60):
        world.tick()
    assert world.status.stable == V2
    assert world.status.rejected == []


def test_another_version_has_a_first_breach_of_its_own() -> None:
    world = breached(started(snapshot(LONG, **TWICE)), "FirstBreach")
    world.desired = version("v3")
    world.error_rate = {version("v3").digest: 0.3}
    world.tick(20)
    assert world.events.count("FirstBreach") == 2
    assert world.status.rejected == []


def test_a_breach_in_the_bake_goes_back_and_tries_again_from_the_first_step() -> None:
    world = started(snapshot(bake_seconds=3600, holdback_percent=10, **TWICE))
    for _ in range(60):
        if world.status.stage == "Baking":
            break
        world.tick()
    breached(world, "FirstBreach")
    world.tick()
    assert (world.status.stable, world.status.canary) == (V1, V2)
    assert world.at == ("Loading", 0)
    tried_again(world)
    assert world.at[0] == "Stepping"


@pytest.mark.parametrize("undone", [False, True])
def test_the_way_back_is_not_tried_again_as_it_would_meet_everybody_at_once(undone: bool) -> None:
    bounded = ERRORS.model_copy(update={"max": "0.05"})
    world = started(snapshot(objectives=[bounded], **TWICE)).tick(40)
    assert (world.status.stage, world.status.stable) == ("Idle", V2)
    world.error_rate, world.weights = {V1.digest: 0.5}, []
    if not undone:
        world.desired = V1
    while world.status.stage != "Promoting":
        world.command = None if not undone else world.command or undo_of(world)
        world.plan_once()
    world.deaf, world.heard = {"pod-a"}, {"pod-a": 0}
    world.tick(5)
    world.deaf, world.heard = set(), dict.fromkeys(world.pods, world.sequence)
    world.tick(30)
    assert world.weights.count((100, V1.digest)) == 1
    assert [r.digest for r in world.status.rejected] == [V1.digest]


def test_a_full_promotion_ends_the_wait() -> None:
    world = breached(started(snapshot(LONG, **TWICE)), "FirstBreach").tick(2)
    world.error_rate = {}
    world.tell("promote-full")
    assert world.at == ("Baking", 100)
