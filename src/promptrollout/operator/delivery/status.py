"""The status of a PromptDelivery: which sequence the ready pods have confirmed."""

from __future__ import annotations

from typing import Any

from promptrollout.api.conditions import ConditionReason, ConditionType
from promptrollout.engine.lifecycle.draft import timestamp
from promptrollout.operator.delivery.confirmations import Acknowledgement

Object = dict[str, Any]


def is_complete(item: Object, sequence: int) -> tuple[int, int] | None:
    """Acknowledged and total if the status says that every ready pod confirmed this very sequence."""
    status = item.get("status") or {}
    acknowledged, total = status.get("acknowledged", 0), status.get("total", 0)
    if status.get("sequence") != sequence or not 0 < total == acknowledged:
        return None
    return acknowledged, total


def delivery_status(item: Object, sequence: int, answer: Acknowledgement | None, now: float) -> Object | None:
    """The status to write; None if there is nothing new to say."""
    if answer is None:
        return None
    before = item.get("status") or {}
    old: Object = next((c for c in before.get("conditions") or [] if c.get("type") == ConditionType.ACKNOWLEDGED), {})
    message = f"{answer.acknowledged} of {answer.total} ready pods confirmed sequence {sequence}"
    if answer.laggards:
        message += "; waiting for " + ", ".join(f"{lag.pod} ({lag.reason})" for lag in answer.laggards[:5])
    truth = "True" if answer.complete else "False"
    condition = {
        "type": ConditionType.ACKNOWLEDGED.value,
        "status": truth,
        "reason": (ConditionReason.CONFIRMED if answer.complete else ConditionReason.WAITING).value,
        "message": message[:2048],
        "lastTransitionTime": old.get("lastTransitionTime") if old.get("status") == truth else timestamp(int(now)),
    }
    status = {
        "sequence": sequence,
        "acknowledged": answer.acknowledged,
        "total": answer.total,
        "conditions": [condition],
    }
    return None if status == before else status
