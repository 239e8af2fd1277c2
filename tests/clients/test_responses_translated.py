"""The `openai` package's Responses API, pointed at the gateway: answered by providers of Anthropic's API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from tests.clients.kit import ABSENT, World
from tests.unit.gateway.kit import counted, says, streams

openai = pytest.importorskip("openai", reason=ABSENT)

OPTIONS: Any = {"api_key": "unused", "timeout": 10, "max_retries": 0, "default_headers": {"x-user-id": "u1"}}
TOOL: Any = {
    "type": "function",
    "name": "parcel",
    "description": "Where a parcel is.",
    "parameters": {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]},
    "strict": False,
}
THOUGHT = {"type": "thinking", "thinking": "Which one?", "signature": "s"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "parcel", "input": {"number": "47"}}


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    with openai.OpenAI(base_url=world.url, **OPTIONS) as client:
        yield client


def message(*content: dict[str, Any], stop_reason: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 30, "cache_read_input_tokens": 70, "output_tokens": 10},
    }


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        event("content_block_start", index=index, content_block=start),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def stream_of(*blocks: list[bytes], stop_reason: str = "end_turn") -> list[bytes]:
    return [
        event("message_start", message=message()),
        event("ping"),
        *(piece for one in blocks for piece in one),
        event("message_delta", delta={"stop_reason": stop_reason}, usage={"output_tokens": 10}),
        event("message_stop"),
    ]


def said(index: int, text: str) -> list[bytes]:
    deltas = [{"type": "text_delta", "text": word} for word in text.split(" ")]
    return block(index, {"type": "text", "text": ""}, *deltas)


CALLED = [
    block(0, {**THOUGHT, "thinking": ""}, {"type": "thinking_delta", "thinking": "Which one?"}),
    block(
        1,
        {**USE, "input": {}},
        {"type": "input_json_delta", "partial_json": '{"num'},
        {"type": "input_json_delta", "partial_json": 'ber":"47"}'},
    ),
]


def test_an_answer_and_the_headers_that_say_what_answered(world: World, client: Any) -> None:
    world.serve({"answer": "In Ulm.", "tokens": {"prompt": 40, "cachedShare": 0.25}}, provider_type="Anthropic")
    raw = client.responses.with_raw_response.create(
        model="support", input="Where?", instructions="Be brief.", max_output_tokens=100, metadata={"a": "b"}
    )
    assert raw.headers["x-promptrollout-variant"] == "stable"
    answer = raw.parse()
    assert answer.output_text == "In Ulm."
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.usage.input_tokens, answer.usage.input_tokens_details.cached_tokens) == (40, 10)
    assert answer.usage.total_tokens == 40 + answer.usage.output_tokens > 40
    assert (answer.instructions, answer.max_output_tokens, answer.metadata) == ("Be brief.", 100, {"a": "b"})
    assert type(answer).model_validate(answer.model_dump(mode="json")) == answer, "nothing is missing of a Response"
    assert counted(world.gateway) == {"stable": (1, 0)}


def test_a_stream_is_put_together(world: World, client: Any) -> None:
    world.serve({"answer": "The parcel is in Ulm."}, provider_type="Anthropic")
    with client.responses.stream(model="support", input="Where?") as stream:
        text = "".join(one.delta for one in stream if one.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "The parcel is in Ulm."
    assert final.usage.output_tokens > 0
    assert counted(world.gateway) == {"stable": (1, 0)}


async def test_the_async_client_asks_and_streams(world: World) -> None:
    world.serve({"answer": "The parcel is in Ulm."}, provider_type="Anthropic")
    async with openai.AsyncOpenAI(base_url=world.url, **OPTIONS) as client:
        answer = await client.responses.create(model="support", input="Where?")
        assert answer.output_text == "The parcel is in Ulm."
        stream = await client.responses.create(model="support", input="Where?", stream=True)
        seen = [one async for one in stream]
    assert [one.sequence_number for one in seen] == list(range(len(seen)))
    assert (seen[0].type, seen[-1].type) == ("response.created", "response.completed")
    assert seen[-1].response.output_text == "The parcel is in Ulm."


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_with_a_tool(world: World, client: Any, stream: bool) -> None:
    if stream:
        first = streams(*stream_of(*CALLED, stop_reason="tool_use"))
        second = streams(*stream_of(said(0, "In Ulm.")))
    else:
        first = says(body=message(THOUGHT, USE, stop_reason="tool_use"))
        second = says(body=message({"type": "text", "text": "In Ulm."}))
    world.script(first, second, provider_type="Anthropic")
    history: list[Any] = [{"role": "user", "content": "Where is 47?"}]

    def ask() -> Any:
        if not stream:
            return client.responses.create(model="support", input=history, tools=[TOOL], store=False)
        with client.responses.stream(model="support", input=history, tools=[TOOL], store=False) as events:
            return events.get_final_response()

    asked = ask()
    reasoning, call = asked.output
    assert reasoning.summary[0].text == "Which one?"
    assert (call.type, call.name, call.arguments) == ("function_call", "parcel", '{"number":"47"}')
    history += asked.output
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "Ulm"})
    answered = ask()
    assert answered.output_text.replace(" ", "") == "InUlm."
    one, two = world.provider.requests
    assert one["tools"] == [
        {"name": "parcel", "description": TOOL["description"], "input_schema": TOOL["parameters"], "strict": False}
    ]
    assert two["messages"] == [
        {"role": "user", "content": "Where is 47?"},
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Ulm"}]},
    ]
    assert counted(world.gateway) == {"stable": (2, 0)}


class Place(BaseModel):
    town: str


def test_a_form_of_the_answer_is_asked_for_and_parsed(world: World, client: Any) -> None:
    world.script(says(body=message({"type": "text", "text": '{"town":"Ulm"}'})), provider_type="Anthropic")
    answer = client.responses.parse(model="support", input="Where?", text_format=Place)
    assert answer.output_parsed == Place(town="Ulm")
    asked = world.provider.requests[0]["output_config"]["format"]
    assert (asked["type"], asked["schema"]["required"]) == ("json_schema", ["town"])


@pytest.mark.parametrize(
    ("stop_reason", "reason"), [("max_tokens", "max_output_tokens"), ("refusal", "content_filter")]
)
def test_an_answer_that_was_cut_is_incomplete(world: World, client: Any, stop_reason: str, reason: str) -> None:
    cut = message({"type": "text", "text": "In U"}, stop_reason=stop_reason)
    world.script(
        says(body=cut), streams(*stream_of(said(0, "In U"), stop_reason=stop_reason)), provider_type="Anthropic"
    )
    answer = client.responses.create(model="support", input="Where?")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", reason)
    *_, last = client.responses.create(model="support", input="Where?", stream=True)
    assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", reason)


def test_a_stream_that_breaks_does_not_look_complete(world: World, client: Any) -> None:
    half = stream_of(said(0, "The parcel is in Ulm."))[:5]
    world.script(streams(*half, cut=True), provider_type="Anthropic")
    seen = list(client.responses.create(model="support", input="Where?", stream=True))
    assert "response.output_text.delta" in {one.type for one in seen}
    assert (seen[-1].type, seen[-1].response.status) == ("response.failed", "failed")
    assert seen[-1].response.error.message
    assert counted(world.gateway) == {"stable": (1, 1)}


def test_what_is_wrong_with_a_request_is_the_sdks_own_exception(world: World, client: Any) -> None:
    refused = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    world.script(says(429, refused, **{"retry-after": "7"}), provider_type="Anthropic", provider_maxRetries=0)
    with pytest.raises(openai.BadRequestError, match="does not store conversations") as state:
        client.responses.create(model="support", input="Where?", previous_response_id="resp_1")
    assert (state.value.code, state.value.param) == ("untranslatable", "previous_response_id")
    with pytest.raises(openai.BadRequestError) as search:
        client.responses.create(model="support", input="Where?", tools=[{"type": "web_search"}])
    assert search.value.param == "tools[0]"
    with pytest.raises(openai.RateLimitError, match="slow down") as limited:
        client.responses.create(model="support", input="Where?")
    assert limited.value.response.headers["retry-after"] == "7"
