"""The contract, line by line, on a real API server, a real Prometheus and real gateway pods."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl
from tests.integration.halfway import Halfway
from tests.integration.story import Story

LONG = [{"weight": 10, "minDurationSeconds": 3600}, {"weight": 50}]


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


@pytest.fixture
def resumed() -> Iterator[Callable[[int], None]]:
    """Stop processes, and let them go on at the end whatever happened."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    yield stop
    for pid in stopped:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


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
    assert {"InitialVersion", "RolloutStarted", "StepCompleted", "RolloutCompleted"} <= set(story.events())
    assert all(r["stable"] == story.digest("v2") or r["canary"] == story.digest("v2") for r in story.reports())


def test_the_share_of_users_on_the_canary_is_the_weight(story: Story) -> None:
    """Line 1, per pod and across pods."""
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users(rate=200, users=2_000, zipf=0.0) as seen:
        story.apply("v2", steps=[{"weight": 20, "minDurationSeconds": 3600}])
        story.at_weight(20)
        before = dict(seen().users_by_last_variant)
        time.sleep(6)
        after = seen().users_by_last_variant
    assert sum(before.values()) <= sum(after.values())
    assert 0.15 < after["canary"] / sum(after.values()) < 0.25
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
    assert "ObjectiveBreached" in story.events()

    # a recreated object, as `kubectl replace --force` or a restore makes it, does not forget
    manifest = story.manifest("v2")
    story.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(manifest))
    status = story.until(lambda s: s["phase"] == "Degraded" and s["stage"] == "Idle")
    assert status["stable"]["digest"] == story.digest("v1")
    assert {r["weight"] for r in story.reports()} == {0}


# ---------------------------------------------------------------- 2 and 3: no evidence, outages


def test_without_users_nothing_is_promoted(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    story.apply("v2")
    status = story.until(lambda s: s["phase"] == "Paused" and s["weight"] == 10)
    condition = next(c for c in status["conditions"] if c["type"] == "InsufficientTraffic")
    assert condition["status"] == "True"
    time.sleep(4)
    assert story.status()["weight"] == 10


def test_prometheus_away_for_several_intervals_decides_nothing(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=[{"weight": 10, "minDurationSeconds": 6}, {"weight": 50, "minDurationSeconds": 2}])
        story.at_weight(10)
        story.sandbox.stop_prometheus()
        try:
            status = story.until(
                lambda s: any(c["type"] == "MetricsAvailable" and c["status"] == "False" for c in s["conditions"])
            )
            time.sleep(8)
            later = story.status()
            assert (later["weight"], later["stage"], later.get("rejected", [])) == (10, "Stepping", [])
        finally:
            story.sandbox.start_prometheus()
        assert status["stable"]["digest"] == story.digest("v1")
        story.healthy("v2", 60)


def test_nobody_meets_a_canary_once_prometheus_has_died(story: Story) -> None:
    """Its last answer was a moment ago: one was exposed then, and ran unwatched for the whole outage."""
    story.given(v1={}, v2={"errorRate": 0.4}).apply("v1").healthy("v1")
    with story.users():
        story.sandbox.stop_prometheus()
        try:
            story.apply("v2")
            status = story.until(lambda s: "metrics are not available" in s["message"])
            assert (status["stage"], status["weight"]) == ("Loading", 0)
            time.sleep(5)
            assert {r["weight"] for r in story.reports()} == {0}
        finally:
            story.sandbox.start_prometheus()
        story.rolled_back("v2", seconds=60)


def test_the_api_server_away_leaves_serving_untouched(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users() as seen:
        story.apply("v2", steps=[{"weight": 10, "minDurationSeconds": 6}, {"weight": 50, "minDurationSeconds": 2}])
        story.at_weight(10)
        story.sandbox.stop_apiserver()
        try:
            before = seen().ok
            time.sleep(8)
            assert seen().ok > before + 300
        finally:
            story.sandbox.start_apiserver()
        story.healthy("v2", 60)
        stats = seen()
    assert stats.ok == stats.answered, stats.statuses


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
        status = story.healthy("v2", 60)
    assert status.get("rejected", []) == []


# ---------------------------------------------------------------- 5: restarts, two operators


@pytest.mark.parametrize("stage", ["Loading", "Stepping", "Promoting", "Withdrawing", "Baking"])
def test_the_operator_killed_in_each_stage_goes_on_where_it_was(story: Story, stage: str) -> None:
    bad = stage == "Withdrawing"
    story.given(v1={}, v2={"errorRate": 0.4} if bad else {}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", canary={"bakeSeconds": 3})
        story.until(lambda s: s["stage"] == stage or (stage != "Baking" and s["stage"] in ("Baking", "Idle")))
        os.kill(story.operator_pid(), signal.SIGKILL)
        status = story.rolled_back("v2", seconds=60) if bad else story.healthy("v2", 60)
    reasons = [d["reason"] for d in status["history"]]
    once = ["RolloutStarted", "ObjectiveBreached" if bad else "RolloutCompleted"]
    # the first version and this change each started and ended exactly once
    assert [reasons.count(reason) for reason in once] == [1, 1], reasons


def test_a_stale_operator_does_no_harm(story: Story, resumed: Callable[[int], None]) -> None:
    """One operator is frozen in a step; another takes over and rolls back; the first wakes up."""
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=LONG)
        story.at_weight(10)
        first = story.operator_pod()
        resumed(story.operator_pid())
        story.system("scale", "deployment/promptrollout-operator", "--replicas=2")
        try:
            story.wait(lambda: ready_operators(story) - {first}, "a second operator")
            story.behave(v1={}, v2={"errorRate": 0.5})
            story.rolled_back("v2")
            sequence = story.delivery()["spec"]["sequence"]
            os.kill(story.sandbox.pid("promptrollout-system", first), signal.SIGCONT)
            time.sleep(5)
            status = story.status()
            assert (status["phase"], status["stage"]) == ("Degraded", "Idle")
            assert story.delivery()["spec"]["weight"] == 0
            assert story.delivery()["spec"]["sequence"] >= sequence
        finally:
            story.system("scale", "deployment/promptrollout-operator", "--replicas=1")


@contextlib.contextmanager
def an_operator_of_our_own(story: Story, server: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's own entry point as a child of the test: for this namespace, with its API server at `server`."""
    kubeconfig = json.loads(Path(story.sandbox.kubeconfig).read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] = server
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig))
    deployed = story.system.json("get", "configmap", "promptrollout-operator")["data"]["config.yaml"]
    config = yaml.safe_load(deployed) | {"watchNamespaces": [story.namespace]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environ = os.environ | {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "POD_NAME": "first",
        "PROMPTROLLOUT_BIND_ADDRESS": "127.65.0.1",
    }
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "promptrollout", "operator", "--config", str(folder / "config.yaml")],
            env=environ,
            stdout=log,
            stderr=log,
        )
    try:
        yield child
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.terminate()
        child.wait(20)


