"""Keep a rollout's copies of versions on the API server: made before use, brought back, marked, collected."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from promptrollout.api.delivery import DeliverySpec
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.rollout import RolloutStatus
from promptrollout.cluster import ApiException
from promptrollout.operator import copies
from promptrollout.operator.cluster_api import Api, Stale
from promptrollout.operator.delivery import prompt_in
from promptrollout.operator.queue import Key
from promptrollout.operator.store import Store

logger = logging.getLogger(__name__)
Object = dict[str, Any]


class OwnedCopies:
    """Methods raise ApiException, ApiUnavailable and Stale."""

    def __init__(self, api: Api, store: Store) -> None:
        self._api = api
        self._store = store
        self._prompts: dict[tuple[str, str], PromptSpec] = {}

    async def restore(self, key: Key, status: RolloutStatus, delivery: DeliverySpec | None) -> None:
        """Copies in use that someone deleted come back, from memory or from the delivery."""
        for version in (status.stable, status.canary, status.previous):
            if version is None:
                continue
            place = (key.namespace, version.version)
            item = self._store.get("PromptVersion", *place)
            if item is not None:
                if place not in self._prompts and (prompt := copies.prompt_of(item)) is not None:
                    self._prompts[place] = prompt
                continue
            prompt = self._prompts.get(place) or prompt_in(delivery, version)
            if prompt is not None:
                logger.warning("%s: the copy %s was deleted and is made again", key, version.version)
                await self.create(key, (prompt,))

    async def create(self, key: Key, prompts: Collection[PromptSpec]) -> None:
        for prompt in prompts:
            body = copies.copy_of(key.namespace, key.name, prompt)
            try:
                item = await self._api.create("PromptVersion", key.namespace, body)
            except ApiException as error:
                if error.status != 409:
                    raise
                found = await self._api.get("PromptVersion", key.namespace, body["metadata"]["name"])
                if found is not None:
                    self._store.put("PromptVersion", found)
                raise Stale("the copy exists already") from error
            # its own status is still to be written
            self._store.put("PromptVersion", item)

    async def mark_promoted(self, key: Key, status: RolloutStatus) -> None:
        if status.stable is None or status.stage not in ("Idle", "Baking") or status.revision == 0:
            return
        owned = copies.owned(self._store, key.namespace, key.name)
        item = next((item for item in owned if item["metadata"]["name"] == status.stable.version), None)
        highest = max((copies.mark_of(item) for item in owned), default=0)
        if item is None or (copies.mark_of(item) == highest and highest > 0):
            return
        mark = {"annotations": {copies.ANNOTATION_PROMOTED: str(max(highest + 1, status.revision))}}
        answer = await self._api.merge("PromptVersion", key.namespace, item["metadata"]["name"], {"metadata": mark})
        self._store.put("PromptVersion", answer, quiet=True)

    async def collect(self, key: Key, limit: int, needed: set[str]) -> None:
        """Delete the oldest beyond `limit`, and none that is `needed`."""
        owned = copies.owned(self._store, key.namespace, key.name)
        for item in copies.superfluous(owned, needed, limit) if len(owned) > limit else ():
            await self._api.delete("PromptVersion", item)
            self._prompts.pop((key.namespace, item["metadata"]["name"]), None)
