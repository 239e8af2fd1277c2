"""Gateway pods that end or hang, by the kubelet's word in their status; and whose turn it is to be tried alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from promptrollout.api.rollout import Clock, RolloutStatus
from promptrollout.engine.facts import PodFailure, Pods
from promptrollout.operator.pods import is_ready
from promptrollout.operator.store import Store

Object = dict[str, Any]

CALM_SECONDS = 30.0
"""Nothing is tried again before all pods have been ready for so long."""
SIGKILLED = 137
OF_THE_NODE = ("Unknown", "ContainerStatusUnknown", "NodeLost", "Evicted")
"""Why a container is gone with its node; no prompt does that."""


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
    ordered: bool = False
    """Killed from outside: what it was at work for then is no reason."""


def failure_of(pod: Object) -> Failure | None:
    """When the pod's container last ended by itself, or stopped answering its probes; None: it did neither.

    That the Ready condition alone is false, or that the pod is disrupted, is the node's doing.
    """
    status, metadata = pod.get("status") or {}, pod["metadata"]
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    if metadata.get("deletionTimestamp") or (conditions.get("DisruptionTarget") or {}).get("status") == "True":
        return None
    name, node = metadata["name"], (pod.get("spec") or {}).get("nodeName", "")
    found: list[Failure] = []
    for container in status.get("containerStatuses") or []:
        states = (container.get("lastState") or {}, container.get("state") or {})
        ends = [state["terminated"] for state in states if "terminated" in state]
        # a run that is not the first one began when the one before had ended
        first = container.get("restartCount", 0) < (2 if "terminated" in states[0] else 1)
        for ended in ends:
            if ended.get("reason") in OF_THE_NODE or not ended.get("finishedAt"):
                continue
            before = None if first or not ended.get("startedAt") else _seconds(ended["startedAt"])
            how = "out of memory" if ended.get("reason") == "OOMKilled" else f"exit code {ended.get('exitCode')}"
            killed = ended.get("exitCode") == SIGKILLED and ended.get("reason") != "OOMKilled"
            found.append(Failure(_seconds(ended["finishedAt"]), name, node, f"ended ({how})", before, ordered=killed))
        if (since := _hangs_since(container, conditions)) is not None:
            found.append(Failure(since, name, node, "answers no probes", ended=False))
    return max(found, key=lambda failure: failure.at, default=None)


def _hangs_since(container: Object, conditions: dict[str, Object]) -> float | None:
    """Since when a container that runs, and was ready, is not ready any more."""
    running, ready = (container.get("state") or {}).get("running"), conditions.get("ContainersReady") or {}
    if container.get("ready") or not running or ready.get("status") != "False" or not ready.get("lastTransitionTime"):
        return None
    since = _seconds(ready["lastTransitionTime"])
    # a container that has just started was never ready
    return since if since > _seconds(running["startedAt"]) else None


@dataclass(frozen=True, slots=True)
class _Canary:
    """What the others of the gateway have to know of a rollout's canary."""

    suspected_at: int | None
    on_trial: bool
    raised_at: int | None


class Canaries:
    """Canaries that meet users, or are kept from them, by gateway. The first knowledge is what their statuses say."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], dict[str, _Canary]] | None = None

    def note(self, namespace: str, gateway: str, rollout: str, status: RolloutStatus | None) -> None:
        """`status` None: it is gone."""
        for (space, _), names in self._all().items():
            if space == namespace:
                names.pop(rollout, None)
        if status is not None and (canary := _canary(status)) is not None:
            self._all().setdefault((namespace, gateway), {})[rollout] = canary

    def trial(self, namespace: str, gateway: str, now: int) -> str:
        """Whose turn it is: who is on trial, else who has waited longest. Empty: nobody is to be tried now."""
        names = self._all().get((namespace, gateway)) or {}
        waiting = [
            (not canary.on_trial, canary.suspected_at, name)
            for name, canary in names.items()
            if canary.suspected_at is not None and (canary.on_trial or canary.suspected_at <= now)
        ]
        return min(waiting)[2] if waiting else ""

    def raised_at(self, namespace: str, gateway: str) -> int | None:
        """When one of them last met its first, or more, users."""
        names = self._all().get((namespace, gateway)) or {}
        return max((each.raised_at for each in names.values() if each.raised_at is not None), default=None)

    def _all(self) -> dict[tuple[str, str], dict[str, _Canary]]:
        if self._known is None:
            self._known = {}
            for item in self._store.all("PromptRollout"):
                status = RolloutStatus(
                    stage=(item.get("status") or {}).get("stage"),
                    clock=Clock.model_validate((item.get("status") or {}).get("clock") or {}),
                )
                if (canary := _canary(status)) is not None:
                    metadata, gateway = item["metadata"], item["spec"]["gatewayRef"]["name"]
                    self._known.setdefault((metadata["namespace"], gateway), {})[metadata["name"]] = canary
        return self._known


def _canary(status: RolloutStatus) -> _Canary | None:
    clock = status.clock
    raised = clock.stage_since if status.stage in ("Stepping", "Promoting") else None
    if clock.suspected_at is None and raised is None:
        return None
    return _Canary(clock.suspected_at, clock.trial_at is not None, raised)


def of_gateway(
    pods: Collection[Object],
    canaries: Canaries,
    place: tuple[str, str],
    wall: float,
    source: float,
    at_work: Collection[str] = (),
) -> Pods:
    """What a rollout has to know of its gateway's pods. `wall`, `source`: the time, and that of the metrics source;
    `at_work`: names of the pods that died while they were at work for its canary."""
    failed = [failure for failure in map(failure_of, pods) if failure is not None]
    nodes = {(pod.get("spec") or {}).get("nodeName", "") for pod in pods}
    # where others hold out, what fails on one node alone is that node's fault
    blamed = [] if len(nodes) > 1 and len({failure.node for failure in failed}) == 1 else failed
    latest = max(blamed, key=lambda failure: failure.at, default=None)
    failure = None
    if latest is not None:
        times = sorted(at for each in blamed for at in (each.at, each.before) if at is not None)
        message = f"gateway pod {latest.pod} {latest.what}"
        named = [int(each.at + source - wall) for each in failed if each.pod in at_work and not each.ordered]
        ended = [int(each.at + source - wall) for each in blamed if each.ended]
        failure = PodFailure(
            tuple(int(at + source - wall) for at in times),
            message,
            max(ended, default=None),
            max(named, default=None),
        )
    calm = all(is_ready(pod) for pod in pods) and all(wall - each.at >= CALM_SECONDS for each in failed)
    return Pods(failure, calm, canaries.trial(*place, int(source)), canaries.raised_at(*place))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
