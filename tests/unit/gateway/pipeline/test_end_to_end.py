"""Over real sockets: the gateway's two ports, the simulated model, callers who stay and callers who hang up."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.sandbox.model.behaviour import parse_behaviours
from promptrollout.sandbox.model.server import SimulatedModel
from tests.unit.gateway.kit import CANARY, SCHEMA, arm, counted, delivery, request, series, serving


class World:
    def __init__(self, gateway: Gateway, url: str, admin: str, model: str, client: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.admin = admin
        self.url = url
        self.model = model
        self.client = client

    async def deliver(self, sequence: int, weight: int, **canary: Any) -> None:
        made = arm(CANARY, f"{self.model}/v1", outputSchema=SCHEMA, **canary)
        stable = arm(url=f"{self.model}/v1", outputSchema=SCHEMA)
        await self.gateway.registry.apply("support", delivery(sequence, weight=weight, stable=stable, canary=made))

    async def ask(self, n: int, **changes: Any) -> tuple[int, str]:
        body = request(user=f"user-{n}", **changes)
        async with self.client.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            await answer.read()
            return answer.status, answer.headers.get("x-promptrollout-variant", "")


@pytest.fixture
async def world(gateway: Gateway) -> AsyncIterator[World]:
    rules = [
        {"name": "bad", "match": {"promptContains": "You are b."}, "contractBreakRate": 1.0, "latency": {"fixedMs": 0}},
        {"name": "good", "latency": {"fixedMs": 0}},
    ]
    model = SimulatedModel(seed=1, behaviours=parse_behaviours(rules))
    async with (
        serving(model) as model_url,
        serving(gateway.serving_app) as url,
        serving(gateway.admin_app) as admin,
        aiohttp.ClientSession() as client,
    ):
        yield World(gateway, url, admin, model_url, client)


async def test_a_canary_that_breaks_its_contract_is_seen_arm_by_arm(world: World) -> None:
    await world.deliver(1, weight=50)
    seen = Counter([await world.ask(n, stream=n % 2 == 0) for n in range(60)])
    stable, canary = series(world.gateway, "stable"), series(world.gateway, "canary")
    assert set(seen) == {(200, "stable"), (200, "canary")}
    assert (stable.total.requests, canary.total.requests) == (seen[200, "stable"], seen[200, "canary"])
    assert (stable.total.contract_checks, stable.total.contract_failures) == (stable.total.requests, 0)
    assert (canary.total.contract_checks, canary.total.contract_failures) == (
        canary.total.requests,
        canary.total.requests,
    )
    assert stable.total.cost_count == stable.total.requests
    assert min(stable.total.input_tokens, stable.output_tokens, canary.total.cost_sum_usd) > 0
    async with world.client.get(f"{world.admin}/metrics") as page:
        labels = f'variant="canary",model="gpt",process="{world.gateway.counters.process}"'
        assert f"{labels}}} {canary.total.requests}\n" in await page.text()


async def test_swapping_under_load_fails_no_request_and_moves_users_one_way(world: World) -> None:
    await world.deliver(1, weight=0)
    # a process that waits for its share of a core takes fewer at once: the others wait, and none is refused for that,
    # nor because a stall of a second or two lets each turn look that long
    world.gateway.serving_app.admission._queue_seconds = 3600.0
    on_canary: set[int] = set()
    sequence = 1
    for weight in (0, 20, 60, 100):
        sequence += 1
        answers = asyncio.gather(*(world.ask(n) for n in range(40)))
        await world.deliver(sequence, weight)
        assert {status for status, _ in await answers} == {200}
        now = {n for n in range(40) if (await world.ask(n))[1] == "canary"}
        assert on_canary <= now
        on_canary = now
    assert len(on_canary) == 40
    assert sum(requests for requests, _ in counted(world.gateway).values()) == 4 * 80


async def test_a_caller_who_hangs_up_on_a_real_socket_frees_the_pod(world: World) -> None:
    await world.deliver(1, weight=0)
    silent = [{"name": "silent", "timeoutRate": 1.0}]
    async with world.client.put(f"{world.model}/control/behaviours", json=silent) as done:
        assert done.status == 200
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.2):
            await world.ask(1)
    async with asyncio.timeout(5):
        while world.gateway.counters.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert world.gateway.counters.disconnects == 1
    assert counted(world.gateway) == {"stable": (1, 0)}
    assert series(world.gateway, "stable").total.abandoned == 1
    assert series(world.gateway, "stable").duration.seconds_sum >= 0.15


async def test_a_refused_body_of_ten_megabytes_is_answered_on_a_real_socket(world: World) -> None:
    await world.deliver(1, weight=0)
    body = io.BytesIO(orjson.dumps(request(filler="x" * 10_000_000)))
    async with world.client.post(f"{world.url}/v1/chat/completions", data=body) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")
    assert (await world.ask(1))[0] == 200
