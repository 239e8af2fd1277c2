"""What people ask for: what each verb leaves in the record, and in which words it is refused."""

from collections.abc import Callable

import pytest

from promptrollout.api.command import MalformedCommand
from promptrollout.api.rollout import Decision
from tests.world import ERRORS, World, snapshot, started, version

V1, V2, V3 = version("v1"), version("v2"), version("v3")
ONE, TWO, THREE = V1.version, V2.version, V3.version
PAUSES = ({"weight": 10, "minDurationSeconds": 60}, {"pause": {}}, {"weight": 50, "minDurationSeconds": 60})


def at_rest(after: World | None = None) -> World:
    """With v2 as stable after v1, or after what `after` leads to."""
    world = after or started()
    for _ in range(60):
        if world.status.stage == "Idle":
            return world
        world.tick()
    raise AssertionError(f"still {world.at}")


def newest(world: World, reason: str) -> Decision:
    return next(d for d in world.status.history if d.reason == reason)


def refused(world: World, verb: str, **fields: object) -> str:
    """The reason that the Event gives."""
    before = len(world.events)
    world.tell(verb, **{"id": "refused", "reason": "why not"} | fields)
    assert world.events[before:].count("CommandRefused") == 1
    decision = newest(world, "CommandRefused")
    assert (decision.type, decision.command) == ("Warning", "refused")
    head = f"{verb.replace('promote-full', 'promote --full')} by alice (why not) refused: "
    assert decision.message.startswith(head)
    return decision.message.removeprefix(head)


# ---------------------------------------------------------------- refusals


def with_(world: World, **fields: object) -> World:
    for name, value in fields.items():
        setattr(world, name, value)
    return world.tick()


def told(world: World, verb: str) -> World:
    world.tell(verb)
    return world


def taking_back(**fields: object) -> World:
    world = started(error_rate={V2.digest: 0.3})
    world.deaf = {"pod-a"}
    return with_(world, **fields)


def first() -> World:
    return World().tick()


SPEC_PAUSED = "spec.paused is true: set it to false in the manifest"
OVERRIDE = "the emergency override is in force: run `promptrollout emergency clear app -n shop` first"
REFUSALS: list[tuple[str, Callable[[], World], str, str]] = [
    ("paused already", lambda: told(started(), "pause"), "pause", "the rollout is paused already"),
    ("not paused", started, "resume", "the rollout is not paused; `promote` ends a pause step"),
    ("paused by the spec", lambda: with_(started(), paused=True), "resume", SPEC_PAUSED),
    ("paused by the spec", lambda: with_(started(), paused=True), "promote", SPEC_PAUSED),
    ("paused by the spec", lambda: with_(started(), paused=True), "promote-full", SPEC_PAUSED),
    ("paused by a person", lambda: told(started(), "pause"), "promote", "the rollout is paused: `resume` first"),
    (
        "paused by a person",
        lambda: told(started(), "pause"),
        "promote-full",
        "the rollout is paused: `resume` first",
    ),
    ("frozen", lambda: with_(started(), frozen="bf"), "promote", "PromptFreeze bf is in force"),
    ("frozen", lambda: with_(started(), frozen="bf"), "promote-full", "PromptFreeze bf is in force"),
    ("nothing in progress", first, "promote", "no step is in progress"),
    ("nothing in progress", first, "promote-full", "no canary is in progress"),
    ("nothing in progress", first, "abort", "no canary is in progress"),
    ("nothing before", first, "undo", "there is no earlier version to go back to"),
    ("nothing rejected", first, "retry", "the version that the spec asks for is not rejected"),
    (
        "no version asked for",
        lambda: with_(first(), desired=None),
        "retry",
        "the version that the spec asks for is not rejected",
    ),
    ("invalid", lambda: with_(started(), problems=("x: y",)), "promote", "the spec is invalid: x: y"),
    ("invalid", lambda: with_(started(), problems=("x: y",)), "promote-full", "the spec is invalid: x: y"),
    (
        "blind in a pause",
        lambda: with_(started(snapshot(*PAUSES)).tick(10), metrics_available=False),
        "promote",
        "metrics are not available: connection refused; the canary would advance unwatched",
    ),
    ("being taken back", taking_back, "undo", "a rollback is in progress"),
    ("being taken back", taking_back, "retry", "not every pod has confirmed the rollback yet"),
    ("being taken back", taking_back, "promote-full", "no canary is in progress"),
    ("overridden", lambda: with_(first(), overridden=True), "undo", OVERRIDE),
    ("overridden", lambda: with_(first(), overridden=True), "promote", OVERRIDE),
    ("overridden", lambda: with_(first(), overridden=True), "retry", OVERRIDE),
    (
        "taken back",
        lambda: at_rest(with_(at_rest(), desired=V3, error_rate={V3.digest: 0.4})),
        "undo",
        f"{THREE} is rolled back already and {TWO} serves: there is nothing to undo",
    ),
]


