"""What answers are, took and cost: each counter through the real application, streamed and not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptrollout.api import names
from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import (
    CANARY,
    DONE,
    Answered,
    Caller,
    Provider,
    Script,
    arm,
    chunk,
    completion,
    delivery,
    request,
    samples,
    says,
    streams,
    value,
)

ANSWERS = (names.METRIC_REFUSALS, names.METRIC_TRUNCATED, names.METRIC_EMPTY_ANSWERS)
REFUSED, TRUNCATED, EMPTY, NONE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)
CALL = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}
CACHED = {**USAGE, "prompt_tokens_details": {"cached_tokens": 60}}


def whole(*messages: dict[str, Any], reason: str = "stop", usage: Any = USAGE) -> Script:
    """A provider's answer with one choice per message."""
    choices = [{"index": i, "message": message, "finish_reason": reason} for i, message in enumerate(messages)]
    return says(body=completion(choices=choices, usage=usage))


def streamed(*messages: dict[str, Any], reason: str = "stop", usage: Any = USAGE) -> Script:
    """The same as a stream: roles first, as OpenAI does, then each message at once."""
    roles = [event(i, {"role": "assistant", "content": "", "refusal": None}) for i in range(len(messages))]
    deltas = [event(i, message) for i, message in enumerate(messages)]
    ends = [event(i, {}, reason) for i in range(len(messages))]
    return streams(*roles, *deltas, *ends, chunk(choices=[], usage=usage), DONE)


def event(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return chunk(choices=[{"index": index, "delta": delta, "finish_reason": finish_reason}])


async def ask(gateway: Gateway, provider: Provider, script: Script, stream: bool, **changes: Any) -> Answered:
    """One request to a rollout that has but its stable arm."""
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, **changes)))
    provider.script.append(script)
    return await Caller(gateway.serving_app).post(request(stream=stream))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("messages", "reason", "counts"),
    [
        ([{"content": "Hello"}], "stop", NONE),
        ([{"content": None, "refusal": "I cannot help with that."}], "stop", REFUSED),
        ([{"content": ""}], "content_filter", REFUSED),
        ([{"content": "Hel"}], "content_filter", REFUSED),
        ([{"content": "Hel"}], "length", TRUNCATED),
        ([{"content": None, "reasoning_content": "Hm"}], "length", TRUNCATED),
        ([{"content": ""}], "stop", EMPTY),
        ([{"content": " \n"}], "stop", EMPTY),
        ([{"content": None, "reasoning_content": "Hm"}], "stop", EMPTY),
        ([{"content": None, "tool_calls": CALL}], "tool_calls", NONE),
        ([{"content": None, "function_call": {"name": "f", "arguments": "{}"}}], "function_call", NONE),
        ([{"content": "Hello"}, {"content": ""}], "stop", EMPTY),
        ([{"content": "Hello"}, {"refusal": "No."}], "stop", REFUSED),
        ([], "stop", EMPTY),
    ],
)
async def test_what_a_complete_answer_is(
    gateway: Gateway,
    provider: Provider,
    messages: list[dict[str, Any]],
    reason: str,
    counts: tuple[int, int, int],
    stream: bool,
) -> None:
    script = (streamed if stream else whole)(*messages, reason=reason)
    assert (await ask(gateway, provider, script, stream)).status == 200
    found = await samples(gateway)
    assert tuple(value(found, metric) for metric in ANSWERS) == counts
    assert (value(found, names.METRIC_REQUESTS), value(found, names.METRIC_ERRORS)) == (1, 0)


@pytest.mark.parametrize(
    "script",
    [
        says(status=500, body={"error": {"message": "no"}}),
        streams(chunk("Hel"), cut=True),
        streams(event(0, {"refusal": "No"}), b'data: {"error": {"message": "overloaded"}}\n\n'),
    ],
)
async def test_what_failed_is_an_error_and_nothing_else(gateway: Gateway, provider: Provider, script: Script) -> None:
    await ask(gateway, provider, script, stream=True, provider_maxRetries=0)
    found = await samples(gateway)
    assert tuple(value(found, metric) for metric in ANSWERS) == NONE
    assert value(found, names.METRIC_ERRORS) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_cost_and_what_the_cache_saved(gateway: Gateway, provider: Provider, stream: bool) -> None:
    price = {
        "model": "gpt",
        "inputPerMillionUsd": "1",
        "cachedInputPerMillionUsd": "0.25",
        "outputPerMillionUsd": "4",
    }
    script = streamed if stream else whole
    for usage in (CACHED, USAGE, None):
        await ask(gateway, provider, script({"content": "Hello"}, usage=usage), stream, provider_price=price)
    found = await samples(gateway)
    counted = [value(found, name) for name in (names.METRIC_TOKENS_COUNT, names.METRIC_COST_COUNT)]
    assert counted == [2, 2], "without usage neither is known"
    assert value(found, names.METRIC_TOKENS_SUM) == 220
    assert value(found, names.METRIC_TOKENS_SUMSQ) == 2 * 110**2
    assert value(found, names.METRIC_INPUT_TOKENS) == 200
    assert value(found, names.METRIC_CACHED_INPUT_TOKENS) == 60
    assert value(found, names.METRIC_OUTPUT_TOKENS) == 20
    assert value(found, names.METRIC_COST_INPUT_SUM) == pytest.approx(200e-6)
    assert value(found, names.METRIC_COST_SAVED_SUM) == pytest.approx(60 * 0.75e-6)
    assert value(found, names.METRIC_COST_SUM) == pytest.approx(200e-6 - 60 * 0.75e-6 + 20 * 4e-6)


