"""What people and tools read of a rollout: phase, reason, message and all conditions, in every situation."""

import dataclasses
from collections.abc import Callable

import pytest

from promptrollout.api.rollout import RolloutStatus
from promptrollout.engine.lifecycle.plan import plan
from tests.world import ERRORS, World, snapshot, started, version

V1, V2, V3 = version("v1"), version("v2"), version("v3")
ONE, TWO, THREE = V1.version, V2.version, V3.version
AT_REST = {"Stalled": "NotStalled", "Paused": "NotPaused", "InsufficientTraffic": "EnoughOrNotDue"}
"""Reasons of conditions that are False, where the rollout's own reason says nothing about them."""


def nothing_to_serve() -> World:
    world = World()
    world.problems, world.rules = ("spec.x: broken", "spec.y: too"), None
    return world.tick()


def first_version_on_its_way() -> World:
    world = World()
    world.deaf = {"pod-b"}
    world.settle()
    return world


def at_rest() -> World:
    return World().tick()


def loading() -> World:
    world = World()
    world.settle()
    world.deaf, world.desired = {"pod-b"}, V2
    return world.tick()


def stepping() -> World:
    return started().tick()


def stepping_unconfirmed() -> World:
    world = started()
    world.deaf = {"pod-a"}
    world.tick(12)
    assert world.at == ("Stepping", 50)
    return world


def promoting() -> World:
    world = started()
    world.deaf = {"pod-a"}
    world.tell("promote-full")
    return world.tick()


def paused() -> World:
    world = started()
    world.tell("pause")
    return world


def frozen() -> World:
    world = started()
    world.frozen = "black-friday"
    return world.tick()


def blind() -> World:
    world = started()
    world.metrics_available = False
    return world.tick()


def pause_step(**pause: int) -> World:
    rules = snapshot({"weight": 10, "minDurationSeconds": 60}, {"pause": pause}, {"weight": 50})
    return started(rules).tick(10)


def thin(choice: str) -> World:
    return started(snapshot(on_insufficient_traffic=choice), requests=20.0).tick(16 if choice == "Hold" else 18)


def thin_and_paused() -> World:
    world = thin("RequireApproval")
    world.tell("pause")
    return world


def invalid_in_progress() -> World:
    world = started()
    world.rules, world.problems = None, ("spec.x: broken",)
    return world.tick()


def withdrawing() -> World:
    world = started(error_rate={V2.digest: 0.3})
    world.deaf = {"pod-a"}
    return world.tick()


def cancelled() -> World:
    world = started()
    world.deaf, world.desired = {"pod-a"}, V1
    return world.tick()


def baking() -> World:
    world = started(snapshot(bake_seconds=3600))
    while world.status.stage != "Baking":
        world.tick()
    return world.tick()


def rejected() -> World:
    world = started(error_rate={V2.digest: 0.3})
    return world.tick(5)


def overridden() -> World:
    world = World()
    world.settle()
    world.overridden = True
    return world.tick()


def unserved(pods: int) -> World:
    world = World()
    world.settle()
    world.unserved = pods
    return world.tick()


def invalid_at_rest(*pods: str) -> World:
    world = World()
    world.settle()
    world.pods = list(pods)
    world.rules, world.desired, world.problems = None, None, ("spec.x: broken",)
    return world.tick()