@pytest.mark.parametrize(
    ("make", "verb", "why"), [case[1:] for case in REFUSALS], ids=[f"{c[2]}: {c[0]}" for c in REFUSALS]
)
def test_a_refusal_says_why_and_changes_nothing_else(make: Callable[[], World], verb: str, why: str) -> None:
    world = make()
    before = world.status
    assert refused(world, verb) == why
    record = {"handled_commands", "history", "decision_count", "message", "conditions", "clock"}
    changed = {k for k in type(before).model_fields if getattr(world.status, k) != getattr(before, k)}
    assert changed <= record


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"rolloutUID": "other"}, "the command was for an earlier rollout of this name"),
        ({"revision": 1}, "the command was for revision 1, attempt 1; the rollout is at revision 2, attempt 1"),
        ({"attempt": 7}, "the command was for revision 2, attempt 7; the rollout is at revision 2, attempt 1"),
        ({"step": 5}, "the command was for step 6; the rollout is at step 1"),
    ],
)
def test_a_command_for_something_else_says_for_what(wrong: dict[str, object], why: str) -> None:
    assert refused(started(), "promote", **wrong) == why
    if "step" in wrong:
        world = started()
        world.tell("pause", **wrong)
        assert world.status.paused, "only what goes on by a step is bound to one"


@pytest.mark.parametrize("verb", ["pause", "resume", "abort"])
def test_what_slows_down_works_under_an_override_too(verb: str) -> None:
    world = started()
    if verb == "resume":
        world.tell("pause")
    world.deaf, world.overridden = {"pod-a"}, True
    world.tell(verb, id="x")
    assert "CommandRefused" not in world.events
    assert world.status.paused == (verb == "pause")


def test_a_malformed_command_is_refused_in_its_own_words() -> None:
    world = started()
    world.command = MalformedCommand("{}", "verb: Input should be 'promote'")
    world.settle()
    decision = newest(world, "CommandRefused")
    assert decision.type == "Warning"
    assert decision.message == (
        "annotation promptrollout.dev/command: verb: Input should be 'promote'; write it with `promptrollout`"
    )


def test_only_the_last_twenty_commands_are_remembered() -> None:
    world = started()
    for n in range(25):
        world.tell("pause" if n % 2 == 0 else "resume", id=f"c{n}")
    assert world.status.handled_commands == [f"c{n}" for n in range(24, 4, -1)]


# ---------------------------------------------------------------- what is recorded


def test_pause_and_resume_are_recorded_with_who_and_why() -> None:
    world = started()
    world.tell("pause", reason="lunch")
    decision = newest(world, "RolloutPaused")
    assert decision.message == "alice paused the rollout (lunch): nothing advances, a breach still rolls back"
    assert decision.type == "Normal"
    world.tell("resume", by="")
    assert newest(world, "RolloutResumed").message == "a person resumed the rollout"


def test_promote_in_a_step_only_waives_its_time() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 900}, {"weight": 50}))
    world.tick(2)
    world.silent = {"errors"}
    world.tell("promote")
    decision = newest(world, "StepPromoted")
    assert decision.message == "alice skipped the minimum time of step 1/2; evidence is still required"
    assert [row.canary_samples for row in decision.evidence if row.name == "errors"] == [400]
    assert decision.window_seconds == 60
    assert world.at == ("Stepping", 50)


def test_evidence_from_before_the_exposure_spans_no_time_of_the_canary() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 900}, {"weight": 50}))
    world.tell("promote")
    assert newest(world, "StepPromoted").window_seconds == 0


def test_promote_approves_thin_evidence_once_it_was_asked_for() -> None:
    world = started(requests=20.0).tick(18)
    world.tell("promote")
    assert newest(world, "StepPromoted").message == "alice approved step 1/2 without enough evidence"
    passed = newest(world, "StepCompleted").message
    assert passed == (
        "step 1/2 (10 %) approved by a person without enough evidence "
        "(errors: 36 of 100 canary samples in this step); going to 50 %"
    )


def test_promote_approves_while_stable_is_beyond_the_bound_too() -> None:
    bounded = ERRORS.model_copy(update={"max": "0.05"})
    world = started(snapshot(objectives=[bounded]), error_rate={V1.digest: 0.2, V2.digest: 0.2})
    world.tick(18)
    assert world.condition("InsufficientTraffic") == "True"
    world.tell("promote")
    assert newest(world, "StepPromoted").message == "alice approved step 1/2 without enough evidence"
    assert newest(world, "StepCompleted").message == (
        "step 1/2 (10 %) approved by a person without enough evidence "
        "(errors: stable was beyond the bound lately too, or answers could not be judged); going to 50 %"
    )
    assert world.at == ("Stepping", 50)


@pytest.mark.parametrize("action", ["RequireApproval", "Hold", "Rollback"])
def test_promote_approves_in_spite_of_a_mismatch_whatever_becomes_of_thin_traffic(action: str) -> None:
    world = started(
        snapshot(on_insufficient_traffic=action, objectives=[ERRORS.model_copy(update={"min_samples": 10_000})]),
        lost_on_canary=0.8,
    ).tick(6)
    assert "the arms cannot be compared" in world.status.message
    world.tell("promote")
    assert newest(world, "StepPromoted").message == "alice approved step 1/2 without enough evidence"
    assert world.at == ("Stepping", 50)


