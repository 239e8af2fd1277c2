"""What a person on call may do, and what serving does without the operator, on any cluster."""

from __future__ import annotations

from promptrollout.sandbox.traffic import TrafficStats
from tests.e2e.story import FIRST, GOOD, QuickstartStory
from tests.e2e.test_changes import assert_all_answered
from tests.users import eventually, stats_after

LONG = [{"weight": 10, "minDurationSeconds": 3600}]
WITH_PAUSE = [{"weight": 10, "minDurationSeconds": 5}, {"pause": {}}, {"weight": 50, "minDurationSeconds": 5}]


def test_a_pause_step_waits_for_promote(story: QuickstartStory) -> None:
    with story.users():
        story.apply(GOOD, steps=WITH_PAUSE)
        status = story.until(lambda s: s["phase"] == "Paused" and s["step"] == "2/3")
        assert status["weight"] == 10
        assert "step 2/3" in story.command("status", story.name)
        story.command("promote", story.name, "--reason", "looked at the answers")
        story.healthy(GOOD)
    assert "looked at the answers" in str(story.status()["history"])


def test_pause_holds_and_resume_goes_on(story: QuickstartStory) -> None:
    with story.users():
        story.apply(GOOD, steps=LONG).at_weight(10)
        story.command("pause", story.name)
        assert story.until(lambda s: s["phase"] == "Paused")["weight"] == 10
        story.command("resume", story.name)
        assert story.until(lambda s: s["phase"] == "Progressing")["weight"] == 10
        story.command("promote", story.name, "--full")
        story.healthy(GOOD)


def test_the_emergency_override_needs_no_operator_and_is_an_abort_for_it(story: QuickstartStory) -> None:
    with story.users() as users:
        story.apply(GOOD, steps=LONG).at_weight(10)
        eventually(lambda: on_canary(stats_after(users, 60)), "nobody met the canary")
        story.scale_operator(0)
        try:
            story.command("emergency", "stable", story.name, "--reason", "harmful answers")

            def everybody_on_stable() -> bool:
                before = stats_after(users, 20)
                return on_canary(stats_after(users, 200)) == on_canary(before)

            eventually(everybody_on_stable, "users still meet the canary")
        finally:
            story.scale_operator(1)
        status = story.until(lambda s: s["phase"] == "Degraded" and s["stage"] == "Idle")
        assert_all_answered(stats_after(users, 20))
    assert status["stable"]["digest"] == story.digest(FIRST)
    assert [each["digest"] for each in status["rejected"]] == [story.digest(GOOD)]
    story.command("emergency", "clear", story.name)


def test_the_gateway_answers_while_the_operator_restarts_and_the_rollout_goes_on(story: QuickstartStory) -> None:
    with story.users() as users:
        story.apply(GOOD)
        revision = story.at_weight(10)["revision"]
        before = story.operator_pods()
        story.system("delete", "pod", *before)
        eventually(lambda: story.operator_pods() - before, "no new pod of the operator", story.patience)
        status = story.healthy(GOOD)
        assert_all_answered(stats_after(users, 50))
    assert (status["revision"], status["attempt"]) == (revision, 1)
    assert [each["weight"] for each in reversed(story.decisions("StepCompleted"))] == [10, 50]


def on_canary(stats: TrafficStats) -> int:
    return stats.variants.get("canary", 0)
