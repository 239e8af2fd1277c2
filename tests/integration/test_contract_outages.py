"""The contract's lines 3 and 5, outages and restarts, on a real API server, a real Prometheus and real gateway pods."""

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
        story.healthy("v2")


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
        story.rolled_back("v2")


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
        story.healthy("v2")
        stats = seen()
    assert stats.ok == stats.answered, stats.statuses


# ---------------------------------------------------------------- 5: restarts, two operators


@pytest.mark.parametrize("stage", ["Loading", "Stepping", "Promoting", "Withdrawing", "Baking"])
def test_the_operator_killed_in_each_stage_goes_on_where_it_was(story: Story, stage: str) -> None:
    bad = stage == "Withdrawing"
    story.given(v1={}, v2={"errorRate": 0.4} if bad else {}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", canary={"bakeSeconds": 3})
        story.until(lambda s: s["stage"] == stage or (stage != "Baking" and s["stage"] in ("Baking", "Idle")))
        os.kill(story.operator_pid(), signal.SIGKILL)
        status = story.rolled_back("v2") if bad else story.healthy("v2")
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
        story.system("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=180s")
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
        story.system("rollout", "status", "deployment/promptrollout-operator", "--timeout=180s")


def ready_operators(story: Story) -> set[str]:
    pods = story.system.json("get", "pods", "-l", "app.kubernetes.io/component=operator")["items"]
    return {
        pod["metadata"]["name"]
        for pod in pods
        if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    }
