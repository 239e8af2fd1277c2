"""A rollout's life: each row of the design's table, told with a small world around `plan`."""

import json

import pytest

from promptrollout.api.command import MalformedCommand
from promptrollout.api.delivery import Stickiness
from promptrollout.api.slo import Objective
from promptrollout.api.strategy import Step
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.signals import not_measured
from tests.world import COST, ERRORS, INTERVAL, World, snapshot, started, version

V1, V2, V3 = version("v1"), version("v2"), version("v3")


def finished(world: World, limit: int = 60) -> World:
    """Let time pass until the canary is stable or taken back."""
    for _ in range(limit):
        if world.status.stage in ("Idle", "Baking"):
            return world
        world.tick()
    raise AssertionError(f"still {world.at}: {world.status.message}")


def test_the_first_version_serves_everybody() -> None:
    world = World()
    world.settle()
    assert (world.status.stable, world.status.phase, world.status.weight) == (V1, "Healthy", 100)
    assert world.events == ["InitialVersion"]
    assert world.weights == [(0, None)]


def test_with_a_baseline_the_first_version_canaries_too() -> None:
    world = World()
    world.baseline = version("v0")
    world.settle()
    assert world.status.stable == version("v0")
    assert world.status.canary == V1
    assert world.at == ("Stepping", 10)


def test_a_change_is_loaded_at_weight_0_before_it_meets_users() -> None:
    world = started()
    assert world.weights[1:3] == [(0, V2.digest), (10, V2.digest)]
    assert (world.status.phase, world.status.step, world.status.weight) == ("Progressing", "1/2", 10)
    assert (world.condition("Ready"), world.condition("Reconciling"), world.condition("Stalled")) == (
        "False",
        "True",
        "False",
    )


def test_a_good_version_goes_step_by_step_to_100_and_bakes() -> None:
    world = finished(started())
    assert [w for w, _ in world.weights] == [0, 0, 10, 50, 100]
    assert (world.status.stage, world.status.stable, world.status.previous) == ("Baking", V2, V1)
    assert (world.status.phase, world.condition("Ready"), world.status.weight) == ("Healthy", "True", 100)
    world.tick(4)
    assert (world.status.stage, world.weights[-1]) == ("Idle", (0, None))
    assert world.events == [
        "InitialVersion",
        "RolloutStarted",
        "StepCompleted",
        "StepCompleted",
        "RolloutCompleted",
        "BakeCompleted",
    ]


def test_a_step_needs_its_time() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 300}, {"weight": 50}))
    world.tick(9)
    assert world.at == ("Stepping", 10)
    world.tick(2)
    assert world.at != ("Stepping", 10)


# ---------------------------------------------------------------- the metrics source


def test_nobody_meets_the_canary_before_the_metrics_source_was_asked() -> None:
    """The readings of a minute ago do not say that it lives: a canary ran unwatched because of them."""
    world = started(contact=False)
    assert (world.at, world.asked > 0) == (("Loading", 0), True)
    world.metrics_available = False  # it does not answer
    world.tick()
    assert world.at == ("Loading", 0)
    assert "metrics are not available" in world.status.message
    world.metrics_available, world.contact = True, None  # it does
    world.settle()
    assert world.at == ("Stepping", 10)


def test_each_raise_asks_the_metrics_source_first() -> None:
    world = started()
    world.contact = False
    world.tick(3)
    assert (world.at, world.asked > 0) == (("Stepping", 10), True)
    world.contact = None
    world.settle()
    assert world.at == ("Stepping", 50)


def test_a_pause_that_a_person_ends_asks_first_too_and_forgets_nothing() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 0}, {"pause": {}}, {"weight": 50}))
    world.tick(2)
    assert world.status.step == "2/3"
    world.contact = False
    world.tell("promote")
    assert (world.at, world.asked) == (("Stepping", 10), 1)
    world.contact = None
    world.settle()
    assert (world.at, world.events.count("PausePromoted")) == (("Stepping", 50), 1)


def test_an_undo_needs_no_metrics() -> None:
    world = finished(started())
    world.tick(4)
    world.contact, world.metrics_available = False, False
    world.tell("undo")
    world.settle()
    assert world.status.stable == V1


@pytest.mark.parametrize(
    ("choice", "weights", "stage"),
    [("Hold", [50], "Stepping"), ("ReduceToFirstStep", [50, 10], "Stepping"), ("Withdraw", [50, 0], "Loading")],
)
def test_a_long_loss_of_metrics_does_what_the_spec_asks_for(choice: str, weights: list[int], stage: str) -> None:
    world = started(snapshot(on_metrics_loss=choice))
    world.tick(2)
    assert world.at == ("Stepping", 50)
    world.metrics_available = False
    world.tick(20)
    assert "MetricsLost" not in world.events
    world.restart()  # its beginning is in the status
    world.tick(3)
    assert world.events.count("MetricsLost") == 1
    assert [weight for weight, _ in world.weights[3:]] == weights
    assert (world.status.stage, world.status.rejected, world.status.canary) == (stage, [], V2)
    decision = next(d for d in world.status.history if d.reason == "MetricsLost")
    assert (decision.type, "connection refused" in decision.message) == ("Warning", True)
    world.tick(30)
    assert world.events.count("MetricsLost") == 1
    assert "MetricsRecovered" not in world.events, "they are still away, whatever became of the canary"
    world.metrics_available = True
    finished(world)
    assert world.status.stable == V2
    assert world.events.count("MetricsRecovered") == 1


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["forwards", "backwards"])
def test_a_step_of_the_clock_skips_nothing_and_loses_nothing(seconds: int) -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 120}, {"weight": 50}))
    world.tick(2)
    world.now += seconds
    world.settle()
    assert world.at == ("Stepping", 10)
    world.now -= seconds
    finished(world)
    assert (world.status.stable, world.status.rejected) == (V2, [])


