"""Streams of each protocol, however their bytes are cut, through the gateway to the caller."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.sandbox.model.answers import DrawSource, compose
from promptrollout.sandbox.model.behaviour import Behaviour
from promptrollout.sandbox.model.wire import WIRES
from tests.unit.gateway.kit import Caller, Provider, says, series, serve, streams
from tests.unit.gateway.pipeline.test_protocols import COMBINATIONS, ENDED, PATHS, TEXT, ask, events, read

NATIVE = {"OpenAI": {"chat": "chat", "responses": "responses", "messages": "chat"}, "Anthropic": {}}


def native(protocol: str, kind: str) -> str:
    """What the provider speaks to answer."""
    return NATIVE[kind].get(protocol, "messages")


def stream_of(protocol: str, *, tool: bool = False) -> bytes:
    """The simulated model's stream, every character an event of its own."""
    wire = WIRES[PATHS[protocol].removeprefix("/v1")]
    body = orjson.dumps(ask(protocol, stream=True, tools=tool))
    rule: dict[str, Any] = {"name": "a", "answer": TEXT, "tokens": {"prompt": 40, "cachedShare": 0.25}}
    if tool:
        rule["toolCall"] = {"name": "look_up", "arguments": {"note": TEXT}}
    request = wire.parse(body)
    draws = DrawSource(1).draw("a", "u1", request.messages)
    reply = compose(Behaviour.model_validate(rule), draws, 40, None, None, request.tools)
    made = wire(request, reply, 1)
    return b"".join([made.head(), *(made.piece(character) for character in reply.text), made.end()])


@pytest.mark.parametrize("tool", [False, True])
@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_any_cut_of_the_bytes_reads_the_same(
    gateway: Gateway, caller: Caller, provider: Provider, protocol: str, kind: str, size: int, tool: bool
) -> None:
    await serve(gateway, provider.url, provider_type=kind)
    sent = stream_of(native(protocol, kind), tool=tool)
    provider.script.append(streams(*(sent[at : at + size] for at in range(0, len(sent), size))))
    answered = await caller.post(ask(protocol, stream=True, tools=tool), path=PATHS[protocol])
    if tool:
        assert _calls(protocol, answered.body) == [("look_up", {"note": TEXT})]
    else:
        said = read(protocol, answered.body, stream=True)
        assert (said.text, said.ended) == (TEXT, ENDED[protocol]["stop"])
    if native(protocol, kind) == protocol:
        assert answered.body == sent, "what needs no translation goes on byte by byte"
    stable = series(gateway, "stable")
    assert (stable.total.requests, sum(stable.errors.values()), stable.total.input_tokens) == (1, 0, 40)
    assert sum(sum(histogram.bins) for histogram in stable.first_token) == 1


def _calls(protocol: str, body: bytes) -> list[tuple[str, Any]]:
    if protocol == "responses":  # whose deltas `read` holds against another call
        (item,) = events(body)[-1]["response"]["output"]
        return [(item["name"], orjson.loads(item["arguments"]))]
    return read(protocol, body, stream=True).calls


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_a_stream_that_is_cut_anywhere_is_never_taken_for_whole(
    gateway: Gateway, caller: Caller, provider: Provider, protocol: str, kind: str, share: float
) -> None:
    await serve(gateway, provider.url, provider_type=kind)
    sent = stream_of(native(protocol, kind))
    provider.script.append(streams(sent[: int(len(sent) * share)]))
    answered = await caller.post(ask(protocol, stream=True), path=PATHS[protocol])
    assert answered.status == 200
    assert b'"message":"the provider\'s stream ' in answered.pieces[-1]
    assert not any(end in answered.body for end in (b"[DONE]", b"message_stop", b"response.completed"))
    assert series(gateway, "stable").errors["stream_broken"] == 1


FAILURES = {
    "chat": b'data: {"error":{"message":"overloaded"}}\n\n',
    "responses": b'event: error\ndata: {"type":"error","code":"x","message":"overloaded","sequence_number":9}\n\n',
    "messages": b'event: error\ndata: {"type":"error","error":{"type":"x","message":"overloaded"}}\n\n',
}


@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_what_the_provider_says_of_its_failure_reaches_the_caller_once(
    gateway: Gateway, caller: Caller, provider: Provider, protocol: str, kind: str
) -> None:
    await serve(gateway, provider.url, provider_type=kind)
    spoken = native(protocol, kind)
    sent = stream_of(spoken)
    half = sent[: sent.index(b"\n\n", len(sent) // 2) + 2]
    provider.script.append(streams(half, FAILURES[spoken]))
    answered = await caller.post(ask(protocol, stream=True), path=PATHS[protocol])
    last = orjson.loads(answered.body.rstrip().split(b"data: ")[-1])
    told = last["response"] if last.get("type") == "response.failed" else last
    assert (told.get("message") or told["error"]["message"]) == "overloaded"
    assert answered.body.count(b"overloaded") == 1
    if (protocol, kind) == ("responses", "Anthropic"):
        assert last["type"] == "response.failed"
    else:
        assert (last.get("type") == "error") is (protocol != "chat")
    assert series(gateway, "stable").errors["stream_broken"] == 1


async def test_a_response_that_failed_is_an_error_of_the_arm(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url, provider_type="OpenAI")
    failed = {"id": "r", "status": "failed", "error": {"code": "server_error", "message": "gone"}, "output": []}
    event = {"type": "response.failed", "sequence_number": 1, "response": failed}
    provider.script.append(streams(b"event: response.failed\ndata: " + orjson.dumps(event) + b"\n\n"))
    answered = await caller.post(ask("responses", stream=True), path="/v1/responses")
    assert answered.body.count(b"response.failed") == 2
    provider.script.append(says(body=failed))
    answered = await caller.post(ask("responses"), path="/v1/responses")
    assert (answered.status, answered.json["status"]) == (200, "failed")
    stable = series(gateway, "stable")
    assert (stable.errors["stream_broken"], stable.errors["provider_5xx"], stable.total.empty_answers) == (1, 1, 0)


async def test_calls_that_are_no_json_cannot_be_told_to_anthropics_clients(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url, provider_type="OpenAI")
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"x":'}}
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    provider.script.append(says(body={"choices": [choice]}))
    answered = await caller.post(ask("messages", tools=True), path="/v1/messages")
    assert (answered.status, answered.error["type"]) == (502, "api_error")
    assert "cannot be translated" in answered.error["message"]
    assert series(gateway, "stable").errors["bad_response"] == 1


@pytest.mark.parametrize(("protocol", "kind"), COMBINATIONS)
async def test_who_hangs_up_in_mid_stream_stops_the_provider(
    gateway: Gateway, caller: Caller, provider: Provider, protocol: str, kind: str
) -> None:
    await serve(gateway, provider.url, provider_type=kind)
    sent = stream_of(native(protocol, kind))
    half = sent[: sent.index(b"\n\n", len(sent) // 2) + 2]
    gone = asyncio.Event()
    provider.script.append(streams(half, asyncio.Event()))

    async def on_piece(piece: bytes) -> None:
        gone.set()

    async with asyncio.timeout(5):
        body = ask(protocol, stream=True)
        answered = await caller.post(body, path=PATHS[protocol], hang_up=gone, on_piece=on_piece)
        await provider.cancelled.wait()
    assert b'"error":{' not in answered.body
    stable = series(gateway, "stable")
    assert (stable.total.requests, stable.total.abandoned, sum(stable.errors.values())) == (1, 1, 0)
