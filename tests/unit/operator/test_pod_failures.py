"""What a pod's status says of a canary: the kubelet's word counts, the node's troubles do not."""

from typing import Any

import pytest

from promptrollout.api.delivery import DiedIn
from promptrollout.engine.lifecycle.facts import PodFailure
from promptrollout.operator.rollouts.pod_failures import CALM_SECONDS, calm, failure_of, latest_failure

STARTED, ENDED, NOW = "2026-11-30T10:00:00Z", "2026-11-30T10:20:00Z", "2026-11-30T10:20:02Z"
AT = 1796034000.0


def pod(name: str = "gw-1", node: str = "node-1", *, ready: bool = True, **container: Any) -> dict[str, Any]:
    status = "True" if ready else "False"
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1"},
        "spec": {"nodeName": node},
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": ENDED},
                {"type": "ContainersReady", "status": status, "lastTransitionTime": ENDED},
            ],
            "containerStatuses": [
                {
                    "name": "gateway",
                    "ready": ready,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": STARTED}},
                    "lastState": {},
                }
                | container
            ],
        },
    }


def ended(**fields: Any) -> dict[str, Any]:
    base = {"exitCode": 139, "reason": "Error", "startedAt": STARTED, "finishedAt": ENDED}
    return {"terminated": base | fields}


def test_a_restart_is_a_failure() -> None:
    failure = failure_of(pod(restartCount=1, lastState=ended(), state={"running": {"startedAt": NOW}}))
    assert failure is not None
    assert (failure.at, failure.what, failure.before) == (AT, "ended (exit code 139)", None)


def test_so_is_an_end_that_waits_for_its_restart() -> None:
    failure = failure_of(pod(ready=False, state=ended(reason="OOMKilled", exitCode=137)))
    assert failure is not None
    assert failure.what == "ended (out of memory)"


def test_a_second_end_tells_when_the_first_one_was() -> None:
    first = "2026-11-30T10:15:00Z"
    failure = failure_of(pod(restartCount=2, lastState=ended(startedAt=first)))
    assert failure is not None
    assert (failure.at, failure.before) == (AT, AT - 300)
    failure = failure_of(
        pod(restartCount=1, ready=False, lastState=ended(finishedAt=first), state=ended(startedAt=first))
    )
    assert failure is not None
    assert (failure.at, failure.before) == (AT, None)


def test_a_container_that_was_ready_and_answers_no_probe_hangs() -> None:
    failure = failure_of(pod(ready=False))
    assert failure is not None
    assert (failure.at, failure.what) == (AT, "does not answer its probes")


def test_a_container_that_was_never_ready_is_only_starting() -> None:
    assert failure_of(pod(ready=False, state={"running": {"startedAt": NOW}})) is None


def test_a_node_that_is_out_of_reach_says_nothing_of_its_pods() -> None:
    """The Ready condition alone is the node controller's word, not the kubelet's."""
    lost = pod()
    lost["status"]["conditions"][0]["status"] = "False"
    assert failure_of(lost) is None


@pytest.mark.parametrize("reason", ["Unknown", "ContainerStatusUnknown"])
def test_neither_does_one_that_restarted(reason: str) -> None:
    assert failure_of(pod(restartCount=1, lastState=ended(reason=reason, exitCode=255))) is None


def test_a_pod_that_is_evicted_or_deleted_ends_by_order() -> None:
    evicted = pod(ready=False, state=ended())
    evicted["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True"})
    deleted = pod(ready=False, state=ended())
    deleted["metadata"]["deletionTimestamp"] = NOW
    assert (failure_of(evicted), failure_of(deleted)) == (None, None)


FAILED = {"restartCount": 1, "lastState": ended()}
CANARY = ("uid", "sha256:" + "c" * 64)


def seen(
    *pods: dict[str, Any], offset: float = 0.0, died_in: dict[str, list[DiedIn]] | None = None
) -> PodFailure | None:
    return latest_failure(pods, died_in or {}, CANARY, offset)


