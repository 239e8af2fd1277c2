"""The moves of a rollout at their edges: deadlines to the second, what is recorded, what is asked of others."""

import json

import pytest

from promptrollout.api.delivery import Audience, Reporting, Stickiness
from promptrollout.api.rollout import Decision, ObjectiveStatus, RolloutStatus, Snapshot
from promptrollout.api.strategy import Step
from promptrollout.engine.lifecycle.draft import Draft, timestamp, trimmed
from promptrollout.engine.lifecycle.plan import is_coherent, plan
from tests.world import COST, ERRORS, INTERVAL, START, World, snapshot, started, version

V1, V2, V3 = version("v1"), version("v2"), version("v3")
ONE, TWO, THREE = V1.version, V2.version, V3.version
LONG = {"weight": 10, "minDurationSeconds": 36_000}


def newest(world: World, reason: str) -> Decision:
    return next(d for d in world.status.history if d.reason == reason)


def until(world: World, stage: str, limit: int = 80) -> World:
    for _ in range(limit):
        if world.status.stage == stage:
            return world
        world.tick()
    raise AssertionError(f"still {world.at}: {world.status.message}")


def later(world: World, seconds: int) -> World:
    """Between two intervals."""
    world.now += seconds
    world.settle()
    return world


# ---------------------------------------------------------------- deadlines


@pytest.mark.parametrize(("seconds", "stage"), [(899, "Stepping"), (900, "Loading")])
def test_a_canary_whose_provider_is_away_leaves_after_fifteen_minutes(seconds: int, stage: str) -> None:
    world = started()
    world.provider_unreachable = True
    world.settle()
    warning = newest(world, "CanaryProviderUnreachable")
    assert (warning.type, warning.message) == (
        "Warning",
        "only the canary's provider fails: stable answers its users, and nothing is judged",
    )
    later(world, seconds)
    assert world.status.stage == stage
    assert world.events.count("CanaryProviderUnreachable") == 1
    if stage == "Loading":
        decision = newest(world, "ProviderUnreachable")
        assert (decision.type, world.status.rejected) == ("Warning", [])
        assert decision.message == "only the canary's provider could not be reached for 900 s: weight 0, not rejected"
        assert (world.status.analysis, world.status.clock.exposed_at, world.status.step) == ([], None, "0/2")


def test_pods_that_do_not_confirm_a_rollback_are_evicted_after_a_minute_and_again_each_minute() -> None:
    world = started(error_rate={V2.digest: 0.3})
    world.deaf = {"pod-b"}
    world.tick()
    assert world.status.stage == "Withdrawing"
    since, evicted = world.now, []
    for second in range(0, 61, 20):
        result = plan(world.facts(), since + second)
        evicted.append(result.evict)
        assert result.next_seconds == since + (60 if second < 60 else 120)
    assert evicted == [(), (), (), ("pod-b",)]


def test_the_plan_says_when_it_wants_to_be_asked_again_and_whether_it_wants_metrics() -> None:
    def asks(world: World) -> tuple[int | None, bool, bool]:
        result = plan(world.facts(), world.now)
        return (
            (None if result.next_seconds is None else result.next_seconds - world.now),
            result.wants_evidence,
            (result.urgent),
        )

    world = World()
    world.settle()
    assert asks(world) == (None, False, False)
    world.desired, world.deaf = V2, {"pod-a"}
    assert asks(world) == (0, False, True), "a move may open the way to another"
    world.settle()
    assert asks(world) == (INTERVAL, False, False)
    world.deaf = set()
    world.heard["pod-a"] = world.sequence
    world.settle()
    assert world.at == ("Stepping", 10)
    assert asks(world) == (INTERVAL, True, False)
    until(world, "Baking")
    assert asks(world) == (INTERVAL, True, False)
    blind = started(snapshot(analyse=False))
    assert asks(blind) == (INTERVAL, False, False)


