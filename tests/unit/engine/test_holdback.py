"""The holdback: some users stay on the old version while the new one bakes, so that it is still compared."""

import pytest

from promptrollout.api.rollout import Snapshot
from tests.world import ERRORS, INTERVAL, World, snapshot, started, version

V1, V2, V3 = version("v1"), version("v2"), version("v3")
ONE, TWO = V1.version, V2.version


def rules(**fields: object) -> Snapshot:
    return snapshot(**({"holdback_percent": 5, "bake_seconds": 3600} | fields))


def until(world: World, stage: str) -> World:
    for _ in range(400):
        if world.status.stage == stage:
            return world
        world.tick()
    raise AssertionError(f"{world.status.stage}: {world.status.message}")


def baking(rules_: Snapshot | None = None, **fields: object) -> World:
    return until(started(rules_ or rules(), **fields), "Baking")


def newest(world: World, reason: str) -> str:
    return next(d.message for d in world.status.history if d.reason == reason)


# ---------------------------------------------------------------- who gets what


def test_all_but_the_holdback_get_the_new_version_and_all_of_them_after_the_bake() -> None:
    world = baking()
    assert (world.status.stable, world.status.previous, world.status.weight) == (V2, V1, 95)
    assert (world.status.phase, world.condition("Ready")) == ("Healthy", "True")
    assert world.status.message == f"{TWO} serves 95 %; {ONE} serves 5 % for comparison until the bake is over"
    assert newest(world, "StepCompleted") == "step 2/2 (50 %) passed; going to 95 %"
    assert newest(world, "RolloutCompleted") == f"{TWO} serves 95 %; {ONE} serves 5 % for comparison for 3600 s"
    until(world, "Idle")
    assert newest(world, "BakeCompleted") == f"{TWO} serves 100 %; {ONE} is unloaded"
    assert (world.status.weight, world.status.phase) == (100, "Healthy")
    v2 = V2.digest
    assert world.weights == [(0, None), (0, v2), (10, v2), (50, v2), (95, v2), (0, None)]
    assert world.stables == [V1.digest] * 5 + [v2], "only the last configuration has the new version as stable"


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"holdback_percent": 0}, 100),
        ({"holdback_percent": 10}, 90),
        ({"bake_seconds": 0}, 100),
        ({"analyse": False, "objectives": []}, 100),
        ({"steps": rules().steps[:1] + snapshot({"weight": 97, "minDurationSeconds": 30}).steps}, 97),
        ({"steps": rules().steps[:1] + snapshot({"weight": 100, "minDurationSeconds": 30}).steps}, 100),
    ],
    ids=["switched off", "larger", "no bake", "no analysis", "less is left", "nothing is left"],
)
def test_how_many_are_held_back(fields: dict[str, object], weight: int) -> None:
    world = started(rules(**fields))
    for _ in range(400):
        if world.status.stable == V2:
            break
        world.tick()
        if world.status.step == "2/2" and world.condition("InsufficientTraffic") == "True":
            world.tell("promote")  # at 100 % there is nothing to compare with
    assert (world.status.stable, world.weights[3:][-1][0] if weight < 100 else 100) == (V2, weight)
    assert world.status.weight == weight


def test_a_first_version_and_the_way_back_hold_nobody_back() -> None:
    bounded = ERRORS.model_copy(update={"max": "0.02"})
    first = World(rules(objectives=[bounded])).tick()
    assert (first.status.stage, first.status.weight, first.weights) == ("Baking", 100, [(0, None)])
    world = until(baking(), "Idle")
    world.desired = V1
    world.settle()
    assert (world.at, world.status.stable) == (("Idle", 0), V1)
    assert (100, V1.digest) in world.weights


def test_undo_after_the_bake_goes_straight_to_100() -> None:
    world = until(baking(), "Idle")
    world.tell("undo")
    world.settle()
    assert (world.status.stable, world.weights[-2:]) == (V1, [(100, V1.digest), (0, None)])


@pytest.mark.parametrize("loading", [False, True])
def test_a_full_promotion_holds_nobody_back(loading: bool) -> None:
    world = World(rules())
    world.settle()
    world.desired, world.deaf = V2, {"pod-a"} if loading else set()
    world.settle()
    assert world.status.stage == ("Loading" if loading else "Stepping")
    world.tell("promote-full")
    world.deaf = set()
    world.heard = dict.fromkeys(world.pods, world.sequence)
    world.settle()
    assert world.at == ("Baking", 100)


def test_a_full_promotion_ends_a_holdback() -> None:
    world = baking().tick()
    world.tell("promote-full")
    assert world.at == ("Baking", 100)
    assert newest(world, "FullPromotion") == f"alice ended the holdback: {TWO} goes to 100 %"
    assert world.status.message == f"{TWO} serves 100 %; {ONE} stays loaded"
    world.tell("promote-full", id="again")
    assert newest(world, "CommandRefused").endswith("no canary is in progress")


def test_an_edit_while_it_is_promoted_takes_nobody_back() -> None:
    world = started(rules())
    while world.status.step != "2/2":
        world.tick()
    world.deaf = {"pod-a"}
    until(world, "Promoting")
    world.rules = rules(holdback_percent=20)
    world.tick()
    assert world.at == ("Promoting", 95)
    world.rules = rules(bake_seconds=0)
    world.deaf = set()
    world.heard = dict.fromkeys(world.pods, world.sequence)
    world.tick()
    assert (world.at, world.status.stable) == (("Idle", 0), V2)