def test_metrics_that_come_back_after_the_canary_has_gone_are_no_news() -> None:
    world = started(snapshot(on_metrics_loss="Withdraw"))
    world.metrics_available = False
    world.tick(23)
    assert world.status.clock.metrics_lost_told
    world.desired = V1
    world.tick(2)
    assert (world.status.stage, world.status.clock.metrics_lost_told) == ("Idle", False)
    world.metrics_available = True
    world.tick(2)
    assert "MetricsRecovered" not in world.events


def test_a_quiet_night_is_no_loss_of_metrics() -> None:
    world = started(snapshot(on_metrics_loss="Withdraw"), requests=0.0)
    world.tick(60)
    assert (world.at, "MetricsLost" in world.events) == (("Stepping", 10), False)


def test_nothing_advances_until_every_ready_pod_confirmed() -> None:
    world = World()
    world.settle()
    world.deaf = {"pod-b"}
    world.desired = V2
    world.tick(30)
    assert world.at == ("Loading", 0)
    assert "pod-b" in world.status.message
    world.deaf = set()
    world.heard["pod-b"] = world.sequence
    world.settle()
    assert world.at == ("Stepping", 10)


def test_a_step_that_one_pod_never_confirms_holds_but_its_breach_rolls_back() -> None:
    world = started(error_rate={V2.digest: 0.01})
    world.deaf = {"pod-b"}
    world.heard["pod-b"] = world.sequence - 1
    world.status = world.status.model_copy(
        update={"clock": world.status.clock.model_copy(update={"acknowledged_at": None})}
    )
    world.tick(10)
    assert world.at == ("Stepping", 10)
    assert world.status.analysis[0].step_samples == 0
    world.error_rate = {V2.digest: 0.4}
    world.tick(3)
    assert world.at == ("Withdrawing", 0)
    assert world.status.rejected[0].digest == V2.digest


def test_a_breach_rolls_back_at_once_and_names_laggards_until_they_are_evicted() -> None:
    world = started(error_rate={V2.digest: 0.3})
    world.deaf = {"pod-a"}
    world.tick()
    assert world.at == ("Withdrawing", 0)
    assert (world.status.phase, world.condition("Stalled")) == ("Degraded", "True")
    decision = world.status.history[0]
    assert (decision.reason, decision.type) == ("ObjectiveBreached", "Warning")
    row = next(r for r in decision.evidence if r.name == "errors")
    assert row.verdict == "Breach"
    assert row.canary_samples > 0
    assert row.stable_samples > 0
    assert row.canary
    assert row.stable
    assert row.difference
    world.tick(1)
    assert world.evicted == []
    world.tick(2)
    assert "pod-a" in world.evicted
    world.deaf = set()
    world.heard["pod-a"] = world.sequence
    world.settle()
    assert (world.status.stage, world.status.canary, world.status.phase) == ("Idle", None, "Degraded")
    assert world.events[-1] == "RollbackCompleted"


def test_a_rejected_version_stays_rejected_until_retry() -> None:
    world = finished(started(error_rate={V2.digest: 0.3}))
    assert world.status.stable == V1
    world.tick(20)
    assert (world.status.stage, world.status.phase, world.status.weight) == ("Idle", "Degraded", 0)
    world.error_rate = {}
    world.tell("retry")
    assert (world.status.attempt, world.status.canary) == (2, V2)
    assert all(row.canary_samples == 0 for row in world.status.analysis)
    assert finished(world).status.stable == V2


def test_another_digest_after_a_rejection_canaries() -> None:
    world = finished(started(error_rate={V2.digest: 0.3}))
    world.desired = V3
    world.settle()
    assert (world.status.canary, world.at) == (V3, ("Stepping", 10))


def test_the_stable_digest_again_cancels_without_rejecting() -> None:
    world = started()
    world.tick()
    world.desired = V1
    world.settle()
    assert (world.status.stage, world.status.phase, world.status.rejected) == ("Idle", "Healthy", [])
    assert world.weights[-1] == (0, None)
    assert "RolloutCancelled" in world.events
    world.desired = V2
    world.settle()
    assert world.status.canary == V2


def test_a_third_digest_starts_over_from_weight_0() -> None:
    world = started()
    world.tick()
    world.desired = V3
    world.settle()
    assert world.weights[-4:] == [(0, V2.digest), (0, None), (0, V3.digest), (10, V3.digest)]
    assert world.status.rejected == []
    assert all(row.canary_samples == 0 for row in world.status.analysis)
    assert "RolloutSuperseded" in world.events


def test_the_version_before_comes_back_straight_to_100() -> None:
    world = finished(started())
    world.tick(4)
    world.desired = V1
    world.settle()
    assert (world.status.stable, world.status.phase) == (V1, "Healthy")
    assert world.weights[-3:] == [(0, V1.digest), (100, V1.digest), (0, None)]
    world.desired = V2
    world.settle()
    assert world.at == ("Stepping", 10), "what was left must canary again"