def test_a_person_is_called_after_twice_the_steps_time_and_ten_intervals() -> None:
    world = started(requests=20.0)
    world.tick(13)
    assert world.status.clock.step_active_seconds == 13 * 30
    assert world.condition("InsufficientTraffic") == "False"
    world.tick()
    assert world.condition("InsufficientTraffic") == "True"
    assert world.status.clock.step_active_seconds == 2 * 60 + 10 * 30
    assert newest(world, "ApprovalRequired").type == "Warning"
    assert newest(world, "ApprovalRequired").evidence


def test_thin_traffic_rolls_back_by_choice_at_the_same_moment() -> None:
    world = started(snapshot(on_insufficient_traffic="Rollback"), requests=20.0).tick(13)
    assert world.status.stage == "Stepping"
    world.tick()
    decision = newest(world, "InsufficientTraffic")
    assert decision.message == (
        "the step's time is up without enough evidence: errors: 28 of 100 canary samples in this step"
    )
    assert [r.reason for r in world.status.rejected] == ["InsufficientTraffic"]


def test_a_step_without_a_duration_takes_five_minutes() -> None:
    world = started(snapshot({"weight": 10}, {"weight": 50}))
    world.tick(9)
    assert (world.at, world.status.clock.step_active_seconds) == (("Stepping", 10), 270)
    world.tick()
    assert world.at == ("Stepping", 50)


def test_time_without_metrics_counts_two_intervals_at_most_and_pauses_are_no_activity() -> None:
    world = started(snapshot(LONG, analyse=False))
    later(world, 45)
    assert (world.status.clock.step_active_seconds, world.status.clock.active_seconds) == (45, 45)
    later(world, 86_400)
    assert (world.status.clock.step_active_seconds, world.status.clock.active_seconds) == (105, 105)
    pause = {"pause": {"durationSeconds": 600}}
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, pause, {"weight": 50})).tick(3)
    active = world.status.clock.active_seconds
    assert world.status.step == "2/3"
    world.tick(4)
    assert world.status.clock.step_active_seconds >= 90
    assert world.status.clock.active_seconds == active
    world.tell("pause")
    held = world.status.clock.step_active_seconds
    world.tick(4)
    assert world.status.clock.step_active_seconds == held


def test_too_long_is_counted_in_active_time_and_said() -> None:
    rules = snapshot(LONG, max_duration_seconds=300, on_timeout="Rollback")
    world = started(rules).tick(9)
    assert world.status.stage == "Stepping"
    world.tick()
    decision = newest(world, "MaxDurationExceeded")
    assert (decision.message, decision.type) == (
        "maxDurationSeconds is over (300 s of active time): rolled back",
        "Warning",
    )
    assert world.status.rejected[0].reason == "MaxDurationExceeded"
    world = started(rules.model_copy(update={"on_timeout": "Hold"})).tick(11)
    assert world.status.message.endswith("held: maxDurationSeconds (300) is over: promote, abort or undo")
    world.tell("promote")
    world.tick()
    assert "maxDurationSeconds" not in world.status.message, "promote ends that hold too"


def test_sixty_intervals_before_the_first_user_say_how_much_stable_fluctuates() -> None:
    world = World()
    world.settle()
    world.now += 10
    world.desired = V2
    while world.status.clock.exposed_at is None:
        world.plan_once()
    assert world.status.clock.exposed_at == START + 10
    assert world.status.clock.evaluated_until == START - 60 * INTERVAL


# ---------------------------------------------------------------- what is recorded


