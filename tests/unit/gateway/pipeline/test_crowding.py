"""A canary whose provider stays silent does not take the pod from the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.pipeline.crowding import crowds_out
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.app import Limits
from promptrollout.llm.providers.circuit import Circuit
from tests.unit.gateway.kit import CANARY, LOOPBACK, Answered, Caller, Provider, arm, delivery, request, says, series

PLACES = 16


@asynccontextmanager
async def crowded(tmp_path: Path, stable: str, canary: str) -> AsyncIterator[tuple[Gateway, Caller]]:
    """A gateway with two rollouts, one of them with a canary for half of its users."""
    limits = Limits(max_concurrent_requests=PLACES, max_queued_requests=0)
    gateway = Gateway(Settings("default", "ns", "pod-1", networks=LOOPBACK, state_dir=tmp_path, limits=limits))
    arms = {"stable": arm(url=stable), "canary": arm(CANARY, canary, provider_name="quiet", model="quiet")}
    await gateway.registry.apply("support", delivery(weight=50, **arms))
    await gateway.registry.apply("other", delivery(rolloutUID="uid-2", stable=arm(url=stable)))
    try:
        yield gateway, Caller(gateway.serving_app)
    finally:
        await gateway.serving_app.close()
        await gateway.providers.close()


async def rush(gateway: Gateway, caller: Caller) -> tuple[list[asyncio.Task[Answered]], list[Answered]]:
    """Sixty users, one after the other: who waits for ever, and what the others get."""
    waiting, answered = [], []
    for number in range(60):
        task = asyncio.create_task(caller.post(request(user=f"user-{number}")))
        canary = gateway.registry.find("support").canary  # type: ignore[union-attr]
        assert canary is not None
        before = canary.circuit.in_flight
        async with asyncio.timeout(5):
            while not task.done() and canary.circuit.in_flight == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        if task.done():
            answered.append(task.result())
        else:
            waiting.append(task)
    return waiting, answered


async def end(waiting: list[asyncio.Task[Answered]]) -> None:
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def silent(provider: Provider) -> None:
    """Whoever asks it for the canary's model waits for ever."""

    async def answer(incoming: object) -> object:
        if provider.requests[-1]["model"] == "quiet":
            await asyncio.Event().wait()
        return await says()(incoming)  # type: ignore[arg-type]

    provider.script.extend([answer] * 1_000)  # type: ignore[list-item]


async def test_a_canary_whose_own_provider_is_silent_leaves_places_to_all_others(
    tmp_path: Path, provider: Provider
) -> None:
    """Nobody knows yet whether it is an outage: stable answers, as in one."""
    async with Provider() as quiet:
        silent(quiet)
        async with crowded(tmp_path, provider.url, quiet.url) as (gateway, caller):
            waiting, answered = await rush(gateway, caller)
            assert len(waiting) == PLACES * 3 // 4 - 1
            assert {each.status for each in answered} == {200}
            assert {each.headers["x-promptrollout-variant"] for each in answered} == {"stable"}
            assert (await caller.post(request(model="other"))).status == 200
            assert sum(gateway.counters.diverted.values()) > 5
            assert series(gateway, "canary").total.errors == 0
            await end(waiting)


async def test_a_canary_whose_model_is_silent_where_stables_answers_fails_for_its_users_alone(
    tmp_path: Path, provider: Provider
) -> None:
    silent(provider)
    async with crowded(tmp_path, provider.url, provider.url) as (gateway, caller):
        waiting, answered = await rush(gateway, caller)
        assert len(waiting) == PLACES * 3 // 4 - 1
        refused = [each for each in answered if each.status != 200]
        assert len(refused) > 5
        for each in refused:
            assert (each.status, each.headers["x-promptrollout-variant"]) == (503, "canary")
            assert (each.error["code"], each.headers["retry-after"]) == ("provider_circuit_open", "1")
        assert series(gateway, "canary").total.errors == len(refused), "the failure is the canary's"
        assert (await caller.post(request(model="other"))).status == 200
        assert gateway.counters.rejected["overloaded"] == 0
        await end(waiting)


@pytest.mark.parametrize(
    ("canary", "stable", "in_flight", "crowding"),
    [
        ((500, 500), (20, 4_500), 800, True),
        ((499, 500), (20, 4_500), 800, False),  # less than half
        ((500, 500), (20, 4_500), 700, False),  # there is room
        ((800, 9_000), (80, 1_000), 900, False),  # weight 90, and the pod is full
        ((800, 9_000), (5, 1_000), 900, True),
        ((600, 6_000), (300, 3_000), 900, False),  # one caller has most requests
        ((800, 500), (0, 0), 900, False),  # nothing to compare with
    ],
)
def test_whose_places_they_are(
    canary: tuple[int, int], stable: tuple[int, int], in_flight: int, crowding: bool
) -> None:
    counters = Counters()
    counters.in_flight = in_flight
    circuits = []
    for waiting, came in (canary, stable):
        circuit = Circuit(clock=lambda: 0.0)
        circuit.in_flight = waiting
        for _ in range(came):
            circuit.record_request()
        circuits.append(circuit)
    assert crowds_out(*circuits, counters, 1_000) is crowding
