"""What is kept in memory of rollout objects between two reconciles. After a restart it is read from their status."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from promptrollout.api.rollout import RolloutSpec, RolloutStatus
from promptrollout.engine.lifecycle.facts import Plan
from promptrollout.operator.cluster.events import Outbox, recent
from promptrollout.operator.cluster.queue import Key

logger = logging.getLogger(__name__)
Object = dict[str, Any]

CHECKPOINT_SECONDS = 300
CHECKPOINT_INTERVALS = 10


@dataclass(slots=True)
class Record:
    """Of one rollout object."""

    uid: str
    planned: RolloutStatus
    written: RolloutStatus | None
    """The status as the API server has it."""
    version: str
    """The resource version of the object with the status `written`."""
    checkpoint_at: float
    events: Outbox
    spec: RolloutSpec | None = None
    """The last one that could be read."""
    generation: int = -1
    """Of the spec that was read last."""
    unreadable: str = ""
    """Why the present spec cannot be read."""
    cannot_compile: str = ""
    """Why the last delivery could not be compiled."""
    copies_due: float | None = None
    """Seconds until copies that the API server refused are tried again."""
    noted: str = ""
    """The last note about the gateway, which is logged once."""


class Records:
    """One Record for each rollout object: another object of the same name starts with a new one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[Key, Record] = {}

    def is_new(self, key: Key, item: Object) -> bool:
        """Nothing is known of this very object."""
        record = self._records.get(key)
        return record is None or record.uid != item["metadata"]["uid"]

    def forget(self, key: Key) -> None:
        self._records.pop(key, None)

    def up_to_date(self, key: Key, item: Object) -> Record:
        """The object's record, with the status that the API server has.

        A status that is not the one we wrote was edited by hand, or written by another operator, and is used. One that
        cannot be read counts as lost.
        """
        version = item["metadata"]["resourceVersion"]
        record = self._records.get(key)
        if record is not None and record.version == version:
            return record
        fetched = read_status(key, item)
        if record is None:
            outbox = Outbox(self._clock)
            record = Record(
                item["metadata"]["uid"], fetched or RolloutStatus(), fetched, version, self._clock(), outbox
            )
            record.events.add(recent(record.planned.history, time.time()))
            self._records[key] = record
        elif fetched != record.written:
            logger.warning("%s: its status was changed by another client: going on from there", key)
            record.planned, record.written = fetched or RolloutStatus(), fetched
            # it may be our own write whose answer was lost: then its decisions have no Events yet
            record.events.add(recent(record.planned.history, time.time()))
        record.version = version
        return record


def must_write(record: Record, result: Plan, now: float) -> bool:
    """Whether the plan's status is written now, or waits for the next checkpoint. `now`: on the records' clock."""
    if record.written is not None and result.status == record.written:
        return False
    if record.written is None or result.urgent:
        return True
    status = result.status
    if status.stage in (None, "Idle"):
        return without_ticks(status) != without_ticks(record.written)
    seconds = CHECKPOINT_SECONDS
    if status.snapshot is not None:
        seconds = min(seconds, CHECKPOINT_INTERVALS * status.snapshot.interval_seconds)
    return now - record.checkpoint_at >= seconds


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