async def test_a_cache_that_costs_more_than_input_saves_nothing(gateway: Gateway, provider: Provider) -> None:
    price = {"model": "gpt", "inputPerMillionUsd": "1", "cachedInputPerMillionUsd": "2", "outputPerMillionUsd": "4"}
    await ask(gateway, provider, whole({"content": "Hello"}, usage=CACHED), False, provider_price=price)
    assert value(await samples(gateway), names.METRIC_COST_SAVED_SUM) == 0


async def test_the_first_token_is_more_than_a_role(gateway: Gateway, provider: Provider) -> None:
    role, token = asyncio.Event(), asyncio.Event()
    pieces = (event(0, {"role": "assistant", "content": ""}), role, chunk("Hel"), token, chunk("lo", "stop"))
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, role.set)
    loop.call_later(0.3, token.set)
    script = streams(*pieces, chunk(choices=[], usage=CACHED), DONE)
    await ask(gateway, provider, script, stream=True)
    found = await samples(gateway)
    first, last = value(found, names.METRIC_FIRST_TOKEN + "_sum"), value(found, names.METRIC_LATENCY + "_sum")
    assert 0.05 < first < last - 0.1
    assert value(found, names.METRIC_FIRST_TOKEN + "_count", cache="hit") == 1
    assert value(found, names.METRIC_FIRST_TOKEN + "_count", cache="miss") == 0


@pytest.mark.parametrize(("usage", "cache"), [(USAGE, "miss"), (CACHED, "hit"), (None, "miss")])
async def test_an_answer_as_a_whole_begins_with_its_first_byte(
    gateway: Gateway, provider: Provider, usage: Any, cache: str
) -> None:
    await ask(gateway, provider, whole({"content": "Hello"}, usage=usage), stream=False)
    found = await samples(gateway)
    assert value(found, names.METRIC_FIRST_TOKEN + "_count") == 1
    assert value(found, names.METRIC_FIRST_TOKEN + "_bucket", cache=cache, le="+Inf") == 1
    assert 0 < value(found, names.METRIC_FIRST_TOKEN + "_sum") <= value(found, names.METRIC_LATENCY + "_sum")


async def test_who_waited_in_vain_waited_at_least_so_long(gateway: Gateway, provider: Provider) -> None:
    never, gone = asyncio.Event(), asyncio.Event()
    rollout = delivery(stable=arm(url=provider.url, provider_timeouts={"firstByteSeconds": 1}, provider_maxRetries=0))
    await gateway.registry.apply("support", rollout)
    caller = Caller(gateway.serving_app)
    provider.script.extend([streams(never), streams(never), says(status=400, body={})])
    asyncio.get_running_loop().call_later(0.1, gone.set)
    await caller.post(request(stream=True), hang_up=gone)
    assert (await caller.post(request(stream=True))).status == 504
    assert (await caller.post(request(stream=True))).status == 400
    found = await samples(gateway)
    assert value(found, names.METRIC_FIRST_TOKEN + "_count") == 2, "a refusal of the request says nothing of the model"
    assert value(found, names.METRIC_FIRST_TOKEN + "_sum") >= 1.0


async def test_all_counts_for_the_arm_that_was_assigned(gateway: Gateway, provider: Provider) -> None:
    """The canary's prompt wants a variable that nobody sends: stable answers, and the canary is charged."""
    broken = arm(CANARY, provider.url, messages=[{"role": "system", "content": "{{ company }}"}])
    of_shards = [names.shard_metric(metric) for metric in (names.METRIC_REFUSALS, names.METRIC_TOKENS_COUNT)]
    rollout = delivery(stable=arm(url=provider.url), canary=broken, weight=100, shardMetrics=of_shards)
    await gateway.registry.apply("support", rollout)
    provider.script.append(streamed({"refusal": "No."}, usage=CACHED))
    await Caller(gateway.serving_app).post(request(stream=True))
    found = await samples(gateway)
    for metric in (
        names.METRIC_REFUSALS,
        names.METRIC_TOKENS_COUNT,
        names.METRIC_FIRST_TOKEN + "_count",
        *of_shards,
    ):
        assert [value(found, metric, variant=variant) for variant in ("canary", "stable")] == [1, 0], metric
