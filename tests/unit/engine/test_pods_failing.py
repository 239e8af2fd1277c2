"""A canary that ends its pods is the worst canary: it exports no metrics that could tell."""

from promptrollout.engine.lifecycle.facts import PodFailure, Pods
from promptrollout.engine.lifecycle.surroundings import SUSPECT_SECONDS, TRIAL_SECONDS, TURN_SECONDS
from tests.world import INTERVAL, World, snapshot, started, version

V1, V2, V3 = version("v1"), version("v2"), version("v3")
LONG = snapshot({"weight": 10, "minDurationSeconds": 7200}, {"weight": 50})


def fail(world: World, times: int = 2, *, named: bool = False, ended: bool = True) -> None:
    """So many pods of the gateway have ended one after the other, the last one now."""
    when = tuple(range(world.now - times + 1, world.now + 1))
    text = "gateway pod default-gateway-x ended (exit code 139)"
    failure = PodFailure(when, text, world.now if ended else None, world.now if named else None)
    before = world.pods_state
    world.pods_state = Pods(failure, calm=False, trial=before.trial, raised_at=before.raised_at)
    world.settle()


def calm(world: World, trial: str = "app") -> None:
    """All pods are ready again, and it is the turn of `trial`."""
    world.now += INTERVAL
    world.pods_state = Pods(world.pods_state.failure, calm=True, trial=trial)
    world.settle()


def test_it_is_taken_back_at_once_and_not_loaded_any_more_but_not_rejected() -> None:
    world = started()
    world.tick()
    fail(world)
    assert world.weights[-1] == (0, None)
    assert (world.status.stage, world.status.canary, world.status.rejected) == ("Loading", V2, [])
    decision = next(d for d in world.status.history if d.reason == "PodsFailing")
    assert decision.type == "Warning"
    assert "default-gateway-x ended (exit code 139)" in decision.message
    world.tick(10)
    assert world.weights[-1] == (0, None)
    assert "tried again alone once all pods have been ready" in world.status.message


def test_metrics_and_acknowledgements_are_not_needed_for_it() -> None:
    world = started(metrics_available=False)
    world.metrics_available = True
    world.settle()
    world.metrics_available = False
    world.deaf = set(world.pods)
    world.now += 5
    fail(world)
    assert (world.at, world.intent and world.intent.canary) == (("Withdrawing", 0), None)


def test_it_is_tried_again_alone_when_pods_are_calm_and_goes_on_when_they_hold_out() -> None:
    world = started()
    world.tick()
    fail(world)
    calm(world, trial="another")
    world.tick(3)
    assert world.weights[-1] == (0, None)
    assert "after rollout another" in world.status.message
    calm(world)
    assert world.weights[-2:] == [(0, V2.digest), (10, V2.digest)]
    assert world.status.clock.suspected_at is not None
    world.pods_state = Pods(world.pods_state.failure)
    world.tick(20)
    assert (world.status.stable, world.events.count("PodsFailing")) == (V2, 1)


