"""The contract's lines that hold for the pure engine, as invariants over random histories."""

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.api.rollout import RolloutStatus
from promptrollout.api.slo import Objective
from promptrollout.engine.lifecycle.plan import plan
from tests.world import COST, ERRORS, World, snapshot, started, version

VERSIONS = [version(name) for name in ("v1", "v2", "v3")]
RULES = snapshot(
    {"weight": 10, "minDurationSeconds": 60},
    {"weight": 30, "minDurationSeconds": 30},
    {"pause": {"durationSeconds": 60}},
    {"weight": 60, "minDurationSeconds": 60},
    objectives=[ERRORS, COST],
    bake_seconds=150,
    holdback_percent=5,
)

Move = tuple[str, object]
plain: st.SearchStrategy[Move] = st.one_of(
    st.tuples(st.just("tick"), st.integers(1, 8)),
    st.tuples(st.just("metrics"), st.booleans()),
    st.tuples(st.just("silent"), st.sampled_from([(), ("errors",), ("errors", "cost")])),
    st.tuples(st.just("pods"), st.sampled_from([("pod-a",), ("pod-a", "pod-b"), ("pod-b", "pod-c"), ()])),
    st.tuples(st.just("deaf"), st.sampled_from([(), ("pod-a",), ("pod-b",)])),
    st.tuples(st.just("errors"), st.sampled_from([0.0, 0.01, 0.012, 0.05, 0.5])),
    st.tuples(st.just("requests"), st.sampled_from([0.0, 50.0, 2_000.0])),
    st.tuples(st.just("invalid"), st.booleans()),
    st.tuples(st.just("unreachable"), st.booleans()),
)
spec_edits: st.SearchStrategy[Move] = st.one_of(
    st.tuples(st.just("desired"), st.integers(0, 2)), st.tuples(st.just("paused"), st.booleans())
)
verbs: st.SearchStrategy[Move] = st.tuples(
    st.just("tell"), st.sampled_from(["pause", "resume", "promote", "abort", "retry", "undo"])
)
restarts: st.SearchStrategy[Move] = st.tuples(
    st.just("restart"), st.sampled_from(["idle", "before", "status", "delivery"])
)
loss: st.SearchStrategy[Move] = st.tuples(st.just("lose"), st.none())


def act(world: World, move: Move) -> None:
    kind, value = move
    moves: dict[str, Callable[[], object]] = {
        "tick": lambda: world.tick(value),  # type: ignore[arg-type]
        "metrics": lambda: setattr(world, "metrics_available", value),
        "silent": lambda: setattr(world, "silent", set(value)),  # type: ignore[call-overload]
        "pods": lambda: meet(world, value),  # type: ignore[arg-type]
        "deaf": lambda: listen(world, set(value)),  # type: ignore[call-overload]
        "errors": lambda: setattr(world, "error_rate", {VERSIONS[1].digest: value, VERSIONS[2].digest: value}),
        "requests": lambda: setattr(world, "requests", value),
        "invalid": lambda: setattr(world, "problems", ("spec.x: broken",) if value else ()),
        "unreachable": lambda: setattr(world, "provider_unreachable", value),
        "desired": lambda: setattr(world, "desired", VERSIONS[value]),  # type: ignore[index]
        "paused": lambda: setattr(world, "paused", value),
        "tell": lambda: world.tell(str(value)),
        "restart": lambda: crash(world, str(value)),
        "lose": world.lose_status,
    }
    moves[kind]()
    world.settle()


def meet(world: World, pods: tuple[str, ...]) -> None:
    """Other pods are ready now; new ones have loaded what is in force."""
    for pod in pods:
        if pod not in world.pods:
            world.heard[pod] = world.sequence
    world.pods = list(pods)


def listen(world: World, deaf: set[str]) -> None:
    world.deaf = deaf
    for pod in world.pods:
        if pod not in deaf:
            world.heard[pod] = world.sequence


def crash(world: World, when: str) -> None:
    """Kill the operator between two writes of one reconcile, or between reconciles."""
    if when in ("status", "delivery"):
        world.plan_once(crash_after=when)
    if when != "before":
        world.restart()
    else:
        plan(world.facts(), world.now)  # planned, but nothing was written
        world.restart()


def baking() -> World:
    """The second version is promoted, and some users are held back on the first."""
    world = started(RULES)
    while world.status.stage != "Baking":
        world.tick()
    assert world.at == ("Baking", 95)
    return world


