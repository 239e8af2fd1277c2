"""After a rollout was deleted: its delivery is marked retired, and a week later deleted with its copies and keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from promptrollout.engine.lifecycle.draft import timestamp
from promptrollout.operator.cluster.api import Api
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery import copies
from promptrollout.operator.delivery.compile import body_of, read

logger = logging.getLogger(__name__)
Object = dict[str, Any]

KEEP_SECONDS = 7 * 86_400
"""A rollout that is recreated within this time finds what was served and rejected before."""


async def retire(key: Key, api: Api, store: Store, queue: WorkQueue, wall: Callable[[], float] = time.time) -> None:
    """Do what is due for a deleted rollout. Asks the API server first: a watch may lag behind."""
    delivery = store.get("PromptDelivery", key.namespace, key.name)
    owned = copies.owned(store, key.namespace, key.name)
    signing_key = store.get("PromptSigningKey", key.namespace, key.name)
    if delivery is None and not owned and signing_key is None:
        return
    item = await api.get("PromptRollout", key.namespace, key.name)
    if item is not None:
        store.put("PromptRollout", item)
        return
    spec = read(delivery)
    if delivery is not None and spec is not None and spec.retired_at is None:
        now = wall()
        retired = spec.model_copy(update={"retired_at": timestamp(int(now)), "sequence": spec.sequence + 1})
        body = body_of(key.namespace, key.name, retired, delivery)
        store.put("PromptDelivery", await api.apply("PromptDelivery", key.namespace, key.name, body), quiet=True)
        logger.info("%s was deleted: pods serve it for five more minutes", key)
        queue.add_after(key, KEEP_SECONDS)
        return
    gone_at = spec.retired_at if spec is not None else None
    since = _seconds(gone_at) if gone_at else max(_created(item) for item in (*owned, delivery, signing_key) if item)
    left = since + KEEP_SECONDS - wall()
    if left > 0:
        queue.add_after(key, left)
        return
    for copy in owned:
        await api.delete("PromptVersion", copy)
    if delivery is not None:
        await api.delete("PromptDelivery", delivery)
    if signing_key is not None:
        await api.delete("PromptSigningKey", signing_key)
    logger.info("%s was deleted a week ago: its copies and its delivery are deleted too", key)


def _created(item: Object) -> float:
    return _seconds(item["metadata"].get("creationTimestamp", "1970-01-01T00:00:00Z"))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
