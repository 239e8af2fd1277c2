"""A canary that kills the gateway's pods: the one failure that leaves no metrics behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import SandboxError
from promptrollout.sandbox.traffic import TrafficStats
from tests.connections import HTTP
from tests.integration.cluster import Kubectl
from tests.integration.story import Story

LONG = [{"weight": 10, "minDurationSeconds": 3600}, {"weight": 50}]


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


@contextlib.contextmanager
def deadly(story: Story, digest: str, seen: Callable[[], TrafficStats]) -> Iterator[list[TrafficStats]]:
    """Every pod whose users meet a version of this digest is killed; what was seen until each kill."""
    stop, kills = threading.Event(), list[TrafficStats]()

    def kill() -> None:
        while not stop.wait(0.1):
            for pod in story.pods():
                with contextlib.suppress(httpx.HTTPError, SandboxError, ProcessLookupError, KeyError):
                    url = f"http://{pod['status']['podIP']}:9090/rollouts"
                    served = HTTP.get(url, timeout=1).json()["rollouts"]
                    if any(r.get("canary") == digest and r["weight"] > 0 for r in served):
                        pid, until = story.sandbox.pid(story.namespace, pod["metadata"]["name"]), seen()
                        os.kill(pid, signal.SIGKILL)
                        kills.append(until)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield kills
    finally:
        stop.set()
        thread.join(10)


def served(story: Story) -> list[str | None]:
    """The canary's digest on each pod that answers."""
    with contextlib.suppress(httpx.HTTPError, KeyError):
        return [report.get("canary") for report in story.reports()]
    return []


def over(seen: TrafficStats) -> int:
    """Requests that ended in any way."""
    return seen.answered + sum(seen.failures.values())


def failures(seen: TrafficStats) -> int:
    """Requests that ended, and not with an answer in full."""
    return seen.answered - seen.ok + sum(seen.failures.values())


def ready(story: Story) -> int:
    """How many pods take requests."""
    conditions = [pod["status"].get("conditions") or [] for pod in story.pods()]
    return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in each) for each in conditions)


def test_a_canary_that_kills_its_pods_is_taken_back_tried_alone_and_rejected(story: Story) -> None:
    story.given(v1={}, v2={}, w1={}).apply("v1").healthy("v1")
    other = Story(story.sandbox, story.kubectl)
    other.name = "other"
    other.apply("w1").healthy("w1")
    with other.users() as seen:
        story.apply("v2", steps=LONG).at_weight(10)
        began = time.monotonic()
        with deadly(story, story.digest("v2"), seen) as kills:
            withdrawn = story.until(lambda s: s["weight"] == 0 and s["clock"].get("suspectedAt"))
            assert withdrawn.get("rejected", []) == []
            assert withdrawn["history"][0]["reason"] == "PodsFailing"
            assert "gateway pod" in withdrawn["history"][0]["message"]
            story.wait(lambda: served(story) == [None, None], "stable alone on both pods")
            story.wait(lambda: ready(story) == 2, "both pods ready")
            assert time.monotonic() - began < 300, "a watchdog: of its waits each has two minutes"
            # what was sent before is over, so that none of it counts as a failure of the calm
            so_far, sent_before = len(kills), seen().sent
            story.wait(lambda: over(seen()) >= sent_before, "an end of the requests that were under way")
            before = seen()
            tried = story.until(lambda s: s["clock"].get("trialAt"))
            assert tried["stable"]["digest"] == story.digest("v1")
            story.rolled_back("v2", "PodsFailing")
        assert len(kills) >= 3
    # with the first kill after it the calm is over, however late this test learns of the trial
    calm = kills[so_far]
    sent, failed = calm.sent - before.sent, failures(calm) - failures(before)
    assert sent > 0
    assert failed <= 0.01 * sent + 10, (before, calm)
    story.expect_events("PodsFailing", "RollbackCompleted")
    assert other.status()["stable"]["digest"] == other.digest("w1")


def test_a_kill_of_both_pods_by_accident_only_delays_a_good_version(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2").at_weight(10)
        for pod in story.pods():
            os.kill(story.sandbox.pid(story.namespace, pod["metadata"]["name"]), signal.SIGKILL)
        status = story.healthy("v2", 120)
    assert status.get("rejected", []) == []