def test_a_third_version_in_the_bake_starts_from_the_promoted_one() -> None:
    world = baking()
    world.desired = V3
    world.settle()
    assert world.weights[-2:] == [(0, V3.digest), (10, V3.digest)]
    assert world.stables[-2:] == [V2.digest] * 2


# ---------------------------------------------------------------- what the bake sees


def test_a_regression_that_begins_after_the_promotion_goes_back() -> None:
    """Without an absolute bound."""
    world = baking().tick(4)
    world.error_rate = {V2.digest: 0.05}
    world.tick(30)
    assert (world.status.stable, world.status.phase) == (V1, "Degraded")
    assert world.weights[-2:] == [(0, V2.digest), (0, None)]
    assert [r.reason for r in world.status.rejected] == ["ObjectiveBreached"]
    breach = next(d for d in world.status.history if d.reason == "ObjectiveBreached")
    assert "against 1 % on stable" in breach.message
    assert breach.weight == 95
    assert breach.window_seconds == breach.evidence[0].canary_samples // 1_900 * INTERVAL


def test_what_hits_both_versions_in_the_bake_is_no_verdict() -> None:
    bounded = ERRORS.model_copy(update={"max": "0.05"})
    world = baking(rules(objectives=[bounded])).tick(4)
    world.error_rate = {V1.digest: 0.2, V2.digest: 0.2}
    world.tick(30)
    assert (world.at, world.status.rejected) == (("Baking", 95), [])
    world.error_rate = {V2.digest: 0.2}
    world.tick(30)
    assert world.status.stable == V1


def test_the_test_of_the_bake_is_fresh_and_knows_how_stable_fluctuates() -> None:
    """What passed in the steps does not outweigh what begins in the bake."""
    world = started(rules(steps=snapshot({"weight": 50, "minDurationSeconds": 6_000}).steps), requests=600.0)
    world = until(world, "Baking")
    row = world.status.analysis[0]
    assert (row.canary_samples, row.checkpoint is None) == (0, False), "stable's intervals alone are folded in"
    world.tick(2)
    assert world.status.analysis[0].canary_samples == 2 * 570
    assert world.status.analysis[0].stable_samples == 2 * 30
    assert [d.evidence[0].canary_samples for d in world.status.history if d.reason == "StepCompleted"] == [60_000]


def test_the_bake_takes_as_long_as_it_is_measured() -> None:
    world = baking(rules(bake_seconds=120))
    world.silent = {"errors", "cost"}
    world.tick(20)
    assert world.at == ("Baking", 95)
    world.silent = set()
    world.tick(4)
    assert world.status.stage == "Idle"


def test_pauses_and_a_silent_source_keep_the_holdback() -> None:
    world = baking(rules(bake_seconds=120))
    world.paused = True
    world.tick(10)
    assert world.at == ("Baking", 95)
    assert world.status.message.endswith(
        "until the bake is over, held: paused by spec.paused: set it to false in the manifest"
    )
    world.paused, world.contact = False, False
    world.tick(10)
    assert (world.at, world.asked > 0) == (("Baking", 95), True)
    world.contact = None
    assert until(world, "Idle").weights[-1] == (0, None)


def test_an_outage_of_the_new_versions_provider_in_the_bake_is_no_verdict() -> None:
    world = baking(rules(bake_seconds=300)).tick(2)
    world.provider_unreachable, world.error_rate = True, {V2.digest: 1.0}
    world.settle()
    world.tick(60)
    assert (world.at, world.status.rejected) == (("Baking", 95), [])
    assert "CanaryProviderUnreachable" in world.events
    world.provider_unreachable, world.error_rate = False, {}
    assert until(world, "Idle").status.stable == V2


@pytest.mark.parametrize("verb", ["abort", "undo"])
def test_a_person_can_take_it_back_in_the_bake(verb: str) -> None:
    world = baking().tick()
    world.tell(verb)
    assert world.status.stable == V1
    assert world.weights[-2:] == [(0, V2.digest), (0, None)]


def test_a_status_lost_in_the_bake_leaves_nobody_on_the_old_version() -> None:
    world = baking().tick()
    world.lose_status()
    world.settle()
    assert (world.status.stable, world.weights[-1], world.stables[-1]) == (V2, (0, None), V2.digest)


def test_metrics_that_are_behind_at_the_end_of_the_bake_keep_the_holdback() -> None:
    """After an outage of the source: what was read first is enough for the bake's time, but it is not of now."""
    world = baking(rules(bake_seconds=300)).tick(2)
    world.metrics_available, world.read_until = False, world.now + 300
    world.tick(40)
    world.metrics_available = True
    world.settle()
    assert world.at == ("Baking", 95)
    world.read_until = None
    assert until(world, "Idle").status.stable == V2


def test_a_promotion_that_lost_its_metrics_is_compared_again_at_a_stricter_level() -> None:
    world = started(rules(on_metrics_loss="ReduceToFirstStep"))
    while world.status.step != "2/2":
        world.tick()
    world.deaf = {"pod-a"}
    until(world, "Promoting").metrics_available = False
    world.tick(25)
    assert world.at == ("Stepping", 10)
    world.metrics_available, world.deaf = True, set()
    world.heard = dict.fromkeys(world.pods, world.sequence)
    assert until(world, "Baking").status.clock.restarts == 1
