"""The commands against a real operator: what a person types, what they read, and the exit code."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl
from tests.integration.story import Story

Run = Callable[..., subprocess.CompletedProcess[str]]
SLOW_STEPS = [{"weight": 10, "minDurationSeconds": 600}, {"weight": 50, "minDurationSeconds": 600}]


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl).given()


@pytest.fixture
def cli(operator: Sandbox, namespace: str) -> Run:
    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "promptrollout", *arguments, "-n", namespace],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "KUBECONFIG": operator.kubeconfig, **environ},
        )

    return run


def test_verbs_and_status_in_a_rollouts_life(story: Story, cli: Run) -> None:
    story.apply("v1").healthy("v1")
    done = cli("status", "app", "--wait", "--digest", story.digest("v1"), "--timeout", "180s")
    assert done.returncode == 0, done.stderr
    # nobody listens there: a cluster on this machine is reached without a proxy, as by kubectl
    refused = cli("abort", "app", HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="example.com")
    assert refused.returncode == 1
    assert "no canary is in progress" in refused.stderr

    story.apply("v2", steps=SLOW_STEPS)
    with story.users():
        story.at_weight(10)
        paused = cli("pause", "app", "--reason", "lunch")
        assert paused.returncode == 0, paused.stderr
        assert "RolloutPaused" in paused.stdout
        assert "(lunch)" in paused.stdout
        story.until(lambda s: s["clock"]["evaluatedUntil"] > s["clock"]["exposedAt"])
        shown = cli("status", "app").stdout
        assert "Paused" in shown
        assert "10 % on the canary" in shown
        assert "2/2 pods confirmed" in shown
        assert re.search(r"Evidence: +until \d+s ago", shown)
        assert cli("status", "app", "--wait", "--timeout", "1s").returncode == 2
        resumed = cli("resume", "app")
        assert resumed.returncode == 0, resumed.stderr
        assert cli("promote", "app", "--full").returncode == 0
        story.healthy("v2")
    undone = cli("undo", "app", "--reason", "worse than it looked")
    assert undone.returncode == 0, undone.stderr
    story.until(lambda s: s["stage"] == "Idle" and s["stable"]["digest"] == story.digest("v1"))
    waited = cli("status", "app", "--wait", "--digest", story.digest("v2")[7:17])
    assert waited.returncode == 1
    assert "was rejected" in waited.stderr


def test_retry_of_what_was_aborted(story: Story, cli: Run) -> None:
    story.apply("v1").healthy("v1")
    story.apply("v2", steps=SLOW_STEPS).at_weight(10)
    aborted = cli("abort", "app")
    assert aborted.returncode == 0, aborted.stderr
    story.rolled_back("v2", reason="RolloutAborted")
    assert cli("status", "app", "--wait").returncode == 1
    retried = cli("retry", "app")
    assert retried.returncode == 0, retried.stderr
    assert "attempt 2" in retried.stdout
    story.at_weight(10)


def test_one_annotation_by_a_field_manager_of_its_own(story: Story, cli: Run) -> None:
    story.apply("v1").healthy("v1")
    cli("pause", "app")
    body: Any = story.kubectl.json("get", "promptrollout", "app", "--show-managed-fields")
    mine = [entry for entry in body["metadata"]["managedFields"] if entry["manager"] == "promptrollout-cli"]
    assert [entry["fieldsV1"] for entry in mine] == [
        {"f:metadata": {"f:annotations": {"f:promptrollout.dev/command": {}}}}
    ]
    assert body["metadata"]["generation"] == 1


def test_emergency_works_with_the_operator_stopped(story: Story, cli: Run) -> None:
    story.apply("v1").healthy("v1")
    story.apply("v2", steps=SLOW_STEPS).at_weight(10)
    stopped = story.operator_pid()
    os.kill(stopped, signal.SIGSTOP)
    try:
        timed_out = cli("abort", "app", "--no-wait")
        assert timed_out.returncode == 0, timed_out.stderr
        done = cli("emergency", "stable", "app", "--reason", "harmful answers")
        assert done.returncode == 0, done.stderr
        story.wait(lambda: all(report["overridden"] for report in story.reports()), "every pod on stable")
    finally:
        os.kill(stopped, signal.SIGCONT)
    story.until(lambda s: s["phase"] == "Degraded")
    assert cli("emergency", "clear", "app").returncode == 0
    story.wait(lambda: not any(report["overridden"] for report in story.reports()), "the override is gone")
    again = cli("emergency", "clear", "app")
    assert again.returncode == 1
    assert "has no override" in again.stderr


def test_lists_and_objects(story: Story, cli: Run) -> None:
    assert "No rollouts in this namespace." in cli("status").stdout
    story.apply("v1").healthy("v1")
    listed = cli("status").stdout
    assert "app" in listed
    assert "Healthy" in listed
    everywhere = cli("status", "-A").stdout.splitlines()
    assert everywhere[0].startswith("NAMESPACE")
    assert [story.namespace, "app"] in [line.split()[:2] for line in everywhere]
    body = json.loads(cli("status", "app", "-o", "json").stdout)
    assert body["status"]["phase"] == "Healthy"
    assert "managedFields" not in body["metadata"]


def test_what_is_not_there(story: Story, cli: Run) -> None:
    missing = cli("status", "nope")
    assert missing.returncode == 1
    assert "no PromptRollout nope in namespace" in missing.stderr
    assert cli("emergency", "stable", "nope").returncode == 1
    unreachable = cli("status", KUBECONFIG="/nonexistent")
    assert unreachable.returncode == 1
    assert "Error: no cluster: " in unreachable.stderr
    assert "Traceback" not in unreachable.stderr