def test_an_older_text_canaries() -> None:
    world = finished(started())
    world.desired = V3
    world.settle()
    world = finished(world)
    assert (world.status.stable, world.status.previous) == (V3, V2)
    world.desired = V1
    world.settle()
    assert world.at == ("Stepping", 10)


@pytest.mark.parametrize("silent", [{"errors"}, {"errors", "cost"}])
def test_no_evidence_holds(silent: set[str]) -> None:
    world = started(silent=silent)
    world.tick(60)
    assert world.at == ("Stepping", 10)
    assert world.status.analysis[0].verdict == "NoEvidence"
    unmeasured = silent == {"errors", "cost"}
    assert ("check that the gateway's pods are scraped" in (world.status.message or "")) is unmeasured
    # it ends with the first samples
    world.silent = set()
    assert "scraped" not in (world.tick(2).status.message or "")


def test_a_person_may_go_on_though_nobody_scrapes_the_pods() -> None:
    world = started(silent={"errors", "cost"})
    world.tick(60)
    world.tell("promote-full", reason="hotfix")
    assert world.tick(3).status.weight == 100


def test_an_outage_of_the_metrics_holds_and_says_so() -> None:
    world = started()
    world.metrics_available = False
    world.tick(40)
    assert world.at == ("Stepping", 10)
    assert world.condition("MetricsAvailable") == "False"
    assert "connection refused" in world.status.message
    active = world.status.clock.active_seconds
    assert active == 0
    world.metrics_available = True
    assert finished(world).status.stable == V2


def test_thin_traffic_asks_a_person_and_promote_approves() -> None:
    world = started(requests=20.0)
    world.tick(4)
    assert world.at == ("Stepping", 10)
    assert (world.condition("InsufficientTraffic"), world.status.phase) == ("False", "Progressing")
    world.tick(16)
    assert (world.condition("InsufficientTraffic"), world.status.phase) == ("True", "Paused")
    world.tell("promote")
    assert world.at == ("Stepping", 50)
    record = next(d for d in world.status.history if d.reason == "StepCompleted")
    assert "approved by a person without enough evidence" in record.message
    assert "alice" in next(d for d in world.status.history if d.reason == "StepPromoted").message


@pytest.mark.parametrize(("choice", "stage"), [("Hold", "Stepping"), ("Rollback", "Idle")])
def test_thin_traffic_holds_or_rolls_back_by_choice(choice: str, stage: str) -> None:
    world = started(snapshot(on_insufficient_traffic=choice), requests=20.0)
    world.tick(16)
    assert world.status.stage == stage
    assert world.status.stable == V1


def test_an_invalid_spec_in_mid_canary_advances_nothing_but_a_breach_rolls_back() -> None:
    world = started()
    world.rules, world.problems = None, ("spec.analysis.sloRefs[0]: PromptSLO quality is missing: create it",)
    world.tick(30)
    assert world.at == ("Stepping", 10)
    assert world.condition("InvalidSpec") == "True"
    world.error_rate = {V2.digest: 0.3}
    world.tick(3)
    assert world.status.rejected[0].digest == V2.digest


def test_a_canary_of_an_older_release_keeps_an_objective_that_is_refused_now() -> None:
    judge = Objective.model_validate({"name": "judge", "signal": "JudgeScore", "dimension": "tone", "min": "4"})
    world = started(snapshot(objectives=[ERRORS, judge]))
    world.tick(3)
    world.rules, world.problems = None, (f"spec.analysis.objectives[1].signal: {not_measured(judge)}",)
    world.tick(10)
    assert world.at == ("Stepping", 10)
    assert [row.name for row in world.status.analysis] == ["errors", "judge", "sample-ratio"]
    world.error_rate = {V2.digest: 0.3}
    world.tick(3)
    assert (world.status.stable, world.status.rejected[0].digest) == (V1, V2.digest)


def test_an_invalid_spec_at_rest_leaves_serving_untouched() -> None:
    world = World()
    world.settle()
    before = world.weights.copy()
    world.desired, world.rules, world.problems = None, None, ("spec.versionRef: PromptVersion x is missing: create it",)
    world.tick(3)
    assert world.weights == before
    assert (world.status.phase, world.condition("Stalled")) == ("Degraded", "True")


def test_an_edited_objective_starts_from_no_evidence() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 900}, objectives=[ERRORS, COST]))
    world.tick(5)
    rows = {row.name: row.canary_samples for row in world.status.analysis}
    assert rows["errors"] == rows["cost"] == 1_000
    assert world.rules is not None
    edited = COST.model_copy(update={"max": "0.004"})
    world.rules = world.rules.model_copy(update={"objectives": [ERRORS, edited]})
    world.tick()
    rows = {row.name: row.canary_samples for row in world.status.analysis}
    assert {"errors": 1_200, "cost": 200}.items() <= rows.items()


@pytest.mark.parametrize(
    ("weights", "sent"),
    [
        ([10, 80], 10),  # the present weight is still a step
        ([5, 80], 5),  # lower than now: goes down
    ],
)
def test_edited_steps_never_raise_the_weight_by_themselves(weights: list[int], sent: int) -> None:
    world = started()
    world.tick()
    assert world.rules is not None
    steps = [Step(weight=w, min_duration_seconds=300) for w in weights]
    world.rules = world.rules.model_copy(update={"steps": steps})
    world.settle()
    assert world.at == ("Stepping", sent)