def at_work(digest: str = CANARY[1], variant: str = "canary", at: str = NOW) -> list[DiedIn]:
    return [DiedIn.model_validate({"rolloutUID": "uid", "digest": digest, "variant": variant, "at": at})]


def test_what_fails_on_one_node_of_several_is_the_nodes_fault() -> None:
    both = [pod("gw-1", "node-1", **FAILED), pod("gw-2", "node-1", **FAILED)]
    assert seen(*both, pod("gw-3", "node-2")) is None
    assert seen(*both) is not None
    failure = seen(pod("gw-1", "node-1", **FAILED), pod("gw-2", "node-2", **FAILED))
    assert failure is not None
    assert failure.times == (int(AT), int(AT))


def test_a_failure_of_weeks_ago_elsewhere_makes_it_no_less_the_nodes() -> None:
    old = pod("gw-2", "node-2", restartCount=1, lastState=ended(finishedAt="2026-11-01T10:00:00Z"))
    assert seen(pod("gw-1", "node-1", **FAILED), old) is None


def terminal(name: str, node: str, phase: str) -> dict[str, Any]:
    found = pod(name, node, ready=False)
    found["status"] |= {"phase": phase, "containerStatuses": []}
    return found


@pytest.mark.parametrize("other", [terminal("gw-9", "node-2", "Failed"), terminal("gw-9", "", "Pending")])
def test_pods_that_do_not_live_are_no_witnesses_and_keep_nobody_waiting(other: dict[str, Any]) -> None:
    assert seen(pod("gw-1", "node-1", **FAILED), other) is not None
    assert calm([pod(), other], AT + 1000)


def test_its_time_is_told_on_the_metrics_sources_clock() -> None:
    failure = seen(pod(**FAILED), offset=100)
    assert failure is not None
    assert (failure.times, failure.ended_at, failure.named_at) == ((int(AT) + 100,), int(AT) + 100, None)


def test_calm_is_when_all_are_ready_and_none_failed_for_a_while() -> None:
    assert calm([pod()], AT + CALM_SECONDS)
    assert not calm([pod()], AT + CALM_SECONDS - 1), "it hung a moment ago, which leaves no other trace"
    assert not calm([pod(ready=False)], AT + 1000)
    assert not calm([pod(**FAILED)], AT + CALM_SECONDS - 1)
    assert calm([pod(**FAILED)], AT + CALM_SECONDS)


def test_a_sidecar_that_ends_says_nothing() -> None:
    one = pod(**FAILED)
    one["status"]["containerStatuses"][0]["name"] = "istio-proxy"
    assert failure_of(one) is None


def test_a_kubelet_that_tells_no_times_is_no_fault() -> None:
    assert failure_of(pod(ready=False, state={"running": {}})) is None


def test_what_a_pod_was_at_work_for_accuses_and_clears() -> None:
    crashed = pod("gw-1", **FAILED)
    failure = seen(crashed, died_in={"gw-1": at_work()})
    assert failure is not None
    assert failure.named_at == int(AT)
    assert seen(crashed, died_in={"gw-1": at_work("sha256:" + "d" * 64)}) is None
    assert seen(crashed, died_in={"gw-1": at_work(variant="stable")}) is None
    failure = seen(crashed, died_in={"gw-1": at_work(at=STARTED)})
    assert failure is not None
    assert failure.named_at is None, "that was said of the process before"


def test_it_accuses_on_whatever_node() -> None:
    failure = seen(pod("gw-1", "node-1", **FAILED), pod("gw-2", "node-2"), died_in={"gw-1": at_work()})
    assert failure is not None
    assert failure.named_at == int(AT)


@pytest.mark.parametrize("fields", [{"exitCode": 137}, {"exitCode": 137, "reason": "OOMKilled"}])
def test_what_it_was_at_work_for_when_it_was_killed_says_nothing(fields: dict[str, Any]) -> None:
    """From outside, or for the memory that many requests have filled."""
    failure = seen(pod("gw-1", restartCount=1, lastState=ended(**fields)), died_in={"gw-1": at_work()})
    assert failure is not None
    assert (failure.ended_at, failure.named_at) == (int(AT), None)
