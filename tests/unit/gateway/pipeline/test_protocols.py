"""Each protocol of callers with each kind of provider, over real sockets against the simulated model."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.sandbox.model.server import SimulatedModel
from tests.unit.gateway.kit import STABLE, arm, delivery, series
from tests.unit.gateway.pipeline.test_end_to_end import serving

TEXT = "Grüße aus 東京 🗼, in several pieces."
PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}}
ARGUMENTS = {"order": 7, "note": "größer"}

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
COMBINATIONS = [
    ("chat", "OpenAI"),
    ("responses", "OpenAI"),
    ("messages", "OpenAI"),
    ("chat", "Anthropic"),
    ("responses", "Anthropic"),
    ("messages", "Anthropic"),
]


@dataclass
class Said:
    """An answer in any protocol, reduced to what a caller reads of it."""

    text: str
    calls: list[tuple[str, Any]]
    ended: str
    usage: tuple[int, int, int]
    """Input that was not cached, cached input, output."""


def ask(protocol: str, *, stream: bool = False, tools: bool = False, **changes: Any) -> dict[str, Any]:
    function = {"name": "look_up", "description": "d", "parameters": PARAMETERS}
    body: dict[str, Any] = {"model": "support"} | ({"stream": True} if stream else {})
    if protocol == "chat":
        body |= {"user": "u1", "messages": [{"role": "user", "content": "Hello"}]}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        body |= {"tools": [{"type": "function", "function": function}]} if tools else {}
    elif protocol == "responses":
        body |= {"user": "u1", "input": "Hello"}
        body |= {"tools": [{"type": "function", **function}]} if tools else {}
    else:
        body |= {"metadata": {"user_id": "u1"}, "max_tokens": 500, "messages": [{"role": "user", "content": "Hello"}]}
        body |= {"tools": [{"name": "look_up", "description": "d", "input_schema": PARAMETERS}]} if tools else {}
    return body | changes


def read(protocol: str, body: bytes, *, stream: bool) -> Said:
    return (STREAMED if stream else WHOLE)[protocol](body)


def _chat(body: bytes) -> Said:
    found = orjson.loads(body)
    choice, usage = found["choices"][0], found["usage"]
    calls = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Said(
        choice["message"]["content"] or "",
        [(call["name"], orjson.loads(call["arguments"])) for call in calls],
        choice["finish_reason"],
        (usage["prompt_tokens"] - cached, cached, usage["completion_tokens"]),
    )


def _chat_stream(body: bytes) -> Said:
    *lines, done = [line for line in body.split(b"\n\n") if line and not line.startswith(b":")]
    assert done == b"data: [DONE]"
    chunks = [orjson.loads(line.removeprefix(b"data: ")) for line in lines]
    usage = chunks.pop()["usage"]
    text, ended, calls = "", "", list[list[str]]()
    for chunk in chunks:
        (choice,) = chunk["choices"]
        text += choice["delta"].get("content") or ""
        ended = choice["finish_reason"] or ended
        for call in choice["delta"].get("tool_calls") or ():
            if call["index"] == len(calls):
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Said(
        text,
        [(name, orjson.loads(arguments)) for name, arguments in calls],
        ended,
        (usage["prompt_tokens"] - cached, cached, usage["completion_tokens"]),
    )


def _response(found: dict[str, Any]) -> Said:
    text = "".join(part["text"] for item in found["output"] if item["type"] == "message" for part in item["content"])
    calls = [
        (item["name"], orjson.loads(item["arguments"])) for item in found["output"] if item["type"] == "function_call"
    ]
    usage = found["usage"]
    cached = usage["input_tokens_details"]["cached_tokens"]
    return Said(text, calls, found["status"], (usage["input_tokens"] - cached, cached, usage["output_tokens"]))


def _response_stream(body: bytes) -> Said:
    found = events(body)
    said = _response(found[-1]["response"])
    deltas = [event["delta"] for event in found if event["type"].endswith(".delta")]
    assert "".join(deltas) == (said.text or orjson.dumps(ARGUMENTS).decode())
    return said


def _message(body: bytes) -> Said:
    found = orjson.loads(body)
    usage = found["usage"]
    return Said(
        "".join(block["text"] for block in found["content"] if block["type"] == "text"),
        [(block["name"], block["input"]) for block in found["content"] if block["type"] == "tool_use"],
        found["stop_reason"],
        (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]),
    )


def _message_stream(body: bytes) -> Said:
    found = events(body)
    assert (found[0]["type"], found[-1]["type"]) == ("message_start", "message_stop")
    usage = found[0]["message"]["usage"]
    blocks: dict[int, tuple[dict[str, Any], list[str]]] = {}
    ended = ""
    for event in found:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks[event["index"]] = (event["content_block"], [])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            blocks[event["index"]][1].append(delta["text"] if delta["type"] == "text_delta" else delta["partial_json"])
        elif event["type"] == "message_delta":
            ended, usage = event["delta"]["stop_reason"], {**usage, **event["usage"]}
    assert len([event for event in found if event["type"] == "content_block_stop"]) == len(blocks)
    return Said(
        "".join("".join(pieces) for block, pieces in blocks.values() if block["type"] == "text"),
        [
            (block["name"], orjson.loads("".join(pieces)))
            for block, pieces in blocks.values()
            if block["type"] == "tool_use"
        ],
        ended,
        (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]),
    )


def events(body: bytes) -> list[dict[str, Any]]:
    """Named events, as Anthropic and the Responses API send them."""
    found = []
    for block in body.decode().split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            event = orjson.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


WHOLE = {"chat": _chat, "responses": lambda body: _response(orjson.loads(body)), "messages": _message}
STREAMED = {"chat": _chat_stream, "responses": _response_stream, "messages": _message_stream}
ENDED = {
    "chat": {"stop": "stop", "length": "length", "call": "tool_calls", "refused": "content_filter"},
    "responses": {"stop": "completed", "length": "incomplete", "call": "completed"},
    "messages": {"stop": "end_turn", "length": "max_tokens", "call": "tool_use", "refused": "refusal"},
}


class World:
    """A gateway and a simulated model on sockets of their own."""

    def __init__(self, gateway: Gateway, url: str, model: str, client: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.url = url
        self.model = model
        self.client = client
        self.sequence = 0

    async def serve(self, kind: str, **changes: Any) -> None:
        """One version, with a provider of this kind."""
        made = arm(STABLE, f"{self.model}/v1", provider_type=kind, **changes)
        await self.deliver(stable=made)

    async def deliver(self, **changes: Any) -> None:
        self.sequence += 1
        await self.gateway.registry.apply("support", delivery(self.sequence, **changes))

    async def behave(self, **rule: Any) -> None:
        rule = {"name": "rule", "answer": TEXT, "tokens": {"prompt": 40, "cachedShare": 0.25}, **rule}
        body = io.BytesIO(orjson.dumps([rule]))
        async with self.client.put(f"{self.model}/control/behaviours", data=body) as done:
            assert done.status == 200, await done.text()

    async def sent(self) -> dict[str, Any]:
        """What the provider got last: headers and body."""
        async with self.client.get(f"{self.model}/control/requests?last=1") as found:
            (last,) = await found.json()
            return dict(last)

    async def post(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        async with self.client.post(self.url + path, json=body, headers=headers) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


@pytest.fixture
async def world(gateway: Gateway) -> AsyncIterator[World]:
    async with (
        serving(SimulatedModel(seed=1)) as model,
        serving(gateway.serving_app) as url,
        aiohttp.ClientSession() as client,
    ):
        made = World(gateway, url, model, client)
        await made.behave()
        yield made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_an_answer_arrives_whole_and_is_counted(world: World, protocol: str, kind: str, stream: bool) -> None:
    await world.serve(kind, outputSchema={"type": "object"})
    status, headers, body = await world.post(PATHS[protocol], ask(protocol, stream=stream))
    assert status == 200, body
    said = read(protocol, body, stream=stream)
    assert (said.text, said.calls, said.ended) == (TEXT, [], ENDED[protocol]["stop"])
    assert said.usage[:2] == (30, 10)
    assert headers["x-promptrollout-rollout"] == "support"
    assert headers["x-promptrollout-version"] == "a" * 10
    assert headers["x-promptrollout-variant"] == "stable"
    assert len(headers["x-promptrollout-trace-id"]) == 32
    stable = series(world.gateway, "stable")
    assert (stable.total.requests, sum(stable.errors.values())) == (1, 0)
    assert (stable.total.input_tokens, stable.total.cached_input_tokens) == (40, 10)
    assert stable.output_tokens == said.usage[2] > 0
    assert (stable.total.contract_checks, stable.total.contract_failures) == (1, 1), "a text is no object"
    assert (stable.total.empty_answers, stable.total.refusals, stable.usage_missing) == (0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_a_call_of_a_tool_arrives_whole(world: World, protocol: str, kind: str, stream: bool) -> None:
    await world.serve(kind, outputSchema={"type": "object"})
    await world.behave(toolCall={"name": "look_up", "arguments": ARGUMENTS})
    _, _, body = await world.post(PATHS[protocol], ask(protocol, stream=stream, tools=True))
    said = read(protocol, body, stream=stream)
    assert (said.text, said.calls, said.ended) == ("", [("look_up", ARGUMENTS)], ENDED[protocol]["call"])
    stable = series(world.gateway, "stable")
    assert (stable.total.requests, stable.total.empty_answers, stable.total.contract_checks) == (1, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_an_answer_cut_at_its_limit_says_so(world: World, protocol: str, kind: str, stream: bool) -> None:
    await world.serve(kind, parameters={"maxTokens": 2})
    _, _, body = await world.post(PATHS[protocol], ask(protocol, stream=stream))
    said = read(protocol, body, stream=stream)
    assert (said.ended, said.usage[2]) == (ENDED[protocol]["length"], 2)
    assert series(world.gateway, "stable").total.truncated == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_a_refusal_is_counted_in_each_protocol(world: World, protocol: str, kind: str, stream: bool) -> None:
    await world.serve(kind)
    await world.behave(refusalRate=1)
    status, _, body = await world.post(PATHS[protocol], ask(protocol, stream=stream))
    assert status == 200
    stable = series(world.gateway, "stable")
    assert (stable.total.requests, stable.total.refusals, stable.total.empty_answers) == (1, 1, 0)
    if (protocol, kind) == ("messages", "OpenAI"):
        assert read(protocol, body, stream=stream).ended == "refusal"
    if (protocol, kind) == ("chat", "Anthropic"):
        assert read(protocol, body, stream=stream).ended == "content_filter"
    if (protocol, kind) == ("responses", "Anthropic"):
        assert read(protocol, body, stream=stream).ended == "incomplete"
        assert b'"incomplete_details":{"reason":"content_filter"}' in body


@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_a_stream_that_breaks_ends_in_an_error_of_the_protocol(world: World, protocol: str, kind: str) -> None:
    await world.serve(kind)
    await world.behave(disconnectRate=1)
    status, _, body = await world.post(PATHS[protocol], ask(protocol, stream=True))
    assert status == 200
    last = body.rstrip().split(b"\n\n")[-1]
    error = orjson.loads(last.split(b"data: ")[1])
    if protocol == "chat":
        assert error["error"]["code"] == "stream_broken"
    elif protocol == "responses":
        numbers = [event["sequence_number"] for event in events(body)]
        assert numbers == list(range(len(numbers)))
        assert last.startswith(b"event: %b\n" % error["type"].encode())
        if kind == "OpenAI":
            assert (error["type"], error["code"]) == ("error", "stream_broken")
        else:
            assert (error["type"], error["response"]["status"]) == ("response.failed", "failed")
            assert "the connection to provider openai failed" in error["response"]["error"]["message"]
    else:
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
        assert last.startswith(b"event: error\n")
    stable = series(world.gateway, "stable")
    assert (stable.errors["stream_broken"], stable.total.requests) == (1, 1)


@pytest.mark.parametrize(
    ("status", "shown", "openai", "anthropic"),
    [
        (400, 400, "invalid_request_error", "invalid_request_error"),
        (401, 502, "server_error", "api_error"),
        (429, 429, "rate_limit_error", "rate_limit_error"),
        (500, 502, "server_error", "api_error"),
        (529, 502, "server_error", "api_error"),
    ],
)
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_errors_of_the_provider_come_in_the_callers_shape_with_retry_after(
    world: World, protocol: str, kind: str, status: int, shown: int, openai: str, anthropic: str
) -> None:
    await world.serve(kind, provider_maxRetries=0)
    await world.behave(errorKinds=[{"status": status, "share": 1, "retryAfterSeconds": 7}])
    answered, headers, body = await world.post(PATHS[protocol], ask(protocol, stream=True))
    error = orjson.loads(body)
    assert (answered, headers["retry-after"]) == (shown, "7")
    assert error["error"]["type"] == (anthropic if protocol == "messages" else openai)
    assert f"provider openai answered {status}: Simulated error {status}." in error["error"]["message"]
    assert error.get("type") == ("error" if protocol == "messages" else None)
    assert headers["x-promptrollout-version"] == "a" * 10


@pytest.mark.parametrize("protocol", list(PATHS))
async def test_the_gateways_own_errors_come_in_the_callers_shape(world: World, protocol: str) -> None:
    status, _, body = await world.post(PATHS[protocol], ask(protocol, model="nothing"))
    error = orjson.loads(body)
    assert status == 404
    assert "this gateway serves no rollout 'nothing'" in error["error"]["message"]
    if protocol == "messages":
        assert error == {"type": "error", "error": {"type": "not_found_error", "message": error["error"]["message"]}}
    else:
        assert error["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("kind", ["OpenAI", "Anthropic"])
@pytest.mark.parametrize("protocol", ["chat", "messages"])
async def test_garbage_is_no_answer_in_any_protocol(world: World, protocol: str, kind: str) -> None:
    await world.serve(kind)
    await world.behave(garbageRate=1)
    status, _, _ = await world.post(PATHS[protocol], ask(protocol))
    assert status == 502
    assert series(world.gateway, "stable").errors["bad_response"] == 1


async def test_users_of_each_protocol_are_the_same_unit(world: World) -> None:
    stable, canary = (arm(digest * 64, f"{world.model}/v1") for digest in "ab")
    await world.deliver(weight=50, stable=stable, canary=canary)
    seen: dict[str, list[str]] = {}
    for protocol in PATHS:
        for number in range(12):
            user = f"user-{number}"
            changes = {"metadata": {"user_id": user}} if protocol == "messages" else {"user": user}
            _, headers, _ = await world.post(PATHS[protocol], ask(protocol, **changes))
            seen.setdefault(protocol, []).append(headers["x-promptrollout-variant"])
    assert seen["chat"] == seen["responses"] == seen["messages"]
    assert set(seen["chat"]) == {"stable", "canary"}


async def test_a_canary_whose_provider_cannot_be_told_is_answered_by_stable(world: World) -> None:
    stable = arm(STABLE, f"{world.model}/v1")
    canary = arm("b" * 64, f"{world.model}/v1", provider_name="anthropic", provider_type="Anthropic")
    await world.deliver(weight=100, stable=stable, canary=canary)
    status, headers, _ = await world.post("/v1/chat/completions", ask("chat", seed=1))
    assert (status, headers["x-promptrollout-variant"]) == (200, "stable")
    assert series(world.gateway, "canary").errors["render"] == 1
    status, headers, _ = await world.post("/v1/chat/completions", ask("chat"))
    assert (status, headers["x-promptrollout-variant"]) == (200, "canary")


async def test_a_trace_goes_on_and_is_named(world: World) -> None:
    await world.serve("OpenAI")
    given = f"00-{'4bf92f3577b34da6a3ce929d0e0e4736'}-00f067aa0ba902b7-01"
    _, headers, _ = await world.post("/v1/chat/completions", ask("chat"), {"traceparent": given})
    assert headers["x-promptrollout-trace-id"] == given[3:35]
    assert (await world.sent())["headers"]["traceparent"] == given
    _, headers, _ = await world.post("/v1/chat/completions", ask("chat"))
    made = (await world.sent())["headers"]["traceparent"]
    assert made.startswith(f"00-{headers['x-promptrollout-trace-id']}-")
    assert made.endswith("-00")


async def test_embeddings_pass_through_to_stable_outside_the_analysis(world: World) -> None:
    stable = arm(STABLE, f"{world.model}/v1", model="embedder")
    canary = arm("b" * 64, f"{world.model}/v1", model="other")
    await world.deliver(weight=100, stable=stable, canary=canary)
    body = {"model": "support", "user": "u1", "input": ["one", "two"], "dimensions": 4, "odd": {"x": None}}
    status, headers, answer = await world.post("/v1/embeddings", body)
    assert (status, headers["x-promptrollout-variant"]) == (200, "stable")
    assert [len(each["embedding"]) for each in orjson.loads(answer)["data"]] == [4, 4]
    assert (await world.sent())["body"] == {**body, "model": "embedder"}
    outside = series(world.gateway, "stable-outside")
    assert (outside.total.requests, outside.total.empty_answers, outside.total.input_tokens) == (1, 0, 40)
    assert sum(one.total.requests for one in world.gateway.counters.live()) == 1
    assert not any(world.gateway.counters.unassigned.values())
    status, _, answer = await world.post("/v1/embeddings", {"model": "support", "input": []})
    assert (status, orjson.loads(answer)["error"]["param"]) == (400, "input")
    await world.serve("Anthropic")
    status, _, answer = await world.post("/v1/embeddings", {"model": "support", "input": "x"})
    assert (status, orjson.loads(answer)["error"]["code"]) == (400, "untranslatable")


async def test_both_kinds_of_client_can_list_the_rollouts(world: World) -> None:
    own = {"anthropic-version": "2023-06-01"}
    async with world.client.get(f"{world.url}/v1/models", headers=own) as answer:
        assert await answer.json() == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    await world.serve("OpenAI")
    async with world.client.get(f"{world.url}/v1/models", headers=own) as answer:
        found = await answer.json()
    assert (found["first_id"], found["data"][0]["type"], found["data"][0]["id"]) == ("support", "model", "support")
    async with world.client.get(f"{world.url}/v1/models/support", headers=own) as answer:
        assert (await answer.json())["display_name"] == "support"
    async with world.client.get(f"{world.url}/v1/models/support") as answer:
        assert (await answer.json())["object"] == "model"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_an_answer_of_a_megabyte_arrives(world: World, protocol: str, kind: str, stream: bool) -> None:
    long = "größer 東京 " * 60_000
    await world.serve(kind)
    await world.behave(answer=long)
    body = ask(protocol, stream=stream)
    body["max_output_tokens" if protocol == "responses" else "max_tokens"] = 1_000_000
    _, _, answer = await world.post(PATHS[protocol], body)
    assert read(protocol, answer, stream=stream).text == long
