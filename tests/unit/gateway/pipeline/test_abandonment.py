"""Over real sockets: whose fault an answer is that its caller never got as a whole, and where it is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from promptrollout.api import names
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import (
    CANARY,
    DONE,
    SCHEMA,
    USAGE_CHUNK,
    Provider,
    arm,
    chunk,
    counted,
    delivery,
    request,
    samples,
    series,
    serving,
    streams,
    value,
)

ABANDONED = SIGNALS["AbandonmentRate"]
PATIENCE_SECONDS = 30
"""A watchdog; what is awaited takes milliseconds."""


@pytest.fixture
async def url(gateway: Gateway, provider: Provider) -> AsyncIterator[str]:
    """A gateway on a port, with everybody on the canary."""
    arms = {
        "stable": arm(url=provider.url, outputSchema=SCHEMA),
        "canary": arm(CANARY, provider.url, outputSchema=SCHEMA),
    }
    sharded = [counter.metric for _, counter in ABANDONED.shard_counters]
    await gateway.registry.apply("support", delivery(weight=100, shardMetrics=sharded, **arms))
    async with serving(gateway.serving_app) as root:
        yield f"{root}/v1/chat/completions"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def read_until(url: str, end: bytes) -> None:
    """Ask for a stream, and hang up after these bytes."""
    async with aiohttp.ClientSession() as client:
        answer = await client.post(url, json=request(stream=True))
        read = b""
        while end not in read:
            read += await answer.content.readany()
            assert not answer.content.at_eof() or end in read
        answer.close()


async def test_callers_who_give_up_on_a_version_are_a_rate_of_their_own_and_no_errors(
    gateway: Gateway, provider: Provider, url: str
) -> None:
    provider.script.extend([streams(chunk("Hel"), asyncio.Event())] * 3 + [streams(asyncio.Event())])
    for _ in range(3):
        await read_until(url, b"Hel")
    with pytest.raises(TimeoutError):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.2)) as client:
            await client.post(url, json=request(stream=True))
    await until(lambda: gateway.counters.in_flight == 0)
    assert counted(gateway) == {"canary": (4, 0)}
    found = await samples(gateway)
    for role, n in (("n", 4), ("total", 4)):
        assert value(found, dict(ABANDONED.counters)[role].metric, variant="canary") == n
        assert value(found, dict(ABANDONED.shard_counters)[role].metric, variant="canary") == n
    assert value(found, names.METRIC_ABANDONED, variant="stable") == 0


async def test_a_stream_that_the_provider_breaks_off_is_an_error_and_not_abandoned(
    gateway: Gateway, provider: Provider, url: str
) -> None:
    provider.script.append(streams(chunk("Hel"), cut=True))
    async with aiohttp.ClientSession() as client, client.post(url, json=request(stream=True)) as answer:
        assert b"stream_broken" in await answer.read()
    assert counted(gateway) == {"canary": (1, 1)}
    assert series(gateway, "canary").total.abandoned == 0


@pytest.mark.parametrize("last", [b"[DONE]", b'"stop"'])
async def test_who_hangs_up_with_the_whole_answer_did_not_abandon_it_and_it_is_judged(
    gateway: Gateway, provider: Provider, url: str, last: bytes
) -> None:
    """Many clients close at `[DONE]`, or at the finish reason. The provider may keep its end open for a while."""
    left = asyncio.Event()
    prose = [chunk("Hello"), chunk(finish_reason="stop")]
    rest = [USAGE_CHUNK, DONE]
    provider.script.append(streams(*prose, *([left, *rest] if last == b'"stop"' else [*rest, asyncio.Event()])))
    await read_until(url, last)
    left.set()
    await until(lambda: gateway.counters.in_flight == 0)
    canary = series(gateway, "canary")
    assert counted(gateway) == {"canary": (1, 0)}
    assert (canary.total.abandoned, canary.total.contract_checks, canary.total.contract_failures) == (0, 1, 1)
    assert canary.total.tokens_count == 1
