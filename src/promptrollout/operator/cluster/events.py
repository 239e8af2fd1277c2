"""Decisions as Kubernetes Events, with deterministic names: posting one again changes nothing."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from promptrollout.api.names import API_VERSION, GROUP
from promptrollout.api.rollout import Decision
from promptrollout.cluster import ApiException, ApiUnavailable
from promptrollout.engine.lifecycle.draft import timestamp
from promptrollout.operator.cluster.api import Api

logger = logging.getLogger(__name__)
Object = dict[str, Any]

REPLAY_SECONDS = 3600
"""After a restart, decisions of the last hour are posted again: the operator may have died before it posted them.
An API server keeps Events for an hour, so none of them appears twice."""
NOTE_BYTES = 1024
MAX_WAITING = 50
BACKOFF_SECONDS = (1.0, 300.0)


def recent(history: Iterable[Decision], now: float) -> list[Decision]:
    """Decisions of a history (newest first) that may not be posted yet, oldest first."""
    young = [d for d in history if now - datetime.fromisoformat(d.at).timestamp() < REPLAY_SECONDS]
    return young[::-1]


class Outbox:
    """The Events of one rollout that are still to be posted, oldest first.

    No reconcile waits for them: if Events are refused (a quota, a missing permission), they are posted later.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: list[Decision] = []
        self._failures = 0
        self._not_before = 0.0

    def add(self, decisions: Iterable[Decision]) -> None:
        """Posting a decision twice is harmless, so whatever may not have been posted yet belongs here."""
        known = {decision.id for decision in self._waiting}
        self._waiting += [decision for decision in decisions if decision.id not in known]
        del self._waiting[:-MAX_WAITING]

    @property
    def seconds_left(self) -> float | None:
        """How long until another try; None if all are posted."""
        return max(0.0, self._not_before - self._clock()) if self._waiting else None

    async def post(self, api: Api, rollout: Object, instance: str) -> None:
        """Post what is due."""
        while self.seconds_left == 0:
            decision = self._waiting[0]
            try:
                await _post(api, event_of(rollout, decision, instance))
            except (ApiException, ApiUnavailable) as error:
                seconds = min(BACKOFF_SECONDS[1], BACKOFF_SECONDS[0] * 2 ** min(self._failures, 16))
                self._failures += 1
                self._not_before = self._clock() + seconds
                name, reason = rollout["metadata"]["name"], decision.reason
                logger.warning("%s: the Event %s was not posted (%s); retry in %.0f s", name, reason, error, seconds)
                return
            self._waiting.pop(0)
            self._failures, self._not_before = 0, 0.0


async def _post(api: Api, event: Object) -> None:
    """An Event that exists is posted already. An invalid one is dropped: the status has the decision too."""
    try:
        await api.create("Event", event["metadata"]["namespace"], event)
    except ApiException as error:
        if error.status in (400, 413, 422):
            logger.error("the API server rejects the Event %s: %s", event["metadata"]["name"], error)
        elif error.status != 409:
            raise


async def announce(api: Api, kind: str, item: Object, conditions: Iterable[Object], instance: str) -> None:
    """An Event for each condition whose status differs from that in `item`, or that is False for another reason; a
    Warning if it is False. If it cannot be posted, it is logged: the condition says the same."""
    before = {c.get("type"): c for c in (item.get("status") or {}).get("conditions") or []}
    now = timestamp(int(time.time()))
    for condition in conditions:
        kind_of, new = condition["type"], condition["status"]
        old = before.get(kind_of) or {"status": "True"}  # a condition that starts as True is no news
        if old["status"] == new and (new == "True" or old.get("reason") == condition["reason"]):
            continue
        number = hashlib.sha256(f"{kind} {kind_of} {new} {condition['reason']} {now}".encode()).hexdigest()[:12]
        note = f"{kind_of} is {new}" + (f": {condition['message']}" if condition["message"] else "")
        severity = "Warning" if new == "False" else "Normal"
        event = _event(kind, item, number, now, severity, condition["reason"], "Reconcile", note, instance)
        try:
            await _post(api, event)
        except (ApiException, ApiUnavailable) as error:
            name = item["metadata"]["name"]
            logger.warning("%s %s: the Event %s was not posted (%s)", kind, name, condition["reason"], error)


def event_of(rollout: Object, decision: Decision, instance: str) -> Object:
    note, number = decision.message or decision.reason, decision.id
    return _event(
        "PromptRollout", rollout, number, decision.at, decision.type, decision.reason, "Decide", note, instance
    )


def _event(
    kind: str,
    item: Object,
    number: str,
    at: str,
    severity: str,
    reason: str,
    action: str,
    note: str,
    instance: str,
) -> Object:
    """`number`: makes its name, with the object's; the same again is the same Event."""
    metadata = item["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{number}", "namespace": metadata["namespace"]},
        "eventTime": at.replace("Z", ".000000Z"),
        "type": severity,
        "reason": reason,
        "action": action,
        "note": note.encode()[:NOTE_BYTES].decode(errors="ignore"),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "reportingController": f"{GROUP}/operator",
        "reportingInstance": instance[:128],
    }