def test_steps_that_all_lie_above_start_from_weight_0() -> None:
    world = started()
    before = len(world.weights)
    assert world.rules is not None
    world.rules = world.rules.model_copy(update={"steps": [Step(weight=40, min_duration_seconds=300)]})
    world.settle()
    assert world.weights[before:] == [(0, V2.digest), (40, V2.digest)]


@pytest.mark.parametrize("how", ["verb", "spec", "freeze"])
def test_pause_holds_and_a_breach_still_rolls_back(how: str) -> None:
    world = started()
    if how == "verb":
        world.tell("pause")
    world.paused, world.frozen = how == "spec", "black-friday" if how == "freeze" else None
    world.tick(30)
    assert world.at == ("Stepping", 10)
    assert (world.status.phase, world.condition("Paused")) == ("Paused", "True")
    assert world.status.clock.active_seconds == 0, "a pause skips no time"
    world.error_rate = {V2.digest: 0.3}
    world.tick(4)
    assert world.status.stable == V1
    assert world.status.rejected


def test_a_pause_step_waits_for_promote() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"pause": {}}, {"weight": 50}))
    world.tick(20)
    assert (world.at, world.status.step, world.status.phase) == (("Stepping", 10), "2/3", "Paused")
    world.tell("promote")
    assert world.at == ("Stepping", 50)


def test_a_timed_pause_ends_by_itself() -> None:
    world = started(
        snapshot({"weight": 10, "minDurationSeconds": 60}, {"pause": {"durationSeconds": 120}}, {"weight": 50})
    )
    world.tick(3)
    assert world.status.step == "2/3"
    world.tick(2)
    assert world.status.step == "2/3"
    world.tick(3)
    assert world.at == ("Stepping", 50)


def test_promote_skips_time_but_not_evidence() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 3000}, {"weight": 50}), silent={"errors"})
    world.tell("promote")
    world.tick(5)
    assert world.at == ("Stepping", 10)
    world.silent = set()
    world.tick(2)
    assert world.at == ("Stepping", 50)


def test_promote_full_skips_evidence_and_says_who() -> None:
    world = started(silent={"errors"})
    world.tell("promote-full", reason="hotfix")
    assert (world.status.stable, world.status.phase) == (V2, "Healthy")
    record = next(d for d in world.status.history if d.reason == "FullPromotion")
    assert "alice" in record.message
    assert "hotfix" in record.message


def test_abort_rejects_and_goes_to_stable() -> None:
    world = started()
    world.tell("abort")
    assert (world.status.stage, world.status.phase, world.weights[-1]) == ("Idle", "Degraded", (0, None))
    assert world.status.rejected[0].reason == "RolloutAborted"


def test_resume_ends_a_pause() -> None:
    world = started()
    world.tell("pause")
    world.tick(3)
    world.tell("resume")
    assert finished(world).status.stable == V2


def test_undo_goes_back_with_the_spec_untouched_even_while_paused() -> None:
    world = finished(started())
    world.tick(4)
    world.paused = True
    world.tell("undo")
    assert (world.status.stable, world.status.phase) == (V1, "Degraded")
    assert world.status.rejected[0].digest == V2.digest
    assert world.weights[-2:] == [(100, V1.digest), (0, None)]
    world.paused = False
    world.tick(5)
    assert world.status.stable == V1


def test_undo_without_an_earlier_version_is_refused() -> None:
    world = World()
    world.settle()
    world.tell("undo")
    assert world.events[-1] == "CommandRefused"
    assert world.status.stable == V1


@pytest.mark.parametrize(
    "wrong", [{"rolloutUID": "other"}, {"revision": 1}, {"attempt": 7}, {"step": 5}], ids=lambda w: next(iter(w))
)
def test_a_command_for_something_else_is_refused(wrong: dict[str, object]) -> None:
    world = started()
    world.tell("promote-full", **wrong)
    assert world.at == ("Stepping", 10)
    assert world.events[-1] == "CommandRefused"


def test_a_replayed_command_never_acts_twice() -> None:
    world = started(silent={"errors"})
    world.tell("pause")
    world.command, paused = None, world.command
    world.tell("resume")
    world.command = paused
    world.settle()
    assert not world.status.paused
    world.lose_status()
    world.settle()
    assert not world.status.paused, "the ids survive the loss of the status"


def test_a_malformed_command_is_refused_once() -> None:
    world = started()
    world.command = MalformedCommand("{}", "verb: Input should be 'promote'")
    world.tick(3)
    assert world.events.count("CommandRefused") == 1


def test_the_emergency_override_is_an_abort() -> None:
    world = started()
    world.overridden = True
    world.settle()
    assert world.status.stable == V1
    assert world.status.rejected[0].reason == "EmergencyOverride"
    world.desired = V3
    world.tick(3)
    assert world.status.canary is None, "nothing starts while it is in force"


def test_an_unreachable_canary_provider_is_no_verdict_and_ends_at_weight_0() -> None:
    world = started(error_rate={V2.digest: 1.0})
    world.provider_unreachable = True
    world.settle()
    world.tick(10)
    assert world.at == ("Stepping", 10)
    world.tick(25)
    assert (world.at, world.status.rejected) == (("Loading", 0), [])
    world.error_rate, world.provider_unreachable = {}, False
    assert finished(world).status.stable == V2