def test_it_is_cleared_when_pods_have_held_out_at_the_weight_that_was_too_much() -> None:
    world = started(LONG)
    world.tick()
    fail(world)
    calm(world)
    world.tick(TRIAL_SECONDS // INTERVAL - 1)
    assert world.status.clock.suspected_at is not None
    world.tick(2)
    assert (world.status.clock.suspected_at, world.status.clock.trial_at) == (None, None)


def test_one_that_fails_alone_is_rejected() -> None:
    world = started()
    world.tick()
    fail(world)
    calm(world)
    world.tick()
    fail(world)
    assert [r.reason for r in world.status.rejected] == ["PodsFailing"]
    assert (world.status.stage, world.status.phase, world.weights[-1]) == ("Idle", "Degraded", (0, None))
    assert world.events[-1] == "RollbackCompleted"
    calm(world, trial="")
    world.tick(5)
    assert world.status.stable == V1


def test_one_whose_request_a_pod_was_at_work_on_is_rejected_at_once() -> None:
    world = started()
    fail(world, times=1, named=True)
    assert [r.digest for r in world.status.rejected] == [V2.digest]


def test_what_a_pod_was_at_work_for_may_be_known_later() -> None:
    world = started()
    world.tick()
    fail(world)
    assert world.status.rejected == []
    failure = world.pods_state.failure
    assert failure is not None
    world.now += 5
    world.pods_state = Pods(PodFailure(failure.times, failure.message, named_at=failure.times[-1]))
    world.settle()
    assert [r.digest for r in world.status.rejected] == [V2.digest]


def test_pods_that_fail_while_they_load_it_unload_it_and_reject_nothing() -> None:
    """No user met it: it may be stable that ends them."""
    world = started()
    world.tick()
    fail(world)
    world.deaf = set(world.pods)
    calm(world)
    assert (world.status.stage, world.weights[-1]) == ("Loading", (0, V2.digest))
    world.now += 5
    fail(world)
    world.deaf = set()
    world.settle()
    assert (world.status.rejected, world.intent and world.intent.canary) == ([], None)
    began = world.status.clock.suspected_at
    assert began is not None
    assert began > world.now + SUSPECT_SECONDS, "not at once again"


def test_one_that_a_pod_was_loading_when_it_ended_is_rejected() -> None:
    world = started(deaf={"pod-a", "pod-b"})
    assert world.at == ("Loading", 0)
    world.now += 1
    fail(world, times=1, named=True)
    assert [r.digest for r in world.status.rejected] == [V2.digest]


def test_one_that_ends_pods_only_at_a_higher_weight_is_under_suspicion_up_to_there() -> None:
    world = started(snapshot({"weight": 5, "minDurationSeconds": 60}, {"weight": 50, "minDurationSeconds": 60}))
    while world.at != ("Stepping", 50):
        world.tick()
    fail(world)
    calm(world)
    assert world.at == ("Stepping", 5)
    while world.at != ("Stepping", 50):
        world.tick()
    assert world.status.clock.suspected_at is not None
    world.now += 1
    fail(world, times=1)
    assert [r.reason for r in world.status.rejected] == ["PodsFailing"]


def test_on_trial_it_is_not_to_blame_for_what_follows_anothers_raise() -> None:
    world = started()
    world.tick()
    fail(world)
    calm(world)
    world.tick()
    world.pods_state = Pods(raised_at=world.now)
    fail(world)
    assert world.status.rejected == []
    assert world.events.count("PodsFailing") == 2


def test_failures_before_the_exposure_say_nothing() -> None:
    world = World()
    world.settle()
    world.pods_state = Pods(PodFailure((world.now - 1, world.now), "gateway pod x ended"), calm=False)
    world.tick()
    world.desired = V2
    world.settle()
    world.tick(2)
    assert "PodsFailing" not in world.events


def test_one_pod_that_ends_is_an_accident() -> None:
    world = started()
    world.tick()
    fail(world, times=1)
    assert (world.at, "PodsFailing" in world.events) == (("Stepping", 10), False)


def test_failures_long_after_the_last_raise_are_put_down_to_whoever_was_raised_since() -> None:
    world = started(LONG)
    world.tick(SUSPECT_SECONDS // INTERVAL + 2)
    world.pods_state = Pods(raised_at=world.now - 10)
    fail(world)
    assert world.at == ("Stepping", 10)
    world.pods_state = Pods(raised_at=world.status.clock.stage_since)  # nobody was
    fail(world)
    assert world.weights[-1] == (0, None)


def test_others_of_the_gateway_wait_where_they_are_until_the_suspects_were_tried() -> None:
    world = started()
    world.pods_state = Pods(trial="another")
    world.tick(10)
    assert world.at == ("Stepping", 10)
    assert "waiting while rollout another is tried again alone" in world.status.message
    world.pods_state = Pods()
    world.tick(20)
    assert world.status.stable == V2


def test_a_turn_that_is_not_used_passes_on() -> None:
    world = started()
    world.tick()
    fail(world)
    world.paused = True
    calm(world)
    began = world.status.clock.suspected_at
    world.tick(TURN_SECONDS // INTERVAL + 1)
    since = world.status.clock.suspected_at
    assert since is not None
    assert began is not None
    assert since > world.now, "others have theirs before it gets another one"
    assert world.weights[-1] == (0, None)


def test_what_was_promoted_a_moment_ago_is_taken_back_too() -> None:
    world = started(snapshot(bake_seconds=3600))
    while world.status.stage != "Baking":
        world.tick()
    assert world.status.stable == V2
    fail(world)
    assert (world.status.stage, world.status.stable, world.weights[-1]) == ("Loading", V1, (0, None))


def test_abort_of_a_suspect_rejects_it_and_no_pod_loads_it_on_the_way() -> None:
    world = started()
    world.tick()
    fail(world)
    sent = len(world.weights)
    world.tell("abort")
    world.settle()
    assert [r.reason for r in world.status.rejected] == ["RolloutAborted"]
    assert all(canary is None for _, canary in world.weights[sent:])


def test_another_version_starts_without_suspicion() -> None:
    world = started()
    world.tick()
    fail(world)
    world.now += 1
    world.desired = V3
    world.settle()
    assert (world.status.canary, world.status.clock.suspected_at) == (V3, None)


def test_suspicion_and_trial_survive_a_restart() -> None:
    world = started()
    world.tick()
    fail(world)
    world.restart()
    world.tick(2)
    assert world.weights[-1] == (0, None)
    calm(world)
    world.restart()
    fail(world)
    assert [r.reason for r in world.status.rejected] == ["PodsFailing"]


def test_pods_that_only_answer_no_probes_reject_nothing() -> None:
    """A busy node's pods do that, too."""
    world = started()
    world.tick()
    fail(world, ended=False)
    calm(world)
    world.tick()
    fail(world, ended=False)
    assert (world.status.rejected, world.status.clock.trial_at) == ([], None)
    assert world.events.count("PodsFailing") == 2


def test_a_revert_in_git_is_never_taken_back_either() -> None:
    world = started()
    while world.status.stage != "Idle" or world.status.stable != V2:
        world.tick()
    world.deaf = set(world.pods)
    world.desired = V1
    world.settle()
    world.now += 1
    fail(world)
    assert (world.status.stage, world.weights[-1]) == ("Loading", (0, V1.digest))
    assert "PodsFailing" not in world.events


def test_a_way_back_is_never_taken_back() -> None:
    """What is left may be the very version that ends the pods."""
    world = started()
    while world.status.stage != "Idle" or world.status.stable != V2:
        world.tick()
    world.deaf = set(world.pods)
    world.tell("undo")
    world.now += 1
    fail(world)
    world.deaf = set()
    world.settle()
    world.send(world.intent)  # type: ignore[arg-type]
    world.settle()
    assert (world.status.stable, "PodsFailing" in world.events) == (V1, False)