def test_each_move_of_a_good_version_is_recorded_with_what_comes_next() -> None:
    pause = {"pause": {"durationSeconds": 60}}
    rules = snapshot({"weight": 10, "minDurationSeconds": 60}, pause, {"weight": 50, "minDurationSeconds": 60})
    world = until(started(rules), "Baking")
    assert (world.status.canary, world.status.stable, world.status.previous) == (None, V2, V1)
    until(world, "Idle")
    told = [(d.reason, d.message, d.step, d.weight, d.type, bool(d.evidence)) for d in reversed(world.status.history)]
    assert told == [
        (
            "InitialVersion",
            f"{ONE} is the first version and serves everybody",
            "",
            100,
            "Normal",
            False,
        ),
        ("RolloutStarted", f"the prompt changed: loading {TWO} at weight 0", "0/3", 0, "Normal", False),
        ("StepCompleted", "step 1/3 (10 %) passed; pausing at 10 %", "1/3", 10, "Normal", True),
        ("PauseCompleted", "pause of 60 s is over; going to 50 %", "2/3", 10, "Normal", False),
        ("StepCompleted", "step 3/3 (50 %) passed; going to 100 %", "3/3", 50, "Normal", True),
        ("RolloutCompleted", f"{TWO} serves 100 %; {ONE} stays loaded for 60 s", "", 100, "Normal", False),
        ("BakeCompleted", f"{ONE} is unloaded", "", 100, "Normal", False),
    ]
    assert [d.id.split("-")[1] for d in reversed(world.status.history)] == [str(n) for n in range(7)]
    assert {d.revision for d in world.status.history[:-1]} == {2}
    passed = [d for d in world.status.history if d.reason == "StepCompleted"]
    by_no_breach = (
        "no breach, which is enough for this step; not shown to be within 50 % of stable (rollback above 10 %)"
    )
    messages = [row.message for d in passed for row in d.evidence if row.name == "errors"]
    assert any(by_no_breach in message for message in messages)
    assert not any("no breach, not shown" in message for message in messages), "a pass that reads as missing proof"
    # the sample ratio is not measured within two minutes of a weight
    assert [[(row.name, row.verdict) for row in d.evidence] for d in reversed(passed)] == [
        [("errors", "Pass")],
        [("errors", "Pass"), ("sample-ratio", "Pass")],
    ]
    assert passed[-1].window_seconds == 60
    assert all(row.checkpoint is None for row in world.status.analysis), "what is over needs no sums"


def test_going_back_to_what_ran_before_says_so() -> None:
    world = until(until(started(), "Baking"), "Idle")
    world.desired = V1
    world.settle()
    assert newest(world, "RolloutStarted").message == f"back to the version before {TWO}: loading {ONE} at weight 0"
    assert newest(world, "RolloutCompleted").message == f"{ONE} serves 100 %"
    assert (world.status.previous, world.status.rejected, world.status.direct) == (None, [], False)


@pytest.mark.parametrize(
    ("desired", "reason", "message"),
    [
        (V1, "RolloutCancelled", f"the spec names the stable version {ONE} again"),
        (V3, "RolloutSuperseded", f"the spec names {THREE} now"),
    ],
)
def test_a_change_of_mind_is_no_warning_and_rejects_nothing(desired: object, reason: str, message: str) -> None:
    world = started().tick()
    world.desired = desired  # type: ignore[assignment]
    world.settle()
    decision = newest(world, reason)
    assert (decision.message, decision.type, world.status.rejected) == (message, "Normal", [])
    done = newest(world, "CanaryWithdrawn")
    assert done.message == f"all 2 ready pods confirmed weight 0 for {TWO} within 1 s"


def test_a_rollback_says_how_long_the_pods_took() -> None:
    world = started(error_rate={V2.digest: 0.3})
    world.deaf = {"pod-a"}
    world.tick()
    later(world, 20)
    world.heard["pod-a"] = world.sequence
    later(world, 5)
    assert newest(world, "RollbackCompleted").message == (f"all 2 ready pods confirmed weight 0 for {TWO} within 25 s")
    breach = newest(world, "ObjectiveBreached")
    assert breach.message.startswith("errors: error rate 30 % against 1 % on stable")
    assert breach.message.endswith("; rolled back")
    assert breach.window_seconds == 30


def test_what_was_seen_in_an_earlier_canary_is_forgotten() -> None:
    world = until(started(error_rate={V2.digest: 0.3}), "Idle")
    assert world.status.withdrawal == "ObjectiveBreached"
    world.desired, world.deaf = V3, {"pod-a"}
    world.settle()
    s = world.status
    assert (s.stage, s.withdrawal, s.analysis, s.current_step_index) == ("Loading", None, [], 0)
    assert (s.clock.exposed_at, s.clock.evaluated_until, s.clock.active_seconds) == (None, None, 0)
    assert s.clock.started_at == world.now