def test_lost_status_is_rebuilt_from_the_delivery() -> None:
    world = finished(started(error_rate={V2.digest: 0.3}))
    world.lose_status()
    world.uid = "uid-2"
    world.tick(3)
    assert (world.status.stable, world.status.phase) == (V1, "Degraded")
    assert world.status.rejected[0].digest == V2.digest
    assert "StatusRecovered" in world.events


def test_status_lost_in_mid_canary_starts_over_from_weight_0() -> None:
    world = started()
    world.tick(1)
    before = len(world.weights)
    world.lose_status()
    world.settle()
    assert world.weights[before][0] == 0
    assert finished(world).status.stable == V2


def test_status_and_delivery_lost_falls_back_on_the_mark_of_the_copies() -> None:
    world = World()
    world.promoted = V1
    world.desired = V2
    world.settle()
    assert (world.status.stable, world.status.canary) == (V1, V2)


def test_a_breach_while_baking_goes_back() -> None:
    absolute = ERRORS.model_copy(update={"max": "0.05"})
    world = finished(started(snapshot(objectives=[absolute], bake_seconds=3_600)))
    assert world.status.stage == "Baking"
    world.error_rate = {V2.digest: 0.5}
    world.tick(7)
    assert (world.status.stable, world.status.phase) == (V1, "Degraded")
    assert world.weights[-2:] == [(0, V2.digest), (0, None)]


@pytest.mark.parametrize(("choice", "stage"), [("Hold", "Stepping"), ("Rollback", "Idle")])
def test_too_long_holds_or_rolls_back(choice: str, stage: str) -> None:
    rules = snapshot({"weight": 10, "minDurationSeconds": 6_000}, max_duration_seconds=300, on_timeout=choice)
    world = started(rules)
    world.tick(15)
    assert (world.status.stage, world.status.stable) == (stage, V1)


def test_without_analysis_time_alone_advances() -> None:
    world = started(snapshot(analyse=False, objectives=[]))
    world.metrics_available = False
    assert finished(world).status.stable == V2


def test_at_rest_nothing_is_urgent() -> None:
    world = finished(started())
    world.tick(5)
    before = world.writes
    world.tick(50)
    assert world.writes == before


def test_a_long_outage_counts_as_active_only_what_the_metrics_cover() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 600}))
    world.tick(2)
    world.now += 3 * 86_400 // INTERVAL * INTERVAL  # a weekend without the operator and without series
    world.settle()
    assert world.at == ("Stepping", 10)
    assert world.status.clock.step_active_seconds <= 3 * INTERVAL


def test_a_first_version_is_not_ready_before_a_pod_serves_it() -> None:
    world = World()
    world.deaf = {"pod-a", "pod-b"}
    world.settle()
    assert (world.status.phase, world.condition("Ready")) == ("Progressing", "False")
    world.deaf = set()
    world.heard = dict.fromkeys(world.pods, world.sequence)
    world.settle()
    assert (world.status.phase, world.condition("Ready")) == ("Healthy", "True")
    world.pods.append("pod-c")
    world.tick()
    assert world.status.phase == "Healthy", "a pod that joins later resets nothing"


def test_a_bound_that_stable_violates_too_holds() -> None:
    absolute = ERRORS.model_copy(update={"max": "0.02", "versus_stable": None})
    world = started(snapshot(objectives=[absolute]), error_rate={V1.digest: 0.2, V2.digest: 0.2})
    world.tick(20)
    assert (world.at, world.status.rejected) == (("Stepping", 10), [])
    assert world.status.analysis[0].common_cause
    assert "stable was beyond the bound lately" in world.status.message


def test_a_bad_first_version_alerts_once_and_stays() -> None:
    absolute = ERRORS.model_copy(update={"max": "0.02"})
    world = World(snapshot(objectives=[absolute], bake_seconds=300))
    world.error_rate = {V1.digest: 0.3}
    world.settle()
    world.tick(6)
    assert world.status.stable == V1
    assert world.weights == [(0, None)]
    assert world.events.count("ObjectiveBreached") == 1
    assert "breached, without an earlier version" in world.status.message
    assert world.status.rejected == []
    world.tell("abort")
    assert world.events[-1] == "CommandRefused"
    world.tick(10)
    assert world.status.stage == "Idle"


def test_a_step_is_recorded_as_it_was_when_it_passed() -> None:
    world = finished(started())
    first = next(d for d in reversed(world.status.history) if d.reason == "StepCompleted")
    assert (first.step, first.weight) == ("1/2", 10)
    assert first.evidence[0].step_samples > 0
    assert "checkpoint" not in first.dump()["evidence"][0]
    initial = world.status.history[-1]
    assert (initial.reason, initial.weight) == ("InitialVersion", 100)


def test_promote_never_triggers_the_rollback_for_thin_traffic() -> None:
    world = started(snapshot(on_insufficient_traffic="Rollback"), requests=20.0)
    world.tell("promote")
    world.tick(2)
    assert world.at == ("Stepping", 10)


def test_promote_approves_thin_evidence_only_where_a_person_is_asked() -> None:
    world = started(snapshot(on_insufficient_traffic="Hold"), requests=20.0)
    world.tick(5)
    world.tell("promote")
    world.tick(5)
    assert world.at == ("Stepping", 10)


