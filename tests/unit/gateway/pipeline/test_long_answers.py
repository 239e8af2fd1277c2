"""Answers of many megabytes: what a pod holds of them has a bound, and vectors go on as they come. Real HTTP."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
import pytest
from aiohttp import web

from promptrollout.gateway.http.exchange import Bodies
from promptrollout.gateway.pipeline.respond import MAX_READ_BYTES
from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import Caller, Provider, arm, completion, delivery, request, says, series, serving

USAGE = {"prompt_tokens": 8, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 3}}


def vectors(size: int) -> bytes:
    """An answer of at least so many bytes."""
    one = {"object": "embedding", "index": 0, "embedding": [0.0123456789] * 3072}
    count = size // len(orjson.dumps(one)) + 1
    return orjson.dumps({"object": "list", "data": [one] * count, "model": "m", "usage": USAGE})


@pytest.fixture
async def _stable(gateway: Gateway, provider: Provider) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, provider_maxRetries=0)))


@pytest.mark.usefixtures("_stable")
async def test_vectors_of_forty_megabytes_go_on_as_they_come(gateway: Gateway, provider: Provider) -> None:
    payload = vectors(40_000_000)
    provider.script.append(says(200, payload))
    largest = later = 0
    async with serving(gateway.serving_app) as url, aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/embeddings", json={"model": "support", "input": ["a"]}) as answer:
            seen = bytearray()
            async for piece in answer.content.iter_any():
                seen += piece
                held = gateway.serving_app._requests._answers.bytes_held
                largest = max(largest, held)
                later = max(later, held) if len(seen) > 20_000_000 else 0
    assert (answer.status, bytes(seen)) == (200, payload)
    assert largest < 2 * MAX_READ_BYTES
    assert later == 0, "what has gone on is not held"
    total = series(gateway, "stable-outside").total
    assert (total.requests, total.input_tokens, total.cached_input_tokens) == (1, 8, 3)


@pytest.mark.usefixtures("_stable")
async def test_vectors_that_break_off_do_not_look_whole(gateway: Gateway, provider: Provider) -> None:
    async def broken(incoming: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(incoming)
        await response.write(vectors(2_000_000)[:-500_000])
        assert incoming.transport is not None
        incoming.transport.close()
        return response

    provider.script.append(broken)
    async with serving(gateway.serving_app) as url, aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/embeddings", json={"model": "support", "input": ["a"]}) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
    assert series(gateway, "stable-outside").errors["stream_broken"] == 1


@pytest.mark.usefixtures("_stable")
async def test_short_answers_of_embeddings_are_read(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    provider.script.extend([says(200, b"<html>"), says(200, vectors(1000))])
    answered = [(await caller.post({"model": "support", "input": "a"}, "/v1/embeddings")).status for _ in range(2)]
    assert answered == [502, 200]


@pytest.mark.usefixtures("_stable")
async def test_answers_have_a_bound_together(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    gateway.serving_app._requests._answers = Bodies(max_bytes=200_000)
    whole, more = orjson.dumps(completion("x" * 150_000)), asyncio.Event()

    async def slow(incoming: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(incoming)
        await response.write(whole[:-1])
        await more.wait()
        await response.write(whole[-1:])
        return response

    provider.script.append(slow)
    first = asyncio.create_task(caller.post(request()))
    while gateway.serving_app._requests._answers.bytes_held < 150_000:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    provider.script.append(says(200, completion("x" * 100_000)))
    refused = await caller.post(request())
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
    assert (await caller.post(request())).status == 200, "a small one is always taken"
    more.set()
    assert (await first).status == 200
    assert gateway.serving_app._requests._answers.bytes_held == 0
    stable = series(gateway, "stable")
    assert (stable.total.requests, sum(stable.errors.values())) == (2, 0), "what the pod had no room for says nothing"
