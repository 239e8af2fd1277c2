"""Follows one rollout and its Events through the API server, as a person watching would, for the demo's story."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from promptrollout.api.names import GROUP, VERSION
from promptrollout.api.rollout import Decision, RolloutStatus
from promptrollout.cluster import Object

Condition = Callable[[RolloutStatus], bool]
Watch = Callable[..., AsyncIterator[tuple[str, Object]]]
"""`cluster.watch` of some client."""


class Follower:
    """The last known status of a rollout, every decision ever seen in it, and its last Event."""

    def __init__(self, watch: Watch, namespace: str, name: str) -> None:
        self._watch = watch
        self._namespace = namespace
        self._name = name
        self._changed = asyncio.Condition()
        self.status = RolloutStatus()
        self.decisions: dict[str, Decision] = {}
        """By id, oldest first: status.history keeps ten, a story may have more."""
        self.events: list[str] = []
        """`Reason: message`, in the order in which they arrived."""
        self._problem: Exception | None = None

    async def run(self) -> None:
        """Until cancelled. An error that ends it is raised in `until`."""
        base = f"/apis/{GROUP}/{VERSION}/namespaces/{self._namespace}"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_rollout(f"{base}/promptrollouts"))
                group.create_task(self._watch_events(f"/api/v1/namespaces/{self._namespace}/events"))
        except ExceptionGroup as failures:
            async with self._changed:
                self._problem = failures.exceptions[0]
                self._changed.notify_all()

    async def until(self, condition: Condition, timeout_seconds: float) -> bool:
        """Wait until the status meets the condition; False if it did not within the time.

        Raises what ended `run`, for example an unreadable status.
        """
        deadline = time.monotonic() + timeout_seconds
        async with self._changed:
            while not condition(self.status):
                if self._problem is not None:
                    raise self._problem
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    return condition(self.status)
        return True

    def record(self, revision: int) -> list[Decision]:
        """The decisions of a revision, oldest first."""
        return [decision for decision in self.decisions.values() if decision.revision == revision]

    async def _watch_rollout(self, path: str) -> None:
        async for kind, rollout in self._watch(path, field_selector=f"metadata.name={self._name}"):
            if kind in ("ADDED", "MODIFIED"):
                await self._take(RolloutStatus.model_validate(rollout.get("status") or {}))

    async def _take(self, status: RolloutStatus) -> None:
        async with self._changed:
            self.status = status
            for decision in reversed(status.history):
                self.decisions.setdefault(decision.id, decision)
            self._changed.notify_all()

    async def _watch_events(self, path: str) -> None:
        selector = f"involvedObject.kind=PromptRollout,involvedObject.name={self._name}"
        async for kind, event in self._watch(path, field_selector=selector):
            if kind == "ADDED":
                self.events.append(event_text(event))


def event_text(event: Object) -> str:
    """`Reason: message` on one line."""
    return f"{event.get('reason', '')}: {' '.join(str(event.get('message', '')).split())}"