def refused_statuses(story: Story) -> int:
    """How many writes of a rollout's status the API server has refused with 409, by its own count."""
    lines = [
        line
        for line in story.kubectl("get", "--raw", "/metrics").splitlines()
        if line.startswith("apiserver_request_total{")
        and all(part in line for part in ('code="409"', 'resource="promptrollouts"', 'subresource="status"'))
    ]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)


def test_an_operator_stopped_in_mid_write_does_no_harm(story: Story, tmp_path: Path) -> None:
    """It is about to advance, and half of that write is sent; another one takes over and rolls back; then the other
    half arrives, and the first wakes up."""
    server = json.loads(Path(story.sandbox.kubeconfig).read_text())["clusters"][0]["cluster"]["server"]
    story.system("scale", "deployment/promptrollout-operator", "--replicas=0")
    wire = Halfway(server)
    try:
        story.system("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=60s")
        with an_operator_of_our_own(story, wire.url, tmp_path) as first:
            story.given(v1={}, v2={}).apply("v1").healthy("v1")
            with story.users(rate=200):
                story.apply("v2", steps=[{"weight": 10, "minDurationSeconds": 5}, {"weight": 50}])
                story.at_weight(10)
                wire.arm(lambda: os.kill(first.pid, signal.SIGSTOP))
                assert wire.held.wait(30), (tmp_path / "log").read_text()
                before = story.status()
                story.behave(v1={}, v2={"errorRate": 0.5})
                time.sleep(5)  # what the second finds when it comes must be enough
                assert story.status() == before
                assert before["step"] == "1/2"

                story.system("scale", "deployment/promptrollout-operator", "--replicas=1")
                decided = story.rolled_back("v2")
                delivered = story.delivery()["spec"]
                refused = refused_statuses(story)
                wire.release()
                story.wait(lambda: refused_statuses(story) == refused + 1, "the second half is refused")
                os.kill(first.pid, signal.SIGCONT)
                time.sleep(5)
                assert first.poll() is None
                later = story.status()
            for field in ("phase", "stage", "step", "weight", "stable", "rejected", "history", "revision"):
                assert later.get(field) == decided.get(field), field
            assert story.delivery()["spec"] == delivered
            assert delivered["weight"] == 0
            assert "StepCompleted" not in story.events()
    finally:
        wire.close()
        story.system("scale", "deployment/promptrollout-operator", "--replicas=1")
        story.system("rollout", "status", "deployment/promptrollout-operator", "--timeout=60s")


def ready_operators(story: Story) -> set[str]:
    pods = story.system.json("get", "pods", "-l", "app.kubernetes.io/component=operator")["items"]
    return {
        pod["metadata"]["name"]
        for pod in pods
        if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    }


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


def test_the_same_manifests_again_write_nothing(story: Story) -> None:
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


def test_nothing_but_status_is_written_on_what_a_person_applied(story: Story) -> None:
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
    assert "RolloutCancelled" in story.events()


def test_a_new_edit_in_the_middle_of_a_canary_starts_over(story: Story) -> None:
    story.given(v1={}, v2={}, v3={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=LONG).at_weight(10)
        story.apply("v3", steps=LONG)
        status = story.until(lambda s: s["canary"]["digest"] == story.digest("v3") and s["weight"] == 10)
    assert status.get("rejected", []) == []
    assert "RolloutSuperseded" in story.events()


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
    story.wait(lambda: story.kubectl.run("get", "promptversion", copy).returncode == 0, "the copy comes back")