def histories(*moves: st.SearchStrategy[Move]) -> st.SearchStrategy[list[Move]]:
    return st.lists(st.one_of(*moves), max_size=25)


@given(histories(plain, spec_edits, restarts, verbs))
def test_1_the_weight_of_one_canary_only_grows_until_it_is_taken_back(history: list[Move]) -> None:
    world = started(RULES)
    for move in history:
        act(world, move)
    for (weight, canary), (after, next_canary) in zip(world.weights, world.weights[1:], strict=False):
        if canary is not None and canary == next_canary:
            assert after >= weight or after == 0
        else:
            assert after == 0 or next_canary is None, "another canary is first loaded at weight 0"


@given(histories(plain, spec_edits, restarts, verbs), st.integers(4, 20))
def test_1_a_user_of_a_promoted_version_keeps_it_and_the_holdback_moves_once(history: list[Move], ticks: int) -> None:
    """Users 0 to 99, of whom the canary has the first `weight`."""
    world = started(RULES).tick(ticks)
    for move in history:
        act(world, move)
    sent = list(zip(world.weights, world.stables, strict=True))
    for ((weight, canary), _), ((after, next_canary), stable) in pairwise(sent):
        if canary is None or weight == 0 or (after == 0 and next_canary == canary):
            continue  # nobody had it, or it was taken back
        if next_canary == canary:
            assert after >= weight
        else:
            assert (stable, after) == (canary, 0), "all users have what was promoted"


@given(histories(plain, restarts))
def test_2_no_evidence_is_never_a_pass(history: list[Move]) -> None:
    """Whatever else happens, a rollout whose objectives have no series is not promoted."""
    world = started(RULES)
    for move in history:
        if move[0] == "silent":
            continue
        world.silent = {"errors", "cost"}
        act(world, move)
    assert world.status.stable == VERSIONS[0]
    assert all(weight <= 10 for weight, _ in world.weights)


@given(histories(plain, restarts))
def test_2_without_evidence_nobody_leaves_the_holdback(history: list[Move]) -> None:
    world = baking()
    for move in history:
        if move[0] == "silent":
            continue
        world.silent = {"errors", "cost"}
        act(world, move)
    assert world.status.stage == "Baking"
    assert world.weights[-1] == (95, VERSIONS[1].digest)


@given(histories(plain, restarts), st.integers(1, 40))
def test_3_an_outage_decides_nothing(history: list[Move], ticks: int) -> None:
    world = started(RULES)
    for move in history:
        act(world, move)
    world.metrics_available = False
    world.settle()
    rejected, weight = world.status.rejected, world.intent.weight if world.intent else 0
    unreachable = world.provider_unreachable
    world.tick(ticks)
    assert world.status.rejected == rejected
    if not unreachable:
        assert world.intent is not None
        loading_or_pausing = world.status.weight in (weight, 10, 0)
        assert world.intent.weight == weight or loading_or_pausing


@given(histories(plain, restarts), st.sampled_from(["", "pod-a", "pod-b"]))
def test_4_a_breach_rolls_back_at_once_even_if_a_pod_never_confirms(history: list[Move], deaf: str) -> None:
    world = started(RULES)
    for move in history:
        act(world, move)
    if world.status.stage != "Stepping" or world.provider_unreachable:
        return
    world.provider_unreachable, world.metrics_available, world.silent = False, True, set()
    world.requests, world.error_rate = 5_000.0, {VERSIONS[1].digest: 0.6}
    world.deaf = {deaf}
    canary = world.status.canary
    world.tick(2)
    assert world.status.canary != canary or world.status.stage == "Withdrawing"
    assert world.intent is not None
    assert world.intent.weight == 0
    assert any(r.digest == VERSIONS[1].digest for r in world.status.rejected)


@given(histories(plain, restarts), st.sampled_from(["", "pod-a", "pod-b"]))
def test_4_a_breach_against_the_holdback_rolls_back_at_once(history: list[Move], deaf: str) -> None:
    world = baking()
    for move in history:
        act(world, move)
    if world.status.stage != "Baking" or world.provider_unreachable:
        return
    world.provider_unreachable, world.metrics_available, world.silent = False, True, set()
    world.requests, world.error_rate = 5_000.0, {VERSIONS[1].digest: 0.6}
    world.deaf = {deaf}
    world.tick(2)
    assert world.status.stable == VERSIONS[0]
    assert world.weights[-1][0] == 0
    assert [r.digest for r in world.status.rejected] == [VERSIONS[1].digest]


