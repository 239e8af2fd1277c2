"""Gateway pods that crash or hang, from what the kubelet writes into their status."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from promptrollout.api.delivery import DiedIn
from promptrollout.engine.lifecycle.facts import PodFailure
from promptrollout.engine.lifecycle.surroundings import SUSPECT_SECONDS
from promptrollout.operator.gateways.pods import is_ready

Object = dict[str, Any]

CALM_SECONDS = 30.0
"""Nothing is tried again before all pods have been ready for so long."""
CONTAINER = "gateway"
"""Only this container counts: prompts do not end sidecars."""
SIGKILLED = 137
OF_THE_NODE = ("Unknown", "ContainerStatusUnknown", "NodeLost", "Evicted")
"""Reasons of a container that ended with its node, which no prompt causes."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One pod's latest."""

    at: float
    """Seconds since the epoch, on the node's clock."""
    pod: str
    node: str
    what: str
    before: float | None = None
    """When it had failed before that, if that is known."""
    ended: bool = True
    by_itself: bool = True
    """Neither killed from outside nor out of memory, which all requests fill: then the request that it worked on is the
    cause."""


def failure_of(pod: Object) -> Failure | None:
    """When the gateway's container last ended, or stopped answering its probes; None: it did neither.

    That the Ready condition alone is false, or that the pod is disrupted, is the node's doing.
    """
    status, metadata = pod.get("status") or {}, pod["metadata"]
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    if metadata.get("deletionTimestamp") or (conditions.get("DisruptionTarget") or {}).get("status") == "True":
        return None
    name, node = metadata["name"], _node(pod)
    found: list[Failure] = []
    for container in status.get("containerStatuses") or []:
        if container.get("name") != CONTAINER:
            continue
        states = (container.get("lastState") or {}, container.get("state") or {})
        ends = [state["terminated"] for state in states if "terminated" in state]
        # a run that is not the first one began when the one before had ended
        first = container.get("restartCount", 0) < (2 if "terminated" in states[0] else 1)
        for ended in ends:
            if ended.get("reason") in OF_THE_NODE or not ended.get("finishedAt"):
                continue
            before = None if first or not ended.get("startedAt") else _seconds(ended["startedAt"])
            of_memory = ended.get("reason") == "OOMKilled"
            how = "out of memory" if of_memory else f"exit code {ended.get('exitCode')}"
            by_itself = not of_memory and ended.get("exitCode") != SIGKILLED
            at = _seconds(ended["finishedAt"])
            found.append(Failure(at, name, node, f"ended ({how})", before, by_itself=by_itself))
        if (since := _hangs_since(container, conditions)) is not None:
            found.append(Failure(since, name, node, "does not answer its probes", ended=False, by_itself=False))
    return max(found, key=lambda failure: failure.at, default=None)


def _hangs_since(container: Object, conditions: dict[str, Object]) -> float | None:
    """Since when a container that runs, and was ready, is not ready any more."""
    running, ready = (container.get("state") or {}).get("running") or {}, conditions.get("ContainersReady") or {}
    since, started = ready.get("lastTransitionTime"), running.get("startedAt")
    if container.get("ready") or ready.get("status") != "False" or not since or not started:
        return None
    # a container that has just started was never ready
    return _seconds(since) if _seconds(since) > _seconds(started) else None


def latest_failure(
    pods: Sequence[Object], died_in: Mapping[str, Collection[DiedIn]], canary: tuple[str, str], offset: float
) -> PodFailure | None:
    """The latest failure that a canary may have caused. `canary`: uid of its rollout and its digest; `died_in`: what
    pods worked on when they died, by pod; `offset`: of the metrics source's clock, in seconds.

    If pods fail on one node only and others run, the node is the cause. A pod that worked on another version clears the
    canary of that failure; one that worked on the canary blames it on any node.
    """
    alive = [pod for pod in pods if lives(pod)]
    failed = [failure for failure in map(failure_of, alive) if failure is not None]
    newest = max((failure.at for failure in failed), default=0.0)
    recent = [failure for failure in failed if newest - failure.at < SUSPECT_SECONDS]
    nodes = {_node(pod) for pod in alive}
    of_a_node = len(nodes) > 1 and len({failure.node for failure in recent}) == 1
    accusing, blamed = [], []
    for failure in recent:
        work = _work(failure, died_in.get(failure.pod, ()))
        if canary in work:
            accusing.append(failure)
        if canary in work or not (work or of_a_node):
            blamed.append(failure)
    if not blamed:
        return None
    last = max(blamed, key=lambda failure: failure.at)

    def latest(failures: Collection[Failure]) -> int | None:
        return max((int(failure.at + offset) for failure in failures), default=None)

    times = sorted(at for each in blamed for at in (each.at, each.before) if at is not None)
    return PodFailure(
        tuple(int(at + offset) for at in times),
        f"gateway pod {last.pod} {last.what}",
        ended_at=latest([each for each in blamed if each.ended]),
        named_at=latest(accusing),
    )


def calm(pods: Sequence[Object], wall: float) -> bool:
    """All have been ready for a while, and none has failed since. `wall`: the time."""
    alive = [pod for pod in pods if lives(pod)]
    failed = [failure for failure in map(failure_of, alive) if failure is not None]
    return all(is_ready(pod) and wall - _ready_since(pod) >= CALM_SECONDS for pod in alive) and all(
        wall - each.at >= CALM_SECONDS for each in failed
    )


def _ready_since(pod: Object) -> float:
    """A hang leaves no other trace once it is over."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    times = [c["lastTransitionTime"] for c in conditions if c.get("type") == "Ready" and c.get("lastTransitionTime")]
    return max(map(_seconds, times), default=0.0)


def lives(pod: Object) -> bool:
    """It runs on a node, or is about to: not evicted, ended or unschedulable."""
    ended = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return bool(_node(pod)) and not ended and not pod["metadata"].get("deletionTimestamp")


def _work(failure: Failure, died_in: Collection[DiedIn]) -> set[tuple[str, str]]:
    """Rollout uid and digest of what the pod worked on. Earlier reports belong to earlier failures."""
    if not failure.by_itself:
        return set()
    return {
        (each.rollout_uid, each.digest if each.variant == "canary" else "")
        for each in died_in
        if _seconds(each.at) >= int(failure.at)
    }


def _node(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