SITUATIONS: dict[str, tuple[Callable[[], World], str, str, str, set[str]]] = {
    "nothing to serve": (nothing_to_serve, "Degraded", "InvalidSpec", "spec.x: broken", {"Stalled", "InvalidSpec"}),
    "a first version on its way": (
        first_version_on_its_way,
        "Progressing",
        "Delivering",
        f"{ONE}: 1 of 2 ready pods confirmed; waiting for pod-b (silent)",
        {"Reconciling"},
    ),
    "at rest": (at_rest, "Healthy", "Healthy", f"{ONE} serves 100 %", {"Ready", "Completed", "Delivered"}),
    "loading": (
        loading,
        "Progressing",
        "Loading",
        f"{TWO} at 0 %: 1 of 2 ready pods confirmed; waiting for pod-b (silent)",
        {"Reconciling", "Progressing", "MetricsAvailable"},
    ),
    "in a step": (
        stepping,
        "Progressing",
        "Stepping",
        f"{TWO} at 10 %, step 1/2",
        {"Reconciling", "Progressing", "Delivered", "MetricsAvailable"},
    ),
    "in a step that is not confirmed": (
        stepping_unconfirmed,
        "Progressing",
        "Stepping",
        f"{TWO} at 50 %: 1 of 2 ready pods confirmed; waiting for pod-a (silent)",
        {"Reconciling", "Progressing", "MetricsAvailable"},
    ),
    "promoting": (
        promoting,
        "Progressing",
        "Promoting",
        f"{TWO} at 100 %: 1 of 2 ready pods confirmed; waiting for pod-a (silent)",
        {"Reconciling", "Progressing", "MetricsAvailable"},
    ),
    "paused": (
        paused,
        "Paused",
        "Held",
        f"{TWO} at 10 %, held: paused by a person: `resume` continues",
        {"Reconciling", "Paused", "Delivered", "MetricsAvailable"},
    ),
    "frozen": (
        frozen,
        "Paused",
        "Held",
        f"{TWO} at 10 %, held: PromptFreeze black-friday is in force",
        {"Reconciling", "Paused", "Delivered", "MetricsAvailable"},
    ),
    "blind": (
        blind,
        "Progressing",
        "Held",
        f"{TWO} at 10 %, held: metrics are not available: connection refused",
        {"Reconciling", "Progressing", "Delivered"},
    ),
    "in a pause until promote": (
        pause_step,
        "Paused",
        "PauseStep",
        f"{TWO} at 10 %: pause step 2/3, until promote",
        {"Reconciling", "Paused", "Delivered", "MetricsAvailable"},
    ),
    "in a timed pause": (
        lambda: pause_step(durationSeconds=3600),
        "Paused",
        "PauseStep",
        f"{TWO} at 10 %: pause step 2/3, for 3600 s",
        {"Reconciling", "Paused", "Delivered", "MetricsAvailable"},
    ),
    "asking for approval": (
        lambda: thin("RequireApproval"),
        "Paused",
        "InsufficientTraffic",
        f"{TWO} at 10 %, approve with promote, or abort: errors: 36 of 100 canary samples in this step",
        {"Reconciling", "Paused", "Delivered", "MetricsAvailable", "InsufficientTraffic"},
    ),
    "paused while there is too little traffic": (
        thin_and_paused,
        "Paused",
        "Held",
        f"{TWO} at 10 %, held: paused by a person: `resume` continues",
        {"Reconciling", "Paused", "Delivered", "MetricsAvailable"},
    ),
    "holding for traffic": (
        lambda: thin("Hold"),
        "Progressing",
        "InsufficientTraffic",
        f"{TWO} at 10 %, holding: errors: 32 of 100 canary samples in this step",
        {"Reconciling", "Progressing", "Delivered", "MetricsAvailable", "InsufficientTraffic"},
    ),
    "invalid in progress": (
        invalid_in_progress,
        "Paused",
        "InvalidSpec",
        f"{TWO} at 10 %, held: the spec is invalid: spec.x: broken",
        {"Paused", "Stalled", "Delivered", "MetricsAvailable", "InvalidSpec"},
    ),
    "being taken back": (
        withdrawing,
        "Degraded",
        "ObjectiveBreached",
        f"withdrawing {TWO} (ObjectiveBreached): 1 of 2 ready pods confirmed; waiting for pod-a (silent)",
        {"Stalled"},
    ),
    "cancelled": (
        cancelled,
        "Progressing",
        "RolloutCancelled",
        f"withdrawing {TWO} (RolloutCancelled): 1 of 2 ready pods confirmed; waiting for pod-a (silent)",
        {"Reconciling", "Progressing"},
    ),
    "baking": (
        baking,
        "Healthy",
        "Baking",
        f"{TWO} serves 100 %; {ONE} stays loaded",
        {"Ready", "Completed", "Delivered", "MetricsAvailable"},
    ),
    "rejected": (
        rejected,
        "Degraded",
        "ObjectiveBreached",
        f"{TWO} was rolled back (ObjectiveBreached); {ONE} serves. "
        "Fix the prompt, or `promptrollout retry app -n shop`",
        {"Stalled", "Delivered"},
    ),
    "overridden": (
        overridden,
        "Degraded",
        "EmergencyOverride",
        f"the emergency override sends everybody to {ONE}; remove it with `promptrollout emergency clear app -n shop`",
        {"Stalled", "Delivered"},
    ),
    "one pod lacks it": (
        lambda: unserved(1),
        "Healthy",
        "Healthy",
        f"{ONE} serves 100 %",
        {"Ready", "Completed", "Delivered"},
    ),
    "no pod serves it": (
        lambda: unserved(2),
        "Degraded",
        "NotServed",
        f"no gateway pod serves {ONE}: 2 of 2 ready pods confirmed",
        {"Stalled", "Delivered"},
    ),
    "invalid at rest": (
        lambda: invalid_at_rest("pod-a"),
        "Degraded",
        "InvalidSpec",
        f"spec.x: broken; {ONE} keeps serving",
        {"Stalled", "InvalidSpec", "Delivered"},
    ),
    "invalid without pods": (
        invalid_at_rest,
        "Degraded",
        "InvalidSpec",
        "spec.x: broken; no gateway pod is ready, so nothing answers",
        {"Stalled", "InvalidSpec"},
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_phase_reason_message_and_every_condition(situation: str) -> None:
    make, phase, reason, message, true = SITUATIONS[situation]
    status = make().status
    assert (status.phase, status.message) == (phase, message)
    found = {c.type: c for c in status.conditions}
    assert len(found) == 12
    assert {kind for kind, c in found.items() if c.status == "True"} == true
    for kind in ("Ready", "Reconciling"):
        assert (found[kind].reason, found[kind].message) == (reason, message)
    for kind in ("Stalled", "Paused", "InsufficientTraffic"):
        said = (reason, message) if kind in true else (AT_REST[kind], "")
        assert (found[kind].reason, found[kind].message) == said
    assert found["Completed"].reason == ("Completed" if "Completed" in true else reason)
    assert found["InvalidSpec"].reason == ("InvalidSpec" if "InvalidSpec" in true else "Valid")
    assert found["Delivered"].reason == ("Acknowledged" if "Delivered" in true else "Waiting")
    analysing = status.stage in ("Loading", "Stepping", "Promoting", "Baking")
    assert (found["AssignmentKeyMissing"].reason, found["AssignmentKeyMissing"].message) == ("KeysPresent", "")
    assert (found["HeavyKey"].reason, found["HeavyKey"].message) == ("KeysSpread", "")
    metrics = found["MetricsAvailable"]
    if not analysing:
        assert (metrics.status, metrics.reason, metrics.message) == ("Unknown", "NotAnalysing", "")
    elif "MetricsAvailable" in true:
        assert (metrics.status, metrics.reason, metrics.message) == ("True", "Available", "")
    else:
        assert (metrics.status, metrics.reason, metrics.message) == (
            "False",
            "MetricsUnavailable",
            "connection refused",
        )


@pytest.mark.parametrize(
    "problem", ["objective paused-requests is not measured: no series", "PromptFreeze-like: connection refused"]
)
def test_words_in_a_message_do_not_make_the_phase(problem: str) -> None:
    world = started()
    world.metrics_available, world.metrics_problem = False, problem
    world.tick()
    assert problem in world.status.message
    assert world.status.phase == "Progressing"
    assert world.condition("Paused") == "False"


def test_all_problems_are_in_the_condition_and_the_first_in_the_message() -> None:
    world = nothing_to_serve()
    assert next(c.message for c in world.status.conditions if c.type == "InvalidSpec") == (
        "spec.x: broken; spec.y: too"
    )


def test_the_transition_time_moves_only_with_the_status() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 900})).tick()
    before = {c.type: c.last_transition_time for c in world.status.conditions}
    world.tick(2)
    world.tell("pause")
    after = {c.type: c.last_transition_time for c in world.status.conditions}
    changed = {kind for kind in after if after[kind] != before[kind]}
    assert changed == {"Paused", "Progressing"}
    assert after["Paused"] == "2027-01-15T08:01:30Z"