def test_the_emergency_override_works_while_the_spec_is_invalid() -> None:
    world = started()
    world.problems = ("spec.x: broken",)
    world.overridden = True
    world.settle()
    assert world.status.rejected[0].reason == "EmergencyOverride"
    assert world.weights[-1][0] == 0


def test_a_canary_does_not_meet_users_while_metrics_are_away() -> None:
    world = World()
    world.settle()
    world.metrics_available = False
    world.desired = V2
    world.tick(5)
    assert world.at == ("Loading", 0)
    world.metrics_available = True
    world.settle()
    assert world.at == ("Stepping", 10)


@pytest.mark.parametrize("why", ["invalid", "blind"])
def test_promote_does_not_end_a_pause_while_nothing_can_be_judged(why: str) -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"pause": {}}, {"weight": 50}))
    world.tick(10)
    world.problems, world.metrics_available = ("spec.x: broken",) if why == "invalid" else (), why != "blind"
    world.tell("promote")
    assert (world.at, world.status.step) == (("Stepping", 10), "2/3")
    assert "CommandRefused" in world.events


def test_abort_ends_a_canary_whose_provider_is_away_for_good() -> None:
    world = started()
    world.provider_unreachable = True
    world.deaf = {"pod-a"}
    world.settle()
    world.tick(31)
    assert (world.status.stage, world.status.withdrawal) == ("Withdrawing", "ProviderUnreachable")
    world.tell("abort")
    world.deaf, world.provider_unreachable = set(), False
    world.heard["pod-a"] = world.sequence
    world.tick(3)
    assert (world.status.stage, world.status.phase) == ("Idle", "Degraded")


def test_no_news_of_the_provider_changes_nothing() -> None:
    world = started()
    world.provider_unreachable = True
    world.settle()
    since = world.status.clock.unreachable_since
    world.provider_unreachable = None
    world.tick(2)
    assert world.status.clock.unreachable_since == since


def test_other_stickiness_starts_over_from_weight_0() -> None:
    world = started()
    world.tick()
    assert world.rules is not None
    before = len(world.weights)
    world.rules = world.rules.model_copy(update={"stickiness": Stickiness(by="Conversation")})
    world.settle()
    assert [weight for weight, _ in world.weights[before:]] == [0, 10]
    assert world.intent is not None
    assert world.intent.stickiness.by == "Conversation"
    assert all(row.canary_samples == 0 for row in world.status.analysis)


def test_stickiness_stays_while_the_spec_is_invalid() -> None:
    world = started()
    world.rules, world.problems = None, ("spec.x: broken",)
    world.stickiness = Stickiness(by="Request")
    world.tick(2)
    assert world.intent is not None
    assert world.intent.stickiness.by == "User"


def test_an_edit_of_a_later_step_does_not_repeat_this_one() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 60}, {"pause": {}}, {"weight": 50}))
    world.tick(6)
    assert world.status.step == "2/3"
    assert world.rules is not None
    world.rules = world.rules.model_copy(update={"steps": [*world.rules.steps[:2], Step(weight=60)]})
    world.settle()
    assert world.status.step == "2/3"


def test_the_status_stays_small_with_every_objective_that_fits() -> None:
    many = [
        ERRORS.model_copy(update={"name": f"errors-with-a-name-as-long-as-people-give-{n}", "max": "0.5"})
        for n in range(20)
    ]
    world = started(snapshot(objectives=many))
    for n in range(20):
        world.extra[many[n].name] = "errors"
    sizes = []

    def live() -> None:
        for _ in range(15):
            world.tick()
            sizes.append(len(json.dumps(world.status.dump()).encode()))

    live()
    assert world.status.stable == V2
    world.desired = V3
    world.error_rate = {V3.digest: 0.4}
    live()
    assert world.status.rejected
    breach = next(d for d in world.status.history if d.reason == "ObjectiveBreached")
    assert breach.evidence[0].verdict == "Breach"
    assert max(sizes) <= 48 * 1024, sizes


@pytest.mark.parametrize("rate", [0.6, 1.0])
def test_an_outage_of_both_arms_promotes_nothing(rate: float) -> None:
    world = started(error_rate={V1.digest: rate, V2.digest: rate})
    world.tick(40)
    assert (world.at, world.status.rejected) == (("Stepping", 10), [])
    assert "stable fails in at least half" in world.status.message
    world.error_rate = {}
    assert finished(world).status.stable == V2


def test_a_canary_that_fails_more_during_trouble_is_still_taken_back() -> None:
    world = started(error_rate={V1.digest: 0.5, V2.digest: 1.0})
    world.tick(10)
    assert world.status.rejected[0].digest == V2.digest


@pytest.mark.parametrize(
    "edit",
    [
        {"canary": None},
        {"weight": 90},
        {"snapshot": None},
        {"stage": "Promoting"},
        {"stage": "Baking"},
        {"stage": "Withdrawing"},
        {"current_step_index": 7},
    ],
    ids=str,
)
def test_a_status_edited_into_nonsense_is_as_good_as_lost(edit: dict[str, object]) -> None:
    world = started()
    world.tick()
    before = len(world.weights)
    world.status = world.status.model_copy(update=edit)
    world.settle()
    assert world.weights[before][0] == 0, "the canary starts over from weight 0"
    assert finished(world).status.stable == V2


