"""What the demo shows, on any cluster: a good change reaches everybody, a bad one is taken back, by evidence only."""

from __future__ import annotations

import json

from promptrollout.sandbox.traffic import TrafficStats
from tests.e2e.story import BAD, FIRST, GOOD, QuickstartStory
from tests.users import stats_after


def test_a_good_change_is_promoted_on_its_evidence(story: QuickstartStory) -> None:
    with story.users() as users:
        stats_after(users, 100)
        story.apply(GOOD)
        story.healthy(GOOD)
        seen = stats_after(users, 100)
    assert_all_answered(seen)
    assert seen.variant_changes.get("canary->stable", 0) == 0
    steps = story.decisions("StepCompleted")
    assert [decision["weight"] for decision in reversed(steps)] == [10, 50]
    for decision in steps:
        assert all(row["canarySamples"] >= 100 for row in decision["evidence"] if row["name"] == "contract")
    story.expect_events("InitialVersion", "RolloutStarted", "StepCompleted", "RolloutCompleted")


def test_a_bad_change_is_rolled_back_with_its_evidence_and_stays_rejected(story: QuickstartStory) -> None:
    with story.users() as users:
        stats_after(users, 100)
        story.apply(BAD)
        status = story.rolled_back(BAD)
        back = stats_after(users, 50)
        later = stats_after(users, 300)
    assert status["stable"]["digest"] == story.digest(FIRST)
    assert later.variants["stable"] > back.variants["stable"]
    assert later.variants.get("canary", 0) == back.variants.get("canary", 0)
    (breach,) = story.decisions("ObjectiveBreached")
    assert breach["weight"] == 10
    row = next(row for row in breach["evidence"] if row["verdict"] == "Breach")
    for field in ("signal", "canary", "stable", "canarySamples", "stableSamples", "difference", "message"):
        assert row[field], field
    story.expect_events("RollbackCompleted")
    assert story.events().count("ObjectiveBreached") == 1
    # a recreated object, as `kubectl replace --force` or a restore makes it, does not forget
    story.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(story.manifest(BAD)))
    again = story.until(lambda s: s["phase"] == "Degraded" and s["stage"] == "Idle")
    assert again["stable"]["digest"] == story.digest(FIRST)


def test_without_evidence_nothing_is_promoted(story: QuickstartStory) -> None:
    """Nobody asks, so the step's time passes without a sample."""
    story.apply(GOOD)
    status = story.until(
        lambda s: any(c["type"] == "InsufficientTraffic" and c["status"] == "True" for c in s["conditions"])
    )
    assert (status["phase"], status["weight"]) == ("Paused", 10)
    assert status["stable"]["digest"] == story.digest(FIRST)
    assert status["clock"]["stepActiveSeconds"] >= 5
    assert story.decisions("StepCompleted") == []


def assert_all_answered(stats: TrafficStats) -> None:
    assert (stats.failures, set(stats.statuses)) == ({}, {200}), f"{stats.statuses}, {stats.failures}"