def told(world: World, share: int | None, note: str = "") -> RolloutStatus:
    delivered = world.delivered()
    assert delivered is not None
    facts = dataclasses.replace(
        world.facts(), delivered=dataclasses.replace(delivered, unassigned_share_percent=share), note=note
    )
    world.status = plan(facts, world.now).status
    return world.status


def test_requests_without_a_stickiness_key_are_said_and_stay_said_while_nobody_is_asked() -> None:
    world = started(requests=200.0).tick()
    status = told(world, 7)
    assert status.message.endswith("; 7 % of the requests come without a stickiness key")
    found = {c.type: c for c in status.conditions}["AssignmentKeyMissing"]
    assert (found.status, found.reason) == ("True", "KeyMissing")
    assert found.message.startswith("7 % of the requests came without a stickiness key")
    again = {c.type: c for c in told(world, None).conditions}["AssignmentKeyMissing"]
    assert again == found
    none = {c.type: c for c in told(world, 0).conditions}["AssignmentKeyMissing"]
    assert (none.status, none.reason, none.message) == ("False", "KeysPresent", "")


def test_a_note_stands_behind_the_message() -> None:
    assert told(at_rest(), 0, note="no outputSchema").message == f"{ONE} serves 100 %; no outputSchema"


def test_the_first_three_of_what_is_lacking_are_listed() -> None:
    many = [ERRORS.model_copy(update={"name": f"e{n}"}) for n in range(5)]
    world = started(snapshot(objectives=many)).tick()
    lacking = [f"e{n}: 0 of 100 canary samples in this step" for n in range(3)]
    assert world.status.message == f"{TWO} at 10 %, step 1/2; waiting for {'; '.join(lacking)}; and 2 more"


def test_the_delivery_and_the_generation_are_told() -> None:
    world = loading()
    delivery = world.status.delivery
    assert (delivery.sequence, delivery.acknowledged, delivery.total) == (2, 1, 2)
    assert [(lag.pod, lag.reason) for lag in delivery.laggards] == [("pod-b", "silent")]
    assert world.status.observed_generation == 1
    assert {c.observed_generation for c in world.status.conditions} == {1}


def test_an_invalid_spec_is_named_first_of_several_holds() -> None:
    world = started()
    world.tell("pause")
    world.problems = ("spec.x: broken",)
    world.tick()
    assert (world.status.phase, world.status.conditions[0].reason) == ("Paused", "InvalidSpec")
    assert world.status.message.startswith(f"{TWO} at 10 %, held: the spec is invalid: spec.x: broken")
    assert "paused by a person" in world.status.message


def test_an_undo_with_an_invalid_spec_is_on_its_way_and_not_held() -> None:
    world = started()
    world.tick(60)
    world.deaf = {"pod-a"}
    world.tell("undo")
    world.problems = ("spec.x: broken",)
    world.settle()
    assert world.status.retracing
    assert world.status.phase == "Progressing"
    assert "held" not in world.status.message
    assert "waiting for pod-a" in world.status.message