def test_undo_does_not_start_under_an_override_and_rejects_only_once_it_has_landed() -> None:
    world = finished(started())
    world.tick(4)
    world.overridden = True
    world.tell("undo")
    assert world.events[-1] == "CommandRefused"
    world.overridden = False
    world.deaf = {"pod-a"}
    world.tell("undo", id="second")
    assert world.status.rejected == []
    world.overridden = True
    world.tick()
    world.overridden, world.deaf = False, set()
    world.heard["pod-a"] = world.sequence
    world.tick(3)
    assert (world.status.stable, world.status.phase, world.status.rejected) == (V2, "Healthy", [])


def test_undo_after_a_rollback_is_refused_for_there_is_nothing_to_undo() -> None:
    world = finished(started())
    world.tick(4)
    world.desired, world.error_rate = V3, {V3.digest: 0.4}
    world.settle()
    finished(world)
    assert world.status.phase == "Degraded"
    world.tell("undo")
    assert world.events[-1] == "CommandRefused"
    assert world.status.stable == V2


def test_promote_does_not_lift_another_persons_pause() -> None:
    world = started()
    world.tell("pause")
    world.tell("promote")
    assert world.events[-1] == "CommandRefused"
    assert world.status.paused


def test_a_mean_is_not_passed_before_it_is_judged() -> None:
    world = started(snapshot(objectives=[ERRORS, COST.model_copy(update={"min_samples": 100})]), requests=600.0)
    world.tick(3)
    assert world.at == ("Stepping", 10)
    assert "of 200 canary samples before it is judged" in world.status.message


def test_somebody_is_called_once() -> None:
    world = started(requests=20.0)
    world.tick(30)
    assert world.events.count("ApprovalRequired") == 1
    world.problems = ("spec.x: broken",)
    world.tick(5)
    assert world.events.count("InvalidSpec") == 1


# ---------------------------------------------------------------- data that cannot be trusted


def test_both_arms_beyond_a_bound_right_after_a_weight_increase_take_it_back() -> None:
    """The canary may use up a quota that both share."""
    bounded = ERRORS.model_copy(update={"max": "0.05"})
    steps = [{"weight": 10, "minDurationSeconds": 60}, {"weight": 50, "minDurationSeconds": 3600}]
    world = started(snapshot(*steps, objectives=[bounded]))
    world.tick(10)
    assert world.at == ("Stepping", 50)
    world.error_rate = {V1.digest: 0.1, V2.digest: 0.1}
    world.tick(15)
    assert world.at == ("Stepping", 50)
    world.tick(10)
    assert world.at == ("Stepping", 10)
    assert world.status.rejected == []
    decision = next(d for d in world.status.history if d.reason == "WeightReduced")
    assert "errors" in decision.message
    assert "back to 10 %" in decision.message
    # it stays there while the trouble lasts, and goes on when it is over
    world.tick(40)
    assert world.at == ("Stepping", 10)
    world.error_rate = {}
    world.tick(60)
    assert world.at == ("Stepping", 50)


def test_trouble_of_both_arms_long_after_the_increase_is_no_reason_to_go_back() -> None:
    bounded = ERRORS.model_copy(update={"max": "0.05"})
    steps = [{"weight": 10, "minDurationSeconds": 60}, {"weight": 50, "minDurationSeconds": 36_000}]
    world = started(snapshot(*steps, objectives=[bounded]))
    world.tick(60)
    world.error_rate = {V1.digest: 0.1, V2.digest: 0.1}
    world.tick(60)
    assert world.at == ("Stepping", 50)


LONG_STEPS = ({"weight": 10, "minDurationSeconds": 300}, {"weight": 50, "minDurationSeconds": 300})
"""Long enough that requests of the weight before are over."""


def test_a_sample_ratio_mismatch_holds_and_says_so_but_a_breach_still_rolls_back() -> None:
    world = started(snapshot(*LONG_STEPS))
    world.lost_on_canary = 0.8
    world.tick(40)
    assert world.at == ("Stepping", 10)
    assert "should get 10 %" in world.status.message
    row = next(row for row in world.status.analysis if row.name == "sample-ratio")
    assert (row.verdict, row.common_cause) == ("NoEvidence", True)
    world.error_rate = {V2.digest: 0.5}
    world.tick(5)
    assert world.status.rejected[0].digest == V2.digest


def test_intervals_before_the_exposure_are_stables_alone() -> None:
    """What an earlier attempt of the same version left there is not evidence of this one."""
    world = started()
    world.tick(1)
    world.provider_unreachable = True
    world.tick(40)
    assert world.at == ("Loading", 0)
    world.provider_unreachable = False
    world.settle()
    assert world.at == ("Stepping", 10)
    row = next(row for row in world.status.analysis if row.name == "errors")
    assert (row.canary_samples, row.stable_samples) == (0, 0)  # what people read is of the same seconds
    state = make_test(ERRORS).decode(row.checkpoint or "")
    assert state.recent > 0
    assert state.dispersion.waiting


