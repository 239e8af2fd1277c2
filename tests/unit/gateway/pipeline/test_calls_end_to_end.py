"""Over real sockets, against the simulated model: callers who hang up, a provider that flaps, one that is down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from promptrollout.api import names
from promptrollout.gateway.process import Gateway
from promptrollout.sandbox.model.behaviour import parse_behaviours
from promptrollout.sandbox.model.server import SimulatedModel
from tests.unit.gateway.kit import Provider, arm, chunk, counted, delivery, request, series, streams
from tests.unit.gateway.pipeline.test_end_to_end import serving

DOWN = [{"name": "down", "errorKinds": [{"status": 503, "share": 1.0}]}]

ERRORS = [{"name": "errors", "errorRate": 1.0, "errorStatus": 500}]


class World:
    """A gateway with two models behind it."""

    def __init__(self, gateway: Gateway, url: str, models: list[str], client: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.url = url
        self.models = models
        self.client = client

    async def serve(self, fallback: bool, **provider: Any) -> None:
        stable = arm(url=f"{self.models[0]}/v1", **{f"provider_{name}": value for name, value in provider.items()})
        if fallback:
            spare = {"name": "spare", "baseURL": f"{self.models[1]}/v1"}
            stable["fallbacks"] = [{"model": "big", "provider": spare}]
        await self.gateway.registry.apply("support", delivery(stable=stable))

    async def behave(self, *rules: dict[str, Any]) -> None:
        async with self.client.put(f"{self.models[0]}/control/behaviours", json=list(rules)) as done:
            assert done.status == 200, await done.text()

    async def stats(self, model: int = 0) -> Any:
        async with self.client.get(f"{self.models[model]}/control/stats") as answer:
            return await answer.json()

    async def ask(self, n: int, **changes: Any) -> tuple[int, str | None]:
        body = request(user=f"user-{n}", **changes)
        async with self.client.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            await answer.read()
            return answer.status, answer.headers.get(names.HEADER_PROVIDER)

    async def begin(self) -> aiohttp.ClientResponse:
        """A stream whose first pieces are here."""
        answer = await self.client.post(f"{self.url}/v1/chat/completions", json=request(stream=True))
        await answer.content.readany()
        return answer


@pytest.fixture
async def world(gateway: Gateway) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        models = [
            await stack.enter_async_context(serving(SimulatedModel(seed, parse_behaviours([])))) for seed in (1, 2)
        ]
        url = await stack.enter_async_context(serving(gateway.serving_app))
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield World(gateway, url, models, client)


@pytest.mark.parametrize("begun", [False, True], ids=["silence", "in mid-stream"])
async def test_a_caller_who_hangs_up_stops_the_providers_work_at_once(
    world: World, provider: Provider, begun: bool
) -> None:
    world.models[0] = provider.url.removesuffix("/v1")
    await world.serve(fallback=True)
    provider.script.append(streams(*([chunk("Hello")] if begun else []), asyncio.Event()))
    call = asyncio.create_task(world.begin())
    if begun:
        answer = await call
    async with asyncio.timeout(30):
        while not provider.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    if begun:
        answer.close()
    else:
        call.cancel()
    async with asyncio.timeout(30):  # a watchdog: the provider would never end by itself
        await provider.cancelled.wait()
    assert (await world.stats(1))["requests"] == 0, "nobody is left for a fallback to answer"
    async with asyncio.timeout(10):
        while series(world.gateway, "stable").total.abandoned < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert counted(world.gateway) == {"stable": (1, 0)}


async def test_while_a_provider_flaps_every_request_is_answered_and_every_failure_counted(world: World) -> None:
    await world.serve(fallback=True)
    statuses: Counter[tuple[int, str | None]] = Counter()
    flapping = True

    async def flap() -> None:
        while flapping:
            for rules in ([], DOWN, ERRORS):
                await world.behave(*rules)
                await asyncio.sleep(0.15)

    async def caller(number: int) -> None:
        for n in range(40):
            statuses[await world.ask(1000 * number + n, stream=n % 2 == 0)] += 1

    flaps = asyncio.create_task(flap())
    await asyncio.gather(*(caller(number) for number in range(10)))
    flapping = False
    await flaps
    assert {status for status, _ in statuses} == {200}
    spare = statuses[200, "spare"]
    assert spare > 0
    assert statuses[200, "openai"] > 0
    assert counted(world.gateway) == {"stable": (400, spare)}
    assert series(world.gateway, "stable").total.fallbacks == spare


async def test_an_outage_multiplies_no_load_and_ends_by_itself(world: World) -> None:
    await world.serve(fallback=True, maxRetries=5)
    await world.behave(*DOWN)
    for n in range(200):
        assert await world.ask(n) == (200, "spare")
    assert (await world.stats())["requests"] < 60, "the circuit opened, and the budget is used up"
    assert (await world.stats(1))["requests"] == 200
    assert series(world.gateway, "stable").errors["circuit_open"] > 150
    (report,) = world.gateway.reporter.report().rollouts
    assert report.circuits == {"stable/openai/gpt": "Open", "stable/spare/big": "Closed"}
    await world.behave()
    async with asyncio.timeout(20):
        while await world.ask(1) != (200, "openai"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert [await world.ask(n) for n in range(20)] == [(200, "openai")] * 20


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_fallback_may_speak_another_protocol(world: World, stream: bool) -> None:
    stable = arm(url=f"{world.models[0]}/v1", provider_maxRetries=0)
    spare = {"name": "spare", "type": "Anthropic", "baseURL": f"{world.models[1]}/v1"}
    stable["fallbacks"] = [{"model": "claude", "provider": spare}]
    await world.gateway.registry.apply("support", delivery(stable=stable))
    await world.behave(*DOWN)
    async with world.client.post(f"{world.url}/v1/chat/completions", json=request(stream=stream)) as answer:
        body = await answer.text()
        assert (answer.status, answer.headers[names.HEADER_PROVIDER]) == (200, "spare"), body
    assert ("chat.completion.chunk" if stream else '"chat.completion"') in body
    async with world.client.get(f"{world.models[1]}/control/requests") as kept:
        (sent,) = await kept.json()
    assert (sent["body"]["model"], sent["headers"]["anthropic-version"]) == ("claude", "2023-06-01")
    counters = series(world.gateway, "stable")
    assert (counters.total.fallbacks, counters.total.errors, counters.usage_missing) == (1, 1, 0)


async def test_embeddings_of_another_model_are_no_fallback(world: World) -> None:
    await world.serve(fallback=True, maxRetries=0)
    await world.behave(*DOWN)
    async with world.client.post(f"{world.url}/v1/embeddings", json={"model": "support", "input": "a"}) as answer:
        assert answer.status == 503
    assert (await world.stats(1))["requests"] == 0
