"""The simulated model's other APIs over HTTP: Responses, Anthropic's Messages, embeddings."""

from __future__ import annotations

import json
import math
from typing import Any

import aiohttp
import pytest

from tests.unit.sandbox_model.running_model import RunningModel

KEY = {"authorization": "Bearer sk-test-1234"}
ANTHROPIC = {"x-api-key": "sk-test-1234", "anthropic-version": "2023-06-01"}
SCHEMA = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer", "minimum": 3}}}
CALL = {"name": "a", "toolCall": {"name": "look_up", "arguments": {"order": 7}}}

RESPONSES = {"model": "m", "instructions": "v1", "input": "hi"}
MESSAGES = {"model": "m", "system": "v1", "max_tokens": 900, "messages": [{"role": "user", "content": "hi"}]}


async def post(model: RunningModel, path: str, body: dict[str, Any], status: int = 200) -> Any:
    headers = ANTHROPIC if path == "/v1/messages" else KEY
    async with model.client.post(model.url + path, json=body, headers=headers) as answer:
        assert answer.status == status, await answer.text()
        if answer.content_type != "text/event-stream":
            return await answer.json()
        events = [block for block in (await answer.text()).split("\n\n") if block]
    found = []
    for block in events:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


async def test_responses_say_the_same_whole_and_streamed(model: RunningModel) -> None:
    await model.behave({"name": "a", "match": {"promptContains": "v1"}, "answer": "Grüße, in several pieces."})
    whole = await post(model, "/v1/responses", RESPONSES)
    assert whole["output"][0]["content"][0]["text"] == "Grüße, in several pieces."
    assert whole["usage"]["total_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["output_tokens"]
    events = await post(model, "/v1/responses", {**RESPONSES, "stream": True})
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == (
        "Grüße, in several pieces."
    )
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["content"] == whole["output"][0]["content"]


async def test_messages_say_the_same_whole_and_streamed(model: RunningModel) -> None:
    await model.behave({"name": "a", "match": {"promptContains": "v1"}, "answer": "Grüße", "tokens": {"prompt": 40}})
    whole = await post(model, "/v1/messages", MESSAGES)
    assert (whole["content"], whole["stop_reason"]) == ([{"type": "text", "text": "Grüße"}], "end_turn")
    assert whole["usage"]["input_tokens"] == 40
    events = await post(model, "/v1/messages", {**MESSAGES, "stream": True})
    assert events[0]["message"]["usage"]["input_tokens"] == 40
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == "Grüße"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rule_calls_a_tool_that_the_request_offers(model: RunningModel, stream: bool) -> None:
    await model.behave(CALL)
    function = {"name": "look_up", "parameters": {"type": "object"}}
    chat = {"tools": [{"type": "function", "function": function}], "stream": stream}
    async with model.chat(**chat) as answer:
        assert '"tool_calls"' in await answer.text()
    found = await post(model, "/v1/responses", {**RESPONSES, "tools": [{"type": "function", **function}]})
    assert json.loads(found["output"][0]["arguments"]) == {"order": 7}
    tools = [{"name": "look_up", "input_schema": {"type": "object"}}]
    found = await post(model, "/v1/messages", {**MESSAGES, "tools": tools, "stream": stream})
    if stream:
        arguments = "".join(event["delta"]["partial_json"] for event in found if event["type"] == "content_block_delta")
        assert (json.loads(arguments), found[-2]["delta"]["stop_reason"]) == ({"order": 7}, "tool_use")
    else:
        assert (found["content"][0]["input"], found["stop_reason"]) == ({"order": 7}, "tool_use")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "here"}]}
    answered = {**MESSAGES, "tools": tools, "messages": [*MESSAGES["messages"], result]}  # type: ignore[misc]
    assert (await post(model, "/v1/messages", answered))["stop_reason"] == "end_turn"


async def test_answers_fit_the_schema_of_each_api(model: RunningModel) -> None:
    asked = {"type": "json_schema", "name": "s", "schema": SCHEMA}
    found = await post(model, "/v1/responses", {**RESPONSES, "text": {"format": asked}})
    assert json.loads(found["output"][0]["content"][0]["text"]) == {"score": 3}
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    found = await post(model, "/v1/messages", {**MESSAGES, "output_config": config})
    assert json.loads(found["content"][0]["text"]) == {"score": 3}


@pytest.mark.parametrize(
    ("rule", "responses", "messages"),
    [
        ({"refusalRate": 1}, "completed", "refusal"),
        ({"truncationRate": 1}, "incomplete", "max_tokens"),
        ({"emptyRate": 1}, "completed", "end_turn"),
    ],
)
async def test_endings_in_each_api(model: RunningModel, rule: dict[str, Any], responses: str, messages: str) -> None:
    await model.behave({"name": "a", **rule})
    assert (await post(model, "/v1/responses", RESPONSES))["status"] == responses
    assert (await post(model, "/v1/messages", MESSAGES))["stop_reason"] == messages
    assert (await post(model, "/v1/messages", {**MESSAGES, "stream": True}))[-2]["delta"]["stop_reason"] == messages


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_stream_breaks_in_the_middle_in_each_api(model: RunningModel, path: str) -> None:
    await model.behave({"name": "a", "disconnectRate": 1})
    body = {**(RESPONSES if path == "/v1/responses" else MESSAGES), "stream": True}
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(model, path, body)


async def test_embeddings_depend_on_the_text_alone(model: RunningModel) -> None:
    body = {"model": "m", "input": ["one", "two", "one"], "dimensions": 16}
    found = (await post(model, "/v1/embeddings", body))["data"]
    assert [len(each["embedding"]) for each in found] == [16, 16, 16]
    assert found[0]["embedding"] == found[2]["embedding"] != found[1]["embedding"]
    assert math.isclose(sum(value * value for value in found[0]["embedding"]), 1.0)
    assert isinstance(
        (await post(model, "/v1/embeddings", {**body, "encoding_format": "base64"}))["data"][0]["embedding"], str
    )


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/messages", {**MESSAGES, "max_tokens": None}, "max_tokens"),
        ("/v1/messages", {**MESSAGES, "messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ("/v1/messages", {**MESSAGES, "stream_options": {}}, "stream_options"),
        ("/v1/responses", {**RESPONSES, "input": []}, "input"),
        ("/v1/embeddings", {"model": "m", "input": ""}, "input"),
    ],
)
async def test_what_is_refused_is_named(model: RunningModel, path: str, body: dict[str, Any], said: str) -> None:
    refused = await post(model, path, body, status=400)
    assert said in refused["error"]["message"]
    assert refused.get("type") == ("error" if path == "/v1/messages" else None)
