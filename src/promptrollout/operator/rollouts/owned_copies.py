"""A rollout's copies of versions on the API server: created before use, restored, marked, deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from promptrollout.api.delivery import DeliverySpec
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.rollout import RolloutStatus
from promptrollout.cluster import ApiException, namespace_is_terminating
from promptrollout.engine.lifecycle.reasons import Problem, SpecProblem
from promptrollout.operator.cluster.api import Api, Stale
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery import copies
from promptrollout.operator.delivery.compile import prompt_in

logger = logging.getLogger(__name__)
Object = dict[str, Any]


BACKOFF_SECONDS = (1.0, 60.0)


@dataclass(slots=True)
class _Refusal:
    """Of one copy, by the API server: a quota, a policy, a webhook."""

    problem: SpecProblem
    failures: int
    not_before: float


class OwnedCopies:
    """Methods raise ApiException, ApiUnavailable and Stale.

    A copy that the API server refuses is a problem of the rollout, and what runs is still watched. It is tried again at
    growing intervals.
    """

    def __init__(self, api: Api, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._store = store
        self._clock = clock
        self._prompts: dict[Key, dict[str, PromptSpec]] = {}
        self._refused: dict[Key, dict[str, _Refusal]] = {}

    def forget(self, key: Key) -> None:
        """The rollout is gone."""
        self._refused.pop(key, None)
        self._prompts.pop(key, None)

    def still_refused(self, key: Key, names: Collection[str]) -> float | None:
        """Forget refusals of all other copies. Seconds until one of these is tried again; None if none was refused."""
        refused = {name: refusal for name, refusal in self._refused.pop(key, {}).items() if name in names}
        if not refused:
            return None
        self._refused[key] = refused
        return max(0.0, min(refusal.not_before for refusal in refused.values()) - self._clock())

    async def restore(self, key: Key, status: RolloutStatus, delivery: DeliverySpec | None) -> dict[str, SpecProblem]:
        """Recreate copies in use that were deleted, from memory or from the delivery. Returns what is refused, and why,
        by name."""
        refused: dict[str, SpecProblem] = {}
        for version in (status.stable, status.canary, status.previous):
            if version is None:
                continue
            known = self._prompts.setdefault(key, {})
            item = self._store.get("PromptVersion", key.namespace, version.version)
            if item is not None:
                if version.version not in known and (prompt := copies.prompt_of(item)) is not None:
                    known[version.version] = prompt
                continue
            prompt = known.get(version.version) or prompt_in(delivery, version)
            if prompt is not None:
                logger.info("%s: the copy %s was deleted, recreating it", key, version.version)
                refused |= await self.create(key, (prompt,))
        return refused

    async def create(self, key: Key, prompts: Collection[PromptSpec]) -> dict[str, SpecProblem]:
        """Returns what is refused, and why, by name."""
        refused: dict[str, SpecProblem] = {}
        for prompt in prompts:
            body = copies.copy_of(key.namespace, key.name, prompt)
            name = body["metadata"]["name"]
            before = self._refused.get(key, {}).get(name)
            if before is not None and self._clock() < before.not_before:
                refused[name] = before.problem
                continue
            try:
                item = await self._api.create("PromptVersion", key.namespace, body)
            except ApiException as error:
                if error.status != 409:
                    refused[name] = self._refusal(key, name, error)
                    continue
                found = await self._api.get("PromptVersion", key.namespace, name)
                if found is not None:
                    self._store.put("PromptVersion", found)
                raise Stale("the copy exists already") from error
            # its own status is still to be written
            self._store.put("PromptVersion", item)
        return refused

    def _refusal(self, key: Key, name: str, error: ApiException) -> SpecProblem:
        """Keep it for the next try. Raises `error` if no later try can succeed."""
        if error.status == 401 or namespace_is_terminating(error):
            raise error
        known = self._refused.setdefault(key, {})
        failures = known[name].failures if name in known else 0
        seconds = min(BACKOFF_SECONDS[1], BACKOFF_SECONDS[0] * 2 ** min(failures, 16))
        reason = str(error.reason)[:512]
        text = (
            f"PromptVersion {name}, the operator's copy, cannot be created: HTTP {error.status}: {reason}. "
            "Change the quota, policy or webhook that refuses it"
        )
        problem = Problem("", text)
        known[name] = _Refusal(problem, failures + 1, self._clock() + seconds)
        logger.warning("%s: %s; retry in %.0f s", key, text, seconds)
        return problem

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
            self._prompts.get(key, {}).pop(item["metadata"]["name"], None)
