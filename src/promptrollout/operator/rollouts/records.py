"""What is kept in memory of rollout objects between two reconciles."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from promptrollout.api.rollout import RolloutSpec, RolloutStatus
from promptrollout.operator.cluster.events import Outbox
from promptrollout.operator.cluster.queue import Key

logger = logging.getLogger(__name__)
Object = dict[str, Any]


@dataclass(slots=True)
class Record:
    """What is kept in memory of one rollout object, by uid."""

    planned: RolloutStatus
    written: RolloutStatus | None
    """The status as the API server has it."""
    version: str
    """The resource version that `written` was seen at."""
    checkpoint_at: float
    events: Outbox
    spec: RolloutSpec | None = None
    """The last one that could be read."""
    generation: int = -1
    """Of the spec that was read last."""
    unreadable: str = ""
    """Why the present one cannot be read."""
    cannot_compile: str = ""
    copies_due: float | None = None
    """How long until copies that were refused are tried again."""
    noted: str = ""


def read_status(key: Key, item: Object) -> RolloutStatus | None:
    content = item.get("status")
    if not content:
        return None
    try:
        return RolloutStatus.model_validate(content)
    except ValidationError as error:
        logger.error("%s: its status cannot be read and is rebuilt from the delivery: %s", key, error)
        return None


def without_ticks(status: RolloutStatus) -> RolloutStatus:
    return status.model_copy(update={"clock": status.clock.model_copy(update={"ticked_at": None})})
