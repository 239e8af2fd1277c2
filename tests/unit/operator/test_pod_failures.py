"""What a pod's status says of a canary: the kubelet's word counts, the node's troubles do not."""

from typing import Any

import pytest

from promptrollout.api.rollout import Clock, RolloutStatus
from promptrollout.engine.facts import Pods
from promptrollout.operator.pod_failures import CALM_SECONDS, Canaries, failure_of, of_gateway
from promptrollout.operator.store import Store
from tests.unit.operator.world import an_object

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
    assert (failure.at, failure.what) == (AT, "answers no probes")


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


def canaries(*items: dict[str, Any]) -> Canaries:
    store = Store()
    for item in items:
        store.put("PromptRollout", item)
    return Canaries(store)


def seen(*pods: dict[str, Any], wall: float = AT, source: float = AT) -> Pods:
    return of_gateway(pods, canaries(), ("ns", "default"), wall, source)


def test_what_fails_on_one_node_of_several_is_the_nodes_fault() -> None:
    both = [pod("gw-1", "node-1", **FAILED), pod("gw-2", "node-1", **FAILED)]
    assert seen(*both, pod("gw-3", "node-2")).failure is None
    assert seen(*both).failure is not None
    failure = seen(pod("gw-1", "node-1", **FAILED), pod("gw-2", "node-2", **FAILED)).failure
    assert failure is not None
    assert failure.times == (int(AT), int(AT))


def test_its_time_is_told_on_the_metrics_sources_clock() -> None:
    failure = seen(pod(**FAILED), wall=AT + 5, source=AT + 105).failure
    assert failure is not None
    assert failure.times == (int(AT) + 100,)


def test_calm_is_when_all_are_ready_and_none_failed_for_a_while() -> None:
    assert seen(pod()).calm
    assert not seen(pod(ready=False), wall=AT + 1000).calm
    assert not seen(pod(**FAILED), wall=AT + CALM_SECONDS - 1).calm
    assert seen(pod(**FAILED), wall=AT + CALM_SECONDS).calm


def rollout(name: str, stage: str = "Loading", **clock: int) -> dict[str, Any]:
    status = {"stage": stage, "clock": clock}
    return an_object("PromptRollout", name, {"gatewayRef": {"name": "default"}}) | {"status": status}


def test_who_is_on_trial_keeps_the_turn_and_then_who_waited_longest_has_it() -> None:
    """After a restart the statuses say it."""
    known = canaries(
        rollout("a", suspectedAt=300), rollout("b", suspectedAt=100), rollout("c", suspectedAt=200, trialAt=400)
    )
    assert known.trial("ns", "default", 500) == "c"
    known.note("ns", "default", "c", RolloutStatus())
    assert known.trial("ns", "default", 500) == "b"
    assert known.trial("ns", "default", 99) == "", "one that did not use its turn waits for the next"
    known.note("ns", "default", "b", None)
    known.note("ns", "elsewhere", "a", RolloutStatus(clock=Clock(suspected_at=300)))
    assert (known.trial("ns", "default", 500), known.trial("ns", "elsewhere", 500)) == ("", "a")


def test_the_last_raise_is_of_all_canaries_that_meet_users() -> None:
    known = canaries(rollout("a", "Stepping", stageSince=100), rollout("b", "Idle", stageSince=300))
    assert (known.raised_at("ns", "default"), known.raised_at("ns", "elsewhere")) == (100, None)


def test_what_a_pod_was_at_work_for_counts_unless_it_was_killed_from_outside() -> None:
    crashed, killed = pod("gw-1", **FAILED), pod("gw-2", restartCount=1, lastState=ended(exitCode=137))
    oom = pod("gw-3", restartCount=1, lastState=ended(exitCode=137, reason="OOMKilled"))
    for each, named in ((crashed, int(AT)), (killed, None), (oom, int(AT))):
        names = [each["metadata"]["name"]]
        failure = of_gateway([each], canaries(), ("ns", "default"), AT, AT, at_work=names).failure
        assert failure is not None
        assert failure.named_at == named