@settings(max_examples=60)
@given(st.sampled_from([0.0, 0.01, 0.013, 0.02, 0.05]), st.lists(st.integers(0, 30), max_size=12), st.data())
def test_5_a_restart_anywhere_changes_no_later_decision(rate: float, points: list[int], data: st.DataObject) -> None:
    """The same traffic with and without kills: the same configurations are sent in the same order and time."""
    stories = []
    for kills in (False, True):
        world = started(RULES, error_rate={VERSIONS[1].digest: rate})
        story = []
        for tick in range(30):
            if kills and tick in points:
                crash(world, data.draw(st.sampled_from(["idle", "before", "status", "delivery"])))
            world.tick()
            story.append((tick, world.status.stage, world.intent.weight if world.intent else None))
        stories.append((story, world.weights, [(r.name, r.checkpoint) for r in world.status.analysis]))
    assert stories[0] == stories[1]


@settings(max_examples=20)
@given(
    st.sampled_from([[ERRORS], [COST], [COST, ERRORS.model_copy(update={"max": "0.05"})]]),
    st.integers(0, 59),
    st.integers(0, 59),
    st.sets(st.integers(0, 59), min_size=1, max_size=6),
    st.data(),
)
def test_5_a_restart_around_edits_and_a_first_breach_changes_no_later_decision(
    objectives: list[Objective], edit_at: int, bad_from: int, points: set[int], data: st.DataObject
) -> None:
    stories = []
    for kills in (False, True):
        world = started(RULES.model_copy(update={"on_first_breach": "WithdrawAndRetry"}))
        for tick in range(60):
            world.error_rate = {VERSIONS[1].digest: 0.1 if bad_from <= tick < bad_from + 10 else 0.01}
            if tick == edit_at and world.rules is not None:
                world.rules = world.rules.model_copy(update={"objectives": objectives})
                world.settle()
            if kills and tick in points:
                crash(world, data.draw(st.sampled_from(["idle", "before", "status", "delivery"])))
            world.tick()
        stories.append((world.weights, [(r.name, r.checkpoint) for r in world.status.analysis], world.status.rejected))
    assert stories[0] == stories[1]


@given(histories(plain, spec_edits, restarts, verbs))
def test_6_every_verdict_leaves_its_evidence(history: list[Move]) -> None:
    world = started(RULES)
    seen: set[str] = set()
    for move in history:
        act(world, move)
        for decision in world.status.history[:1]:
            if decision.id in seen:
                continue
            seen.add(decision.id)
            if decision.reason in ("ObjectiveBreached", "StepCompleted"):
                assert {"errors", "cost"} <= {row.name for row in decision.evidence}
                assert all(row.message for row in decision.evidence)
                assert decision.window_seconds is not None
        ids = [decision.id for decision in world.status.history]
        assert len(ids) == len(set(ids))


@given(histories(plain, spec_edits, restarts, loss, st.tuples(st.just("tell"), st.sampled_from(["promote", "undo"]))))
def test_8_a_rejected_version_meets_no_user_until_retry(history: list[Move]) -> None:
    world = started(RULES)
    for move in history:
        rejected = {r.digest for r in world.status.rejected}
        sent = len(world.weights)
        act(world, move)
        assert rejected <= {r.digest for r in world.status.rejected}, "nothing but retry forgets a rejection"
        for weight, canary in world.weights[sent:]:
            assert canary not in rejected or weight == 0


@given(histories(plain, spec_edits, verbs))
def test_planning_again_at_once_changes_nothing(history: list[Move]) -> None:
    world = started(RULES)
    for move in history:
        act(world, move)
    again = plan(world.facts(), world.now)
    assert not again.urgent
    assert again.decisions == ()
    assert again.delivery == world.intent


@given(histories(plain, spec_edits, restarts, verbs, loss))
def test_the_status_stays_small_and_survives_json(history: list[Move]) -> None:
    world = started(RULES)
    for move in history:
        act(world, move)
        text = json.dumps(world.status.dump())
        assert len(text.encode()) <= 32 * 1024
        assert RolloutStatus.model_validate_json(text) == world.status


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_a_good_version_does_get_there(rate: float) -> None:
    """The invariants above would hold for an engine that never moves."""
    world = started(RULES, error_rate={VERSIONS[1].digest: rate})
    world.tick(80)
    assert world.status.stable == VERSIONS[1]
