"""Decisions as Kubernetes Events: one each, under a name that a repeated post finds taken."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from promptrollout.api.names import API_VERSION, GROUP
from promptrollout.api.rollout import Decision
from promptrollout.cluster import ApiException
from promptrollout.operator.cluster_api import Api

Object = dict[str, Any]

REPLAY_SECONDS = 3600
"""After a restart, decisions of the last hour are posted again: the operator may have died before it posted them.
An API server keeps Events for an hour, so none of them appears twice."""
NOTE_BYTES = 1024


def recent(history: Iterable[Decision], now: float) -> list[Decision]:
    """Of a status's history (newest first) what may have to be posted, oldest first."""
    young = [d for d in history if now - datetime.fromisoformat(d.at).timestamp() < REPLAY_SECONDS]
    return young[::-1]


async def post_decision(api: Api, rollout: Object, decision: Decision, instance: str) -> None:
    """Posted before is fine."""
    try:
        await api.create("Event", rollout["metadata"]["namespace"], event_of(rollout, decision, instance))
    except ApiException as error:
        if error.status != 409:
            raise


def event_of(rollout: Object, decision: Decision, instance: str) -> Object:
    metadata = rollout["metadata"]
    note = decision.message.encode()[:NOTE_BYTES].decode(errors="ignore") or decision.reason
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{decision.id}", "namespace": metadata["namespace"]},
        "eventTime": decision.at.replace("Z", ".000000Z"),
        "type": decision.type,
        "reason": decision.reason,
        "action": "Decide",
        "note": note,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": "PromptRollout",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "reportingController": f"{GROUP}/operator",
        "reportingInstance": instance[:128],
    }
