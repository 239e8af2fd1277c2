"""What clients do to streams and to the gateway: hang up, read slowly, ask much, get much."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from tests.clients.kit import ABSENT, World, eventually
from tests.unit.gateway.kit import DONE, chunk, completion, counted, says, series, streams

openai = pytest.importorskip("openai", reason=ABSENT)

OPTIONS: Any = {"api_key": "unused", "timeout": 20, "max_retries": 0, "default_headers": {"x-user-id": "u1"}}
HELLO: Any = [{"role": "user", "content": "Hello"}]
CANCELLED_WITHIN_SECONDS = 30.0
"""A watchdog: the provider would never end by itself."""


async def endless(incoming: web.Request) -> web.StreamResponse:
    """A stream that ends only when its reader leaves."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(incoming)
    while True:
        await response.write(chunk("more "))
        await asyncio.sleep(0.005)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


def test_who_leaves_a_stream_stops_the_providers_work_at_once(world: World) -> None:
    world.script(endless)
    with openai.OpenAI(base_url=world.url, **OPTIONS) as client:
        stream = client.chat.completions.create(model="support", messages=HELLO, stream=True)
        assert next(iter(stream)).choices[0].delta.content == "more "
        stream.close()
        assert eventually(world.provider.cancelled.is_set) < CANCELLED_WITHIN_SECONDS
    assert series(world.gateway, "stable").total.abandoned == 1
    assert counted(world.gateway) == {"stable": (1, 0)}
    eventually(lambda: world.gateway.counters.in_flight == 0)


async def test_who_gives_up_waiting_stops_the_providers_work_at_once(world: World) -> None:
    world.script(silent)
    async with openai.AsyncOpenAI(base_url=world.url, **OPTIONS) as client:
        asked = asyncio.create_task(client.chat.completions.create(model="support", messages=HELLO))
        while not world.provider.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        asked.cancel()
        began = time.perf_counter()
        with pytest.raises(asyncio.CancelledError):
            await asked
        while not world.provider.cancelled.is_set():
            assert time.perf_counter() - began < CANCELLED_WITHIN_SECONDS
            await asyncio.sleep(0.001)
    eventually(lambda: world.gateway.counters.in_flight == 0)
    assert series(world.gateway, "stable").total.abandoned == 1


def test_an_sdk_whose_patience_ends_stops_the_providers_work(world: World) -> None:
    world.script(silent)
    with openai.OpenAI(base_url=world.url, **{**OPTIONS, "timeout": 0.2}) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="support", messages=HELLO)
        assert eventually(world.provider.cancelled.is_set) < CANCELLED_WITHIN_SECONDS


def test_an_answer_of_a_megabyte_as_a_whole_and_as_a_stream(world: World) -> None:
    text = "Zwölf Boxkämpfer jagen Viktor. " * 34_000
    assert len(text) > 1024 * 1024
    pieces = [chunk(text[start : start + 4000]) for start in range(0, len(text), 4000)]
    world.script(says(body=completion(text)), streams(*pieces, chunk("", "stop"), DONE))
    with openai.OpenAI(base_url=world.url, **OPTIONS) as client:
        whole = client.chat.completions.create(model="support", messages=HELLO)
        assert whole.choices[0].message.content == text
        stream = client.chat.completions.create(model="support", messages=HELLO, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in stream) == text
    assert counted(world.gateway) == {"stable": (2, 0)}


def test_a_prompt_of_two_hundred_thousand_tokens(world: World) -> None:
    world.serve({"answer": "Read."})
    text = "word " * 200_000
    with openai.OpenAI(base_url=world.url, **OPTIONS) as client:
        answer = client.chat.completions.create(model="support", messages=[{"role": "user", "content": text}])
    assert answer.choices[0].message.content == "Read."
    assert answer.usage.prompt_tokens >= 200_000
    assert series(world.gateway, "stable").total.input_tokens == answer.usage.prompt_tokens


async def test_a_slow_reader_holds_up_nobody_and_its_slowness_is_not_the_versions(world: World) -> None:
    big = chunk("x" * 60_000)
    world.script(streams(*[big] * 200, chunk("", "stop"), DONE), says())
    async with openai.AsyncOpenAI(base_url=world.url, **OPTIONS) as client:
        began = time.perf_counter()
        slow = await client.chat.completions.create(model="support", messages=HELLO, stream=True)
        read = aiter(slow)
        await anext(read)
        await asyncio.sleep(1.5)  # 12 MB are on their way, and the sockets are full
        # would be held up for ever: nobody reads in the meantime
        await asyncio.wait_for(client.chat.completions.create(model="support", messages=HELLO), 60)
        assert sum([len(one.choices[0].delta.content or "") async for one in read]) == 199 * 60_000
        all_of_it = time.perf_counter() - began
    eventually(lambda: counted(world.gateway) == {"stable": (2, 0)})
    seconds = series(world.gateway, "stable").duration.seconds_sum
    assert seconds < all_of_it - 0.5, "of this, a second and a half were the reader's"


async def test_many_streams_at_once_are_kept_apart(world: World) -> None:
    world.serve({"answer": "The answer to everybody."})

    async def one(client: Any, n: int) -> str:
        user = {"x-user-id": f"u{n}"}
        stream = await client.chat.completions.create(
            model="support", messages=[{"role": "user", "content": str(n)}], stream=True, extra_headers=user
        )
        return "".join([found.choices[0].delta.content or "" async for found in stream])

    async with openai.AsyncOpenAI(base_url=world.url, **OPTIONS) as client:
        texts = await asyncio.gather(*(one(client, n) for n in range(50)))
    assert set(texts) == {"The answer to everybody."}
    assert counted(world.gateway) == {"stable": (50, 0)}