def test_the_record_keeps_ten_decisions_and_the_newest_evidence() -> None:
    row = ObjectiveStatus(name="a", signal="ErrorRate", verdict="NoEvidence", message="x" * 380)
    rows = [row, row.model_copy(update={"name": "b"}), row.model_copy(update={"name": "c", "verdict": "Breach"})]
    full = [
        Decision(id=f"{n}", at=timestamp(START), reason="R", revision=1, weight=0, message="", evidence=rows)
        for n in range(12)
    ]
    kept = trimmed(full)
    assert [d.id for d in kept] == [str(n) for n in range(10)]
    assert kept[0] == full[0]
    # 4,500 bytes are eight such rows: of the third decision the one in breach first
    assert ["".join(r.name for r in d.evidence) for d in kept] == ["abc", "abc", "ca", *[""] * 7]


# ---------------------------------------------------------------- status lost, edited, or restarted


def test_a_delivery_gives_back_all_that_a_status_remembered() -> None:
    world = until(until(started(), "Baking"), "Idle")
    world.desired, world.error_rate = V3, {V3.digest: 0.4}
    world.settle()
    until(world, "Idle")
    world.tell("retry", id="remember-me")
    until(world, "Idle")
    before = world.status
    world.lose_status()
    world.settle()
    for field in ("stable", "previous", "rejected", "attempts", "handled_commands", "revision"):
        assert getattr(world.status, field) == getattr(before, field)
    assert world.status.attempts[0].attempt == 2
    recovered = newest(world, "StatusRecovered")
    assert recovered.message == f"the status was lost and rebuilt from the delivery: {TWO} is stable"


def test_copies_give_back_the_stable_version() -> None:
    world = World()
    world.promoted = world.desired = V1
    world.settle()
    assert (
        newest(world, "StatusRecovered").message
        == f"the status was lost and rebuilt from the owned copies: {ONE} is stable"
    )
    assert (world.status.revision, world.status.stage) == (1, "Idle")


STEPPING = RolloutStatus(
    stage="Stepping",
    stable=V1,
    canary=V2,
    weight=50,
    current_step_index=2,
    snapshot=Snapshot(**{**snapshot().model_dump(), "steps": [Step(weight=10), Step(weight=50), Step(pause={})]}),
)


@pytest.mark.parametrize(
    ("edit", "fits"),
    [
        ({}, True),
        ({"stable": None}, False),
        ({"canary": None}, False),
        ({"weight": 10}, False),
        ({"weight": 10, "current_step_index": 0}, True),
        ({"current_step_index": 3}, False),
        ({"stage": "Loading", "weight": 0}, True),
        ({"stage": "Loading"}, False),
        ({"stage": "Loading", "weight": 0, "snapshot": None}, False),
        ({"stage": "Promoting", "weight": 100}, True),
        ({"stage": "Promoting"}, False),
        ({"stage": "Withdrawing", "weight": 0}, True),
        ({"stage": "Withdrawing"}, False),
        ({"stage": "Withdrawing", "weight": 0, "canary": None}, False),
        ({"stage": "Baking", "weight": 100, "canary": None}, True),
        ({"stage": "Baking", "weight": 0, "canary": None}, False),
        ({"stage": "Idle", "weight": 0, "canary": None, "snapshot": None}, True),
        ({"stage": "Idle", "weight": 100, "canary": None, "snapshot": None}, True),
    ],
    ids=str,
)
def test_stage_arms_and_weight_fit_together_or_not(edit: dict[str, object], fits: bool) -> None:
    assert is_coherent(STEPPING.model_copy(update=edit)) is fits


def test_a_step_that_only_pauses_first_is_at_weight_0() -> None:
    world = started(snapshot({"pause": {}}, {"weight": 50, "minDurationSeconds": 60}))
    assert (world.at, world.status.step, world.status.clock.exposed_at) == (("Stepping", 0), "1/2", None)
    world.tell("promote")
    assert world.at == ("Stepping", 50)