def test_promote_ends_a_pause_and_says_who() -> None:
    world = started(snapshot(*PAUSES)).tick(10)
    world.tell("promote", reason="looked at it")
    assert newest(world, "PausePromoted").message == "alice ended the pause (looked at it)"
    assert world.at == ("Stepping", 50)


def test_promote_full_is_a_warning_with_the_evidence_so_far() -> None:
    rules = snapshot({"weight": 10, "minDurationSeconds": 900}, {"weight": 50})
    world = started(rules, silent={"errors"}).tick()
    world.silent = set()
    world.tick(4)
    world.tell("promote-full", reason="hotfix")
    decision = newest(world, "FullPromotion")
    assert decision.message == f"alice sends {TWO} to 100 % without waiting for evidence (hotfix)"
    assert decision.type == "Warning"
    assert [row.name for row in decision.evidence] == ["errors", "sample-ratio"]
    assert (world.status.stage, world.status.stable) == ("Baking", V2)


def test_promote_full_while_loading_waits_until_every_pod_has_loaded() -> None:
    world = World()
    world.settle()
    world.deaf, world.desired = {"pod-a"}, V2
    world.settle()
    world.tell("promote-full")
    assert world.at == ("Loading", 0)
    world.deaf = set()
    world.heard["pod-a"] = world.sequence
    before = len(world.weights)
    world.settle()
    assert world.weights[before:] == [(100, V2.digest)]
    assert world.status.stable == V2


def test_abort_is_a_warning_and_rejects() -> None:
    world = started()
    world.tell("abort", reason="typo")
    decision = newest(world, "RolloutAborted")
    assert (decision.message, decision.type) == ("alice aborted the rollout (typo)", "Warning")
    entry = world.status.rejected[0]
    assert (entry.digest, entry.reason, entry.attempt) == (V2.digest, "RolloutAborted", 1)
    assert entry.at == "2027-01-15T08:00:00Z"


def test_abort_of_an_undo_rejects_nothing() -> None:
    world = at_rest()
    world.deaf = {"pod-a"}
    world.tell("undo")
    world.tell("abort")
    world.deaf = set()
    world.heard["pod-a"] = world.sequence
    world.tick(2)
    assert (world.status.stable, world.status.rejected) == (V2, [])


def test_abort_rejects_a_canary_that_only_its_provider_kept_away() -> None:
    world = started()
    world.provider_unreachable = True
    world.settle()
    world.tick(29)
    world.deaf = {"pod-a"}
    world.tick()
    assert world.status.withdrawal == "ProviderUnreachable"
    world.tell("abort")
    decision = newest(world, "RolloutAborted")
    assert (decision.message, decision.type) == ("alice aborted the rollout", "Warning")
    assert [(r.digest, r.reason) for r in world.status.rejected] == [(V2.digest, "RolloutAborted")]
    assert world.status.withdrawal == "RolloutAborted"


def test_retry_counts_attempts_and_each_is_stricter() -> None:
    world = at_rest(started(error_rate={V2.digest: 0.3}))
    world.tell("retry")
    assert newest(world, "RolloutRetried").message == (
        f"alice retried {TWO}: attempt 2, without earlier evidence, at a stricter confidence level"
    )
    assert newest(world, "RolloutStarted").message == f"attempt 2: loading {TWO} at weight 0"
    assert newest(world, "RolloutStarted").attempt == 2
    at_rest(world)
    world.tell("retry")
    assert world.status.attempt == 3
    assert [(a.digest, a.attempt) for a in world.status.attempts] == [(V2.digest, 3)]
    world.tell("abort")
    assert [(r.reason, r.attempt) for r in world.status.rejected] == [("RolloutAborted", 3)]


def test_undo_is_recorded_and_what_it_leaves_must_canary_again() -> None:
    world = at_rest()
    world.tell("undo", reason="complaints")
    assert newest(world, "RolloutStarted").message == (
        f"alice went back from {TWO} (complaints): loading {ONE} at weight 0"
    )
    assert (world.status.stable, world.status.previous, world.status.retracing) == (V1, None, False)
    assert [(r.digest, r.reason) for r in world.status.rejected] == [(V2.digest, "RolloutUndone")]


def test_undo_of_a_canary_or_of_a_version_that_bakes_takes_it_back() -> None:
    for ticks in (1, 12):
        world = started(snapshot(bake_seconds=3600)).tick(ticks)
        world.tell("undo")
        decision = newest(world, "RolloutUndone")
        assert (decision.message, decision.type) == ("alice undid the rollout", "Warning")
        assert decision.evidence
        assert (world.status.stable, world.status.rejected[0].reason) == (V1, "RolloutUndone")


def test_undo_to_a_rejected_version_is_refused() -> None:
    world = at_rest()
    world.status = world.status.model_copy(
        update={"rejected": [*at_rest(told(started(), "abort")).status.rejected], "previous": V2, "stable": V1}
    )
    world.desired = V1
    assert refused(world, "undo") == f"the earlier version {TWO} is rejected"
