"""The follower keeps what a story needs, on a recorded watch; a story that ends otherwise says so."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from pydantic import ValidationError
from rich.console import Console

from promptrollout.cluster import Object
from promptrollout.sandbox.demo.follow import Follower, event_text
from promptrollout.sandbox.demo.quickstart import Quickstart, find_quickstart
from promptrollout.sandbox.demo.story import DemoFailure, Options, Story, is_rejected
from promptrollout.sandbox.sandbox import Sandbox
from tests.world import World, started, version


class Recorded:
    """Plays the same watches to whoever asks: rollouts by path, else events."""

    def __init__(self, statuses: list[Any], events: list[Object]) -> None:
        self.rollouts: list[Object] = [{"status": status} for status in statuses]
        self.events = events

    async def watch(self, path: str, *, field_selector: str) -> AsyncIterator[tuple[str, Object]]:
        for item in self.rollouts if path.endswith("/promptrollouts") else self.events:
            yield "ADDED", item


async def followed(statuses: list[Any], events: list[Object] | None = None) -> Follower:
    follower = Follower(Recorded(statuses, events or []).watch, "support", "app")
    await follower.run()
    return follower


def rolled_back() -> World:
    return started(error_rate={version("v2").digest: 0.5}).tick(3)


async def test_decisions_are_kept_when_the_status_has_forgotten_them() -> None:
    world = rolled_back()
    status = world.status.dump()
    forgetful = {**status, "history": status["history"][:1]}
    follower = await followed([status, forgetful])
    reasons = [decision.reason for decision in follower.record(world.status.revision)]
    assert reasons == ["RolloutStarted", "ObjectiveBreached", "RollbackCompleted"]


async def test_waiting_ends_with_the_condition_or_with_the_time() -> None:
    follower = await followed([rolled_back().status.dump()])
    assert await follower.until(lambda s: s.phase == "Degraded", timeout_seconds=0)
    assert not await follower.until(lambda s: s.phase == "Healthy", timeout_seconds=0)


async def test_a_status_that_is_none_is_raised_to_who_waits() -> None:
    follower = await followed([{"phase": "Splendid"}])
    with pytest.raises(ValidationError, match="Splendid"):
        await follower.until(lambda s: s.phase == "Healthy", timeout_seconds=5)


async def test_events_are_one_line_each() -> None:
    event = {"reason": "StepCompleted", "message": "step 1/2\n passed"}
    assert (await followed([], [event])).events == ["StepCompleted: step 1/2 passed"]
    assert event_text({}) == ": "


async def test_another_ending_fails_with_what_was_expected_and_what_is() -> None:
    follower = await followed([rolled_back().status.dump()])
    quickstart = Quickstart(find_quickstart())
    story = Story(Options(), cast(Sandbox, None), Console(quiet=True), [], quickstart, follower)
    assert is_rejected(follower.status, version("v2"))
    with pytest.raises(
        DemoFailure, match=r"expected: it ends Healthy\ninstead:  Degraded, step -, weight 0 %: .*rolled back"
    ):
        await story._expect("it ends Healthy", lambda s: s.phase == "Healthy", 0)