def test_what_is_written_reads_back_as_it_was() -> None:
    world = started(snapshot(objectives=[ERRORS, COST]))
    for _ in range(8):
        world.tick()
        assert RolloutStatus.model_validate_json(json.dumps(world.status.dump())) == world.status


# ---------------------------------------------------------------- edits in mid-canary


def edited(world: World, **fields: object) -> World:
    assert world.rules is not None
    world.rules = world.rules.model_copy(update=fields)
    world.settle()
    return world


def test_another_interval_goes_on_from_its_own_next_boundary() -> None:
    world = started(snapshot(LONG)).tick(3)
    assert world.status.clock.evaluated_until == world.now
    edited(world, interval_seconds=70)
    found = world.status.clock.evaluated_until
    assert found is not None
    assert found % 70 == 0
    assert 0 <= found - world.now < 70
    assert newest(world, "RolloutUpdated").message == (
        "steps or objectives were edited: edited objectives start from no evidence"
    )


@pytest.mark.parametrize(
    "field", [{"stickiness": Stickiness(by="Conversation")}, {"audience": Audience(headers={"x-beta": "1"})}], ids=str
)
def test_other_users_are_said_in_the_record(field: dict[str, object]) -> None:
    world = edited(started().tick(), **field)
    assert newest(world, "RolloutUpdated").message == (
        "stickiness or audience was edited: other users meet the canary, so it starts over at weight 0"
    )
    assert world.at == ("Stepping", 10)
    assert world.status.clock.exposed_at == world.now


def test_lower_steps_go_down_at_once_and_the_record_says_where() -> None:
    world = until(started(), "Stepping").tick(3)
    assert world.at == ("Stepping", 50)
    edited(world, steps=[Step(weight=5, min_duration_seconds=60), Step(weight=20, min_duration_seconds=36_000)])
    assert (world.at, world.status.step) == (("Stepping", 20), "2/2")
    same = world.status.current_step_index
    edited(world, steps=[Step(weight=20, min_duration_seconds=36_000), Step(weight=60)])
    assert (same, world.at, world.status.step) == (1, ("Stepping", 20), "1/2")


def test_steps_that_all_lie_above_load_it_again_in_the_same_revision() -> None:
    world = edited(started().tick(), steps=[Step(weight=40, min_duration_seconds=300)])
    assert (world.at, world.status.step, world.status.revision) == (("Stepping", 40), "1/1", 2)
    assert world.events.count("RolloutStarted") == 1
    assert "StatusRecovered" not in world.events


def test_steps_edited_while_it_loads_change_nothing_yet() -> None:
    world = World()
    world.settle()
    world.deaf, world.desired = {"pod-a"}, V2
    world.settle()
    edited(world, steps=[Step(weight=30, min_duration_seconds=60)])
    assert (world.at, world.status.step) == (("Loading", 0), "0/1")
    world.deaf = set()
    world.heard["pod-a"] = world.sequence
    world.settle()
    assert world.at == ("Stepping", 30)


# ---------------------------------------------------------------- holds, intents


def test_every_reason_to_hold_is_said_and_an_undo_goes_through_those_of_people() -> None:
    world = started().tick()
    world.paused, world.frozen, world.metrics_available = True, "bf", False
    world.desired, world.problems = None, ("x: y", "z: w")
    world.tick()
    assert world.status.message == (
        f"{TWO} at 10 %, held: the spec is invalid: x: y; paused by spec.paused: set it to false in the manifest; "
        "PromptFreeze bf is in force; metrics are not available: connection refused"
    )
    world.desired, world.problems = None, ()
    world.tick()
    assert world.status.message == (
        f"{TWO} at 10 %, held: paused by spec.paused: set it to false in the manifest; PromptFreeze bf is in force; "
        "the version that the spec names is missing; metrics are not available: connection refused"
    )
    world = started(error_rate={V1.digest: 0.6, V2.digest: 0.6}).tick(2)
    world.provider_unreachable = True
    world.tick()
    assert world.status.message == (
        f"{TWO} at 10 %, held: the canary's provider cannot be reached; "
        "stable fails in at least half of its requests: the canary cannot be judged"
    )