def test_many_intervals_at_once_make_the_same_durations_as_one_at_a_time() -> None:
    """As after a restart: two outages of both arms lie within what is read at once."""
    steps = [{"weight": 10, "minDurationSeconds": 36_000}, {"weight": 50}]
    one, other = started(snapshot(*steps)), started(snapshot(*steps))
    for world, at_once in ((one, False), (other, True)):
        for k in range(40):
            down = 5 <= k < 9 or 20 <= k < 22
            world.error_rate = {V1.digest: 0.8, V2.digest: 0.8} if down else {}
            world.record()
            world.now += INTERVAL
            if not at_once:
                world.settle()
        world.settle()
    assert one.status.clock.active_seconds == other.status.clock.active_seconds == 34 * INTERVAL
    assert one.status.analysis == other.status.analysis


# ---------------------------------------------------------------- evidence that is old, lost, or of another time


def test_a_regression_that_begins_in_the_last_step_is_not_passed_by_what_was_before() -> None:
    steps = [{"weight": 10, "minDurationSeconds": 3600}, {"weight": 50, "minDurationSeconds": 60}]
    world = started(snapshot(*steps), requests=4_000.0)
    world.tick(119)
    assert world.at == ("Stepping", 10)
    assert next(row for row in world.status.analysis if row.name == "errors").verdict == "Pass"
    world.tick(2)
    assert world.at == ("Stepping", 50)
    world.error_rate = {V2.digest: 0.014}  # within what a breach needs to be seen, not shown to be within the margin
    world.tick(4)
    assert world.at == ("Stepping", 50)


def test_nothing_advances_on_evidence_that_ends_long_ago() -> None:
    """The operator was away while the canary began to fail, and reads what it missed piece by piece."""
    world = started(snapshot({"weight": 10, "minDurationSeconds": 600}, {"weight": 50}))
    world.tick(2)
    for _ in range(60):
        world.record()
        world.now += INTERVAL
    world.read_until = world.now - 40 * INTERVAL
    world.settle()
    assert world.at == ("Stepping", 10)
    assert "waiting for metrics: the latest are" in world.status.message
    world.read_until = None
    world.settle()
    assert world.at == ("Stepping", 50)


def test_sums_that_cannot_be_read_pass_nothing_and_say_so() -> None:
    world = started(snapshot({"weight": 10, "minDurationSeconds": 600}, {"weight": 50}))
    world.tick(10)
    rows = [row.model_copy(update={"checkpoint": "1:other:AAAA"}) for row in world.status.analysis]
    world.status = world.status.model_copy(update={"analysis": rows})
    world.silent = {"errors"}
    world.tick(1)
    decision = next(d for d in world.status.history if d.reason == "EvidenceRestarted")
    assert "errors: checkpoint of version '1'" in decision.message
    world.tick(20)
    assert world.at == ("Stepping", 10)
    assert [d.reason for d in world.status.history].count("EvidenceRestarted") == 1
    world.silent = set()
    world.tick(60)
    assert world.status.stable == V2


def test_what_was_seen_before_the_canarys_provider_went_away_still_breaches_after_a_restart() -> None:
    world = started(error_rate={V2.digest: 0.5})
    for k in range(12):
        world.record()
        world.now += INTERVAL
        if k == 9:
            world.provider_unreachable = True
            world.status = world.status.model_copy(
                update={"clock": world.status.clock.model_copy(update={"unreachable_since": world.now})}
            )
    world.settle()
    assert world.status.rejected[0].digest == V2.digest


def test_a_person_may_go_on_in_spite_of_a_sample_ratio_mismatch() -> None:
    world = started(snapshot(*LONG_STEPS))
    world.lost_on_canary = 0.8
    world.tick(24)
    assert "`promote` continues anyway" in world.status.message
    world.tell("promote")
    world.tick(2)
    assert world.at == ("Stepping", 50)


def test_users_who_ask_a_little_less_are_no_mismatch_unless_requests_are_what_is_spread() -> None:
    world = started(snapshot(*LONG_STEPS))
    world.lost_on_canary = 0.1
    world.tick(15)
    assert world.at == ("Stepping", 50)
    request = Stickiness(by="Request")
    by_request = started(snapshot(*LONG_STEPS, stickiness=request), stickiness=request)
    by_request.lost_on_canary = 0.1
    by_request.tick(15)
    assert by_request.at == ("Stepping", 10)
    assert "should get 10 %" in by_request.status.message


def test_the_step_before_everybody_is_the_one_that_needs_proof() -> None:
    steps = [{"weight": 10, "minDurationSeconds": 60}, {"weight": 100, "minDurationSeconds": 60}]
    world = started(snapshot(*steps), error_rate={V2.digest: 0.0145})
    world.tick(30)
    assert world.at == ("Stepping", 10)
    good = started(snapshot(*steps))
    good.tick(60)
    assert good.status.stable == V2


def test_an_interval_that_is_raised_and_lowered_again_makes_nobody_blind() -> None:
    world = started()
    world.tick(2)
    rules = world.rules
    assert rules is not None
    world.rules = rules.model_copy(update={"interval_seconds": 3600})
    world.settle()
    world.rules = rules
    world.settle()
    assert (world.status.clock.evaluated_until or 0) <= world.now
    world.status = world.status.model_copy(
        update={"clock": world.status.clock.model_copy(update={"evaluated_until": 4_000_000_020})}
    )
    world.error_rate = {V2.digest: 0.5}
    world.tick(6)
    assert world.status.rejected[0].digest == V2.digest


def test_counts_beyond_every_integer_are_no_crash() -> None:
    world = started(requests=1e19)
    world.tick(3)
    assert all(row.stable_samples <= 2**53 for row in world.status.analysis)
