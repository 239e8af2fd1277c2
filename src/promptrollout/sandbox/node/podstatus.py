"""The status a kubelet would report for a pod, from the states of its containers. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptrollout.sandbox.node.podspec import Object


def timestamp(unix_seconds: float) -> str:
    """RFC 3339 in whole seconds, as metav1.Time."""
    moment = datetime.datetime.fromtimestamp(int(unix_seconds), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class ContainerState:
    """What is known of one container."""

    name: str
    image: str
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: dict[str, Any] = field(default_factory=dict)
    restart_count: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""
    #: Ended, and the restart policy does not start it again.
    finished: bool = False

    @property
    def running(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        terminated = self.state.get("terminated")
        return int(terminated["exitCode"]) if terminated else None

    def to_status(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"sandbox://{self.image}" if self.container_id else "",
            "containerID": self.container_id,
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restart_count,
            "ready": self.ready,
            "started": self.started,
        }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def running(started_at: float) -> dict[str, Any]:
    return {"running": {"startedAt": timestamp(started_at)}}


def terminated(
    exit_code: int, started_at: float, finished_at: float, container_id: str, message: str = ""
) -> dict[str, Any]:
    """`exit_code` as a shell reports it: 128 + the signal's number if there was one."""
    details: dict[str, Any] = {
        "exitCode": exit_code,
        "reason": "Completed" if exit_code == 0 else "Error",
        "startedAt": timestamp(started_at),
        "finishedAt": timestamp(finished_at),
        "containerID": container_id,
    }
    if message:
        details["message"] = message
    return {"terminated": details}


def phase(containers: Sequence[ContainerState], inits_done: bool) -> str:
    """Pending until all containers have started once; Succeeded or Failed when none will run again."""
    if containers and all(container.finished for container in containers):
        return "Succeeded" if all(container.exit_code == 0 for container in containers) else "Failed"
    begun = all(container.container_id for container in containers)
    return "Running" if inits_done and begun else "Pending"


def pod_status(
    pod: Object,
    *,
    containers: Sequence[ContainerState],
    init_containers: Sequence[ContainerState],
    address: str,
    host_address: str,
    start_time: float,
    previous: Mapping[str, Any],
    now: float,
) -> dict[str, Any]:
    """The whole status; `previous` (the last one) keeps transition times of conditions that did not change."""
    inits_done = all(container.finished and container.exit_code == 0 for container in init_containers)
    ended = bool(containers) and all(container.finished for container in containers)
    unready = [container.name for container in containers if not container.ready]
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    reported = {c["type"]: c["status"] for c in (pod.get("status") or {}).get("conditions") or []}
    closed_gates = [gate for gate in gates if reported.get(gate) != "True"]

    reason, message = "", ""
    if ended:
        reason = "PodCompleted"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    containers_ready = not unready and not ended
    gate_message = f"corresponding condition of pod readiness gate {closed_gates} is not True"
    ready_reason, ready_message = (
        ("ReadinessGatesNotReady", gate_message) if containers_ready and closed_gates else (reason, message)
    )
    wanted = [
        ("PodScheduled", True, "", ""),
        ("PodReadyToStartContainers", not ended, "", ""),
        ("Initialized", inits_done, "" if inits_done else "ContainersNotInitialized", ""),
        ("ContainersReady", containers_ready, reason, message),
        ("Ready", containers_ready and not closed_gates, ready_reason, ready_message),
    ]
    before = {condition["type"]: condition for condition in previous.get("conditions") or []}
    generation = pod["metadata"].get("generation")
    conditions = []
    for kind, holds, why, text in wanted:
        status = "True" if holds else "False"
        old = before.get(kind)
        changed = old is None or old["status"] != status
        condition = {
            "type": kind,
            "status": status,
            "lastProbeTime": None,
            "lastTransitionTime": timestamp(now) if changed or old is None else old["lastTransitionTime"],
            "reason": why or None,  # null removes an older reason in a merge patch
            "message": text or None,
        }
        if generation is not None:
            condition["observedGeneration"] = generation
        conditions.append(condition)
    status_now: dict[str, Any] = {
        "phase": phase(containers, inits_done),
        "hostIP": host_address,
        "hostIPs": [{"ip": host_address}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": timestamp(start_time),
        "qosClass": (pod.get("status") or {}).get("qosClass", "BestEffort"),
        "conditions": conditions,
        "containerStatuses": [container.to_status() for container in containers],
    }
    if generation is not None:
        status_now["observedGeneration"] = generation
    if init_containers:
        status_now["initContainerStatuses"] = [container.to_status() for container in init_containers]
    return status_now