def test_a_sample_ratio_mismatch_holds_a_step_but_not_who_goes_to_full_weight_in_spite_of_it() -> None:
    world = started(snapshot({"weight": 50, "minDurationSeconds": 60}), lost_on_canary=0.8).tick(6)
    assert "should get 50 %" in world.status.message
    assert world.status.message.endswith("; `promote` continues anyway")
    world.deaf = {"pod-a"}
    world.tell("promote-full")
    world.tick(2)
    assert world.status.stage == "Promoting"
    assert world.status.message == f"{TWO} at 100 %: 1 of 2 ready pods confirmed; waiting for pod-a (silent)"
    world.deaf = set()
    world.heard["pod-a"] = world.sequence
    world.settle()
    assert world.at == ("Baking", 100)


def test_one_key_with_more_than_a_fifth_of_the_requests_holds_until_it_is_less_or_a_person_promotes() -> None:
    world = started(snapshot({"weight": 50, "minDurationSeconds": 60}, LONG))
    world.heavy_key_share_percent = 20
    assert world.tick().status.phase == "Progressing"
    world.heavy_key_share_percent = 21
    world.tick(10)
    assert world.at == ("Stepping", 50)
    heavy = next(c for c in world.status.conditions if c.type == "HeavyKey")
    assert (heavy.status, heavy.reason) == ("True", "OneKeyDominates")
    text = "one stickiness key sends 21 % of the requests: the users of both arms cannot be compared"
    assert heavy.message == text
    assert world.status.message == f"{TWO} at 50 %, held: {text}; `promote` continues anyway"
    world.heavy_key_share_percent = None
    world.tick()
    assert world.at == ("Stepping", 50), "nobody was asked: no news"
    assert next(c for c in world.status.conditions if c.type == "HeavyKey") == heavy
    world.tell("promote")
    assert world.status.current_step_index == 1
    assert "continues anyway" in world.status.message, "of the next step, nobody said it yet"
    world.heavy_key_share_percent = 0
    world.tick()
    assert "held" not in world.status.message


@pytest.mark.parametrize("by_time", [False, True])
def test_what_applications_keep_and_report_late_delays_the_evidence_of_a_step(by_time: bool) -> None:
    step = {"weight": 10, "minDurationSeconds": 60}
    reporting = Reporting(cache_seconds=60, settle_seconds=120)
    rules = snapshot(step, {"weight": 50}, reporting=reporting, analyse=not by_time)
    world = started(rules)
    assert world.intent is not None
    assert world.intent.reporting == reporting
    since = world.now
    while world.at == ("Stepping", 10):
        world.tick()
    assert since + 60 + 120 + 60 <= world.now <= since + 60 + 120 + 60 + 3 * rules.interval_seconds
    world = started(rules.model_copy(update={"reporting": None}))
    since = world.now
    while world.at == ("Stepping", 10):
        world.tick()
    assert world.now <= since + 60 + 3 * rules.interval_seconds


def test_evidence_of_another_kind_starts_over() -> None:
    world = started(snapshot(LONG)).tick(3)
    assert world.at == ("Stepping", 10)
    assert world.rules is not None
    world.rules = world.rules.model_copy(update={"reporting": Reporting()})
    world.tick()
    assert "evidenceSource or reporting was edited" in newest(world, "RolloutUpdated").message
    assert all(row.canary_samples == 0 for row in world.status.analysis)


@pytest.mark.parametrize(("intervals", "held"), [(3, False), (4, True)])
def test_nothing_advances_on_metrics_that_are_read_no_further_than_three_intervals_ago(
    intervals: int, held: bool
) -> None:
    world = started(snapshot(LONG)).tick(2)
    world.read_until = world.now
    world.tick(intervals)
    seconds = intervals * INTERVAL
    assert (f"held: waiting for metrics: the latest are {seconds} s old" in world.status.message) is held
    world.read_until = None
    world.tick()
    assert "held" not in world.status.message


