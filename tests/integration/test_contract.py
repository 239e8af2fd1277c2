"""The contract, line by line, on a real API server, a real Prometheus and real gateway pods."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.api import ApiKubectl
from tests.integration.cluster import Kubectl
from tests.integration.story import Story

LONG = [{"weight": 10, "minDurationSeconds": 3600}, {"weight": 50}]


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


@pytest.fixture
def with_kubectl(operator: Sandbox, kubectl: ApiKubectl) -> Story:
    """Manifests are applied by kubectl itself, as people and GitOps controllers do."""
    return Story(operator, kubectl.real)


# ---------------------------------------------------------------- the two ways it ends


def test_a_good_version_reaches_everybody_and_no_user_flips_back(story: Story) -> None:
    """Lines 1, 2, 6 and 9."""
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users() as seen:
        story.apply("v2")
        story.at_weight(10)
        status = story.healthy("v2")
        changes = seen().variant_changes
    assert changes.get("canary->stable", 0) == 0
    steps = [d for d in status["history"] if d["reason"] == "StepCompleted"]
    assert len(steps) == 2
    for decision in steps:
        assert {row["name"] for row in decision["evidence"]} >= {"errors"}
        assert all(row["canarySamples"] > 0 for row in decision["evidence"] if row["name"] == "errors")
    story.expect_events("InitialVersion", "RolloutStarted", "StepCompleted", "RolloutCompleted")
    assert all(r["stable"] == story.digest("v2") or r["canary"] == story.digest("v2") for r in story.reports())


def test_the_share_of_users_on_the_canary_is_the_weight(story: Story) -> None:
    """Line 1, per pod and across pods."""
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    story.apply("v2", steps=[{"weight": 20, "minDurationSeconds": 3600}]).at_weight(20)
    with story.users(rate=200, users=2_000, zipf=0.0) as seen:
        story.wait(lambda: sum(seen().users_by_last_variant.values()) >= 1_000, "a thousand users")
        users = seen().users_by_last_variant
    assert 0.15 < users["canary"] / sum(users.values()) < 0.25
    assert [r["weight"] for r in story.reports()] == [20, 20]


def test_a_breach_rolls_back_with_its_evidence_and_stays_rejected(story: Story) -> None:
    """Lines 4, 6 and 8."""
    story.given(v1={}, v2={"errorRate": 0.4}).apply("v1").healthy("v1")
    with story.users():
        status = story.apply("v2").rolled_back("v2")
    decision = next(d for d in status["history"] if d["reason"] == "ObjectiveBreached")
    row = next(row for row in decision["evidence"] if row["verdict"] == "Breach")
    for field in ("canary", "stable", "canarySamples", "stableSamples", "difference", "message"):
        assert row[field], field
    assert decision["windowSeconds"] >= 1
    assert {r["weight"] for r in story.reports()} == {0}
    story.expect_events("ObjectiveBreached")

    # a recreated object, as `kubectl replace --force` or a restore makes it, does not forget
    manifest = story.manifest("v2")
    story.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(manifest))
    status = story.until(lambda s: s["phase"] == "Degraded" and s["stage"] == "Idle")
    assert status["stable"]["digest"] == story.digest("v1")
    assert {r["weight"] for r in story.reports()} == {0}


def test_the_holdback_moves_once_when_the_bake_is_over(story: Story) -> None:
    """Lines 1 and 9, after the last step."""
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users() as seen:
        story.apply("v2", canary={"bakeSeconds": 8, "holdbackPercent": 20})
        status = story.healthy("v2")
        assert (status["stage"], status["weight"]) == ("Baking", 80)
        assert {(r["weight"], r["stable"], r["canary"]) for r in story.reports()} == {
            (80, story.digest("v1"), story.digest("v2"))
        }
        assert seen().variant_changes.get("canary->stable", 0) == 0
        story.until(lambda s: s["stage"] == "Idle" and s["weight"] == 100)
        story.wait(lambda: {r["stable"] for r in story.reports()} == {story.digest("v2")}, "all on the new version")
    assert {"RolloutCompleted", "BakeCompleted"} <= set(story.events())


def test_a_regression_after_the_promotion_is_found_against_the_holdback(story: Story) -> None:
    """Line 4, without an absolute bound."""
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", canary={"bakeSeconds": 600, "holdbackPercent": 10})
        story.until(lambda s: s["stage"] == "Baking" and s["analysis"][0]["stableSamples"] > 0)
        story.behave(v1={}, v2={"errorRate": 0.5})
        status = story.rolled_back("v2")
    decision = next(d for d in status["history"] if d["reason"] == "ObjectiveBreached")
    assert decision["weight"] == 90
    assert status["stable"]["digest"] == story.digest("v1")
    assert {r["weight"] for r in story.reports()} == {0}


# ---------------------------------------------------------------- 2: no evidence


def test_without_users_nothing_is_promoted(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    story.apply("v2")
    status = story.until(lambda s: s["phase"] == "Paused" and s["weight"] == 10)
    condition = next(c for c in status["conditions"] if c["type"] == "InsufficientTraffic")
    assert condition["status"] == "True"
    time.sleep(4)
    assert story.status()["weight"] == 10


# ---------------------------------------------------------------- 4 and 9: acknowledged delivery


def test_a_pod_that_never_confirms_holds_the_step_but_not_a_rollback(
    story: Story, resumed: Callable[[int], None]
) -> None:
    story.given(v1={}, v2={"errorRate": 0.4}).apply("v1").healthy("v1")
    deaf, _ = (pod["metadata"]["name"] for pod in story.pods())
    with story.users(rate=60):
        story.apply("v2", steps=LONG, paused=False)
        story.until(lambda s: s["stage"] in ("Stepping", "Withdrawing"))
        resumed(story.sandbox.pid(story.namespace, deaf))
        status = story.until(lambda s: s["rejected"][0]["digest"] == story.digest("v2"))
    assert status["phase"] == "Degraded"


def test_a_gateway_pod_killed_in_a_step_changes_no_decision(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=[{"weight": 10, "minDurationSeconds": 5}, {"weight": 50, "minDurationSeconds": 2}])
        story.at_weight(10)
        os.kill(story.sandbox.pid(story.namespace, story.pods()[0]["metadata"]["name"]), signal.SIGKILL)
        status = story.healthy("v2")
    assert status.get("rejected", []) == []


def test_status_edited_by_hand_or_lost(story: Story) -> None:
    story.given(v1={}, v2={"errorRate": 0.4}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2").rolled_back("v2")
    patch = json.dumps({"status": None})
    story.kubectl("patch", "promptrollout", "app", "--subresource=status", "--type=merge", "-p", patch)
    status = story.until(lambda s: s["phase"] == "Degraded" and s["stage"] == "Idle" and s["rejected"])
    assert status["stable"]["digest"] == story.digest("v1")
    patch = json.dumps({"status": {"weight": 77, "phase": "Healthy"}})
    story.kubectl("patch", "promptrollout", "app", "--subresource=status", "--type=merge", "-p", patch)
    story.until(lambda s: s["phase"] == "Degraded" and s["weight"] == 0)
    assert {r["weight"] for r in story.reports()} == {0}


# ---------------------------------------------------------------- 7: GitOps


def test_the_same_manifests_again_write_nothing(with_kubectl: Story) -> None:
    story = with_kubectl
    story.given(v1={}).apply("v1").healthy("v1")
    story.until(lambda s: s["stage"] == "Idle")

    def versions() -> dict[str, str]:
        kinds = "promptrollouts,promptdeliveries,promptversions,promptgateways,modelproviders,deployments,services"
        items = story.kubectl.json("get", kinds)["items"]
        return {f"{i['kind']}/{i['metadata']['name']}": i["metadata"]["resourceVersion"] for i in items}

    time.sleep(3)
    before = versions()
    for _ in range(2):
        assert "unchanged" in story.kubectl.apply(story.manifest("v1"))
    time.sleep(5)
    assert versions() == before


def test_nothing_but_status_is_written_on_what_a_person_applied(with_kubectl: Story) -> None:
    story = with_kubectl
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2").healthy("v2")
    for kind in ("promptrollout", "promptgateway", "modelprovider"):
        item = story.kubectl.json("get", kind, "--show-managed-fields")["items"][0]
        assert "finalizers" not in item["metadata"]
        for entry in item["metadata"]["managedFields"]:
            if entry["manager"].startswith("kubectl"):
                continue
            assert entry.get("subresource") == "status", entry
    story.kubectl.apply(story.manifest("v2"))
    assert story.kubectl("diff", "-f", "-", stdin=json.dumps(story.manifest("v2"))) == ""


def test_a_revert_in_git_in_the_middle_of_a_canary_cancels_it(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=LONG).at_weight(10)
        status = story.apply("v1", steps=LONG).healthy("v1")
    assert status.get("rejected", []) == []
    story.expect_events("RolloutCancelled")


def test_a_new_edit_in_the_middle_of_a_canary_starts_over(story: Story) -> None:
    story.given(v1={}, v2={}, v3={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=LONG).at_weight(10)
        story.apply("v3", steps=LONG)
        status = story.until(lambda s: s["canary"]["digest"] == story.digest("v3") and s["weight"] == 10)
    assert status.get("rejected", []) == []
    story.expect_events("RolloutSuperseded")


def test_the_version_in_use_deleted_or_pruned_keeps_serving(story: Story) -> None:
    story.given(v1={})
    template: dict[str, Any] = story.manifest("v1")["spec"]["template"]
    kind = {"apiVersion": "promptrollout.dev/v1alpha1", "kind": "PromptVersion"}
    story.kubectl.apply({**kind, "metadata": {"name": "first"}, "spec": template})
    manifest = story.manifest("v1")
    del manifest["spec"]["template"]
    manifest["spec"]["versionRef"] = {"name": "first"}
    story.kubectl.apply(manifest)
    story.healthy("v1")
    story.kubectl("delete", "promptversion", "first")
    status = story.until(lambda s: any(c["type"] == "InvalidSpec" and c["status"] == "True" for c in s["conditions"]))
    assert "first" in status["message"]
    assert {r["stable"] for r in story.reports()} == {story.digest("v1")}
    copy = status["stable"]["version"]
    story.kubectl("delete", "promptversion", copy)
    story.kubectl.apply({**kind, "metadata": {"name": "first"}, "spec": template})
    story.healthy("v1")
    story.wait(lambda: story.kubectl.find("promptversion", copy), "the copy comes back")
