"""A provider that is asked for a stream and answers as a whole: clients would find nothing in that."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import SCHEMA, Caller, Provider, completion, request, says, series, serve

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def events(body: bytes) -> list[Any]:
    assert body.endswith(b"data: [DONE]\n\n")
    return [orjson.loads(line[6:]) for line in body.split(b"\n\n") if line and line != b"data: [DONE]"]


async def test_a_chat_completion_becomes_a_stream_and_is_counted_as_an_answer(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url, outputSchema=SCHEMA)
    provider.script.append(says(body=completion('{"answer": "yes"}', created=7, model="gpt")))
    answered = await caller.post(request(stream=True))
    assert answered.status == 200
    assert answered.headers["content-type"].startswith("text/event-stream")
    said, ended = events(answered.body)
    assert (said["object"], said["model"], said["created"]) == ("chat.completion.chunk", "gpt", 7)
    assert said["choices"][0]["delta"]["content"] == '{"answer": "yes"}'
    assert ended["choices"][0]["finish_reason"] == "stop"
    total = series(gateway, "stable").total
    assert (total.requests, total.contract_checks, total.contract_failures) == (1, 1, 0)
    assert sum(series(gateway, "stable").errors.values()) == 0


async def test_usage_and_calls_of_tools_come_as_a_stream_has_them(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    whole = completion(None, "tool_calls")
    whole["choices"][0]["message"]["tool_calls"] = [CALL, CALL]
    provider.script.append(says(body=whole))
    answered = await caller.post(request(stream=True, stream_options={"include_usage": True}))
    said, ended, usage = events(answered.body)
    assert [call["index"] for call in said["choices"][0]["delta"]["tool_calls"]] == [0, 1]
    assert ended["choices"][0]["finish_reason"] == "tool_calls"
    assert usage["usage"]["prompt_tokens"] == 100


async def test_callers_of_another_protocol_get_a_stream_of_theirs(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    body = {"model": "support", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    answered = await caller.post(body, "/v1/messages")
    assert answered.status == 200
    assert b"event: message_start" in answered.body
    assert b'"text":"Hello"' in answered.body
    assert b"event: message_stop" in answered.body


@pytest.mark.parametrize("payload", [b"{}", b"no JSON", b"", b'{"choices": 1}'])
async def test_what_is_no_completion_is_a_bad_response(
    gateway: Gateway, caller: Caller, provider: Provider, payload: bytes
) -> None:
    await serve(gateway, provider.url, provider_maxRetries=0)
    provider.script.append(says(body=payload))
    answered = await caller.post(request(stream=True))
    assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert series(gateway, "stable").errors["bad_response"] == 1


async def test_a_protocol_whose_stream_cannot_be_made_of_it_counts_a_bad_response(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url)
    provider.script.append(says(body={"id": "resp_1", "object": "response", "status": "completed", "output": []}))
    answered = await caller.post({"model": "support", "user": "u1", "input": "Hi", "stream": True}, "/v1/responses")
    assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert "did not stream though the request asked for a stream" in answered.error["message"]
    assert series(gateway, "stable").errors["bad_response"] == 1