@pytest.mark.parametrize(("ahead", "kept"), [(INTERVAL, True), (INTERVAL + 1, False), (10 * INTERVAL, False)])
def test_evidence_that_claims_to_be_read_beyond_the_present_interval_is_read_from_now_on(
    ahead: int, kept: bool
) -> None:
    world = started(snapshot(LONG)).tick(2)
    wrong = world.now + ahead
    clock = world.status.clock.model_copy(update={"evaluated_until": wrong})
    world.status = world.status.model_copy(update={"clock": clock})
    world.settle()
    assert world.status.clock.evaluated_until == (wrong if kept else world.now - world.now % INTERVAL)


def test_gateways_are_told_the_arms_a_salt_of_the_canary_and_what_to_remember() -> None:
    world = started()
    intent = Draft(world.facts(), world.now).intent()
    assert intent is not None
    assert (intent.stable, intent.canary, intent.weight) == (V1, V2, 10)
    assert intent.salt == f"uid-1/{V2.digest.removeprefix('sha256:')[:10]}/"
    assert (intent.memory.stable, intent.memory.revision) == (V1, 2)
    until(world, "Baking")
    intent = Draft(world.facts(), world.now).intent()
    assert intent is not None
    assert (intent.stable, intent.canary, intent.weight, intent.memory.previous) == (V1, V2, 100, V1)
    until(world, "Idle")
    intent = Draft(world.facts(), world.now).intent()
    assert intent is not None
    assert (intent.stable, intent.canary, intent.weight) == (V2, None, 0)
    assert (intent.memory.stable, intent.memory.previous) == (V2, V1)


def test_both_arms_beyond_a_bound_take_the_weight_back_and_say_what_to() -> None:
    bounded = ERRORS.model_copy(update={"max": "0.05"})
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"weight": 50}, objectives=[bounded])).tick(3)
    assert world.at == ("Stepping", 50)
    raised = world.now - INTERVAL
    world.error_rate = {V1.digest: 0.1, V2.digest: 0.1}
    while world.at == ("Stepping", 50):
        world.tick()
    decision = newest(world, "WeightReduced")
    assert decision.message == (
        "both arms crossed the bound of errors when the weight was raised to 50 %: "
        "back to 10 %. Check quotas and rate limits that both arms share"
    )
    assert (decision.type, bool(decision.evidence), world.at) == ("Warning", True, ("Stepping", 10))
    assert 600 <= world.now - raised <= 600 + 3 * INTERVAL


def test_a_first_version_is_watched_only_for_its_absolute_bounds() -> None:
    assert World().tick().status.stage == "Idle"
    bounded = ERRORS.model_copy(update={"max": "0.02"})
    world = World(snapshot(objectives=[bounded], bake_seconds=60)).tick()
    assert (world.status.stage, world.status.weight) == ("Baking", 100)
    assert world.status.message == f"{ONE} serves 100 %"
    world.tick(3)
    assert newest(world, "BakeCompleted").message == "the first version is no longer watched"
    assert World(snapshot(objectives=[bounded], analyse=False)).tick().status.stage == "Idle"


def test_a_first_version_in_breach_is_a_warning_with_its_evidence() -> None:
    bounded = ERRORS.model_copy(update={"max": "0.02"})
    world = World(snapshot(objectives=[bounded], bake_seconds=600))
    world.error_rate = {V1.digest: 0.3}
    world.tick(5)
    decision = newest(world, "ObjectiveBreached")
    assert decision.type == "Warning"
    assert decision.message.endswith("; there is no earlier version to go back to")
    assert [(row.name, row.verdict) for row in decision.evidence] == [("errors", "Breach")]
    assert world.status.message == f"{ONE} serves 100 %; breached, without an earlier version: errors"


def test_promote_waives_the_time_of_one_step_only() -> None:
    rules = snapshot({"weight": 10, "minDurationSeconds": 900}, {"weight": 30, "minDurationSeconds": 900}, LONG)
    world = started(rules).tick()
    world.tell("promote")
    world.tick(2)
    assert world.at == ("Stepping", 30)
    world.tick(20)
    assert (world.at, world.status.clock.step_active_seconds) == (("Stepping", 30), 660)
