"""metav1.Condition for the kinds that the engine does not describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptrollout.api.conditions import ConditionType
from promptrollout.engine.lifecycle.draft import timestamp

Object = dict[str, Any]


def conditions(item: Object, truths: Mapping[ConditionType, tuple[bool, str, str]], now: float) -> list[Object]:
    """By type: status, reason, message. The transition time moves only with the status."""
    before = {c.get("type"): c for c in (item.get("status") or {}).get("conditions") or []}
    found = []
    for kind, (truth, reason, message) in truths.items():
        status = "True" if truth else "False"
        old = before.get(kind, {})
        found.append(
            {
                "type": kind.value,
                "status": status,
                "reason": str(reason),
                "message": message[:2048],
                "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == status else timestamp(int(now)),
                "observedGeneration": item["metadata"].get("generation", 0),
            }
        )
    return found


def same_status(item: Object, status: Object) -> bool:
    """Does the object say this already?"""
    before = item.get("status") or {}
    return all(before.get(name) == value for name, value in status.items())
