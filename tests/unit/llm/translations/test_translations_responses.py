"""What requests of the Responses API become for Anthropic's providers, and their answers for who called."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.protocols.messages import MESSAGES
from promptrollout.llm.translations import TRANSLATIONS, messages_response
from promptrollout.llm.translations.messages_response import ResponseStream
from tests.unit.gateway.pipeline.test_protocols import events

TO_MESSAGES = TRANSLATIONS["responses", "messages"].request

HELLO = [{"role": "user", "content": "Hello"}]
PNG = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"x":1}'}
USE = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}}


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": "Hello", **fields}


def items(*given: dict[str, Any]) -> dict[str, Any]:
    return asked(input=list(given))


# ------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_output_tokens": 50}, {"max_tokens": 50}),
        ({"temperature": 0.5, "top_p": 0.9, "stream": True}, {"temperature": 0.5, "top_p": 0.9, "stream": True}),
        ({"instructions": "Be brief."}, {"system": [{"type": "text", "text": "Be brief."}]}),
        ({"instructions": ""}, {}),
        ({"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"store": True, "metadata": {"a": "b"}, "prompt_cache_key": "k", "service_tier": "auto"}, {}),
        ({"background": False, "truncation": "disabled", "top_logprobs": 0, "max_tool_calls": 3}, {}),
        ({"include": ["reasoning.encrypted_content"], "previous_response_id": None, "conversation": None}, {}),
        ({"stream_options": {"include_obfuscation": False}}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}}},
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"output_config": {"effort": "high"}}),
        ({"reasoning": {"effort": None}}, {}),
        (
            {"tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True}]},
            {"tools": [{"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True}]},
        ),
        ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tool_choice": {"type": "function", "name": "f"}}, {"tool_choice": {"type": "tool", "name": "f"}}),
        ({"parallel_tool_calls": False}, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"tool_choice": {"type": "none"}}),
        ({"prompt_variables": {"a": 1}}, {"prompt_variables": {"a": 1}}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking": {"type": "enabled", "budget_tokens": 9}}),
    ],
)
def test_fields_as_anthropic_has_them(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    body = asked(**fields)
    before = orjson.dumps(body)
    assert TO_MESSAGES(body) == {"model": "m", "messages": HELLO, **wanted}
    assert orjson.dumps(body) == before, "the caller's request is left as it is"


def test_a_conversation_as_anthropic_has_it() -> None:
    body = items(
        {"role": "developer", "content": [{"type": "input_text", "text": "No jokes."}]},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": PNG, "detail": "high"},
                {"type": "input_image", "image_url": "https://example.com/a.png"},
                {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
                {"type": "input_file", "file_url": "https://example.com/a.pdf"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Let me look.", "annotations": []},
                {"type": "output_text", "text": "", "annotations": []},
            ],
        },
        {**CALL, "id": "fc_1", "status": "completed"},
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {**CALL, "call_id": "call_2", "arguments": ""},
        {"type": "function_call_output", "call_id": "call_1", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": PNG}],
        },
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Why?"},
        {"role": "user", "content": "Tell me."},
    )
    found = TO_MESSAGES({**body, "instructions": "Of ACME."})
    assert found["system"] == [{"type": "text", "text": said} for said in ("Of ACME.", "No jokes.", "Be brief.")]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    assert found["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                image,
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                {"type": "document", "source": pdf, "title": "a.pdf"},
                {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Let me look."}, USE, {**USE, "id": "call_2", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "two"}, image]},
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
        {"role": "user", "content": "Tell me."},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (asked(previous_response_id="resp_1"), "previous_response_id"),
        (asked(conversation="conv_1"), "conversation"),
        (asked(conversation={"id": "conv_1"}), "conversation"),
        (asked(prompt={"id": "pmpt_1"}), "prompt"),
        (asked(tools=[{"type": "web_search"}]), "tools[0]"),
        (asked(tools=[{"type": "custom", "name": "c"}]), "tools[0]"),
        (asked(tools=[{"type": "function"}]), "tools[0]"),
        (asked(tool_choice={"type": "web_search"}), "tool_choice"),
        (asked(tool_choice={"type": "allowed_tools", "mode": "auto", "tools": []}), "tool_choice"),
        (asked(temperature=1.5), "temperature"),
        (asked(truncation="auto"), "truncation"),
        (asked(top_logprobs=3), "top_logprobs"),
        (asked(include=["message.output_text.logprobs"]), "include"),
        (asked(reasoning={"effort": "minimal"}), "reasoning.effort"),
        (asked(reasoning={"of_next_year": 1}), "reasoning.of_next_year"),
        (asked(reasoning="high"), "reasoning"),
        (asked(text={"format": {"type": "json_object"}}), "text.format"),
        (asked(text={"format": {"type": "json_schema", "name": "n"}}), "text.format"),
        (asked(text={"verbosity": "low"}), "text.verbosity"),
        (asked(text="x"), "text"),
        (asked(of_next_year=1), "of_next_year"),
        (items({"type": "item_reference", "id": "msg_1"}), "input[0].type"),
        (items({"type": "web_search_call", "id": "ws_1"}), "input[0].type"),
        (items({"role": "critic", "content": "x"}), "input[0].role"),
        (items({"role": "user", "content": 7}), "input[0].content"),
        (items({"role": "user", "content": [{"type": "input_audio"}]}), "input[0].content[0].type"),
        (items({"role": "user", "content": [{"type": "input_text", "text": 1}]}), "input[0].content[0].text"),
        (
            items({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}),
            "input[0].content[0].file_id",
        ),
        (
            items({"role": "user", "content": [{"type": "input_file", "file_data": "data:text/csv;base64,AA=="}]}),
            "input[0].content[0].file_data",
        ),
        (
            items({"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}),
            "input[0].content[0].type",
        ),
        (items({**CALL, "arguments": "{"}), "input[0].arguments"),
        (items({**CALL, "arguments": "[1]"}), "input[0].arguments"),
        (items({"type": "function_call_output", "call_id": "c", "output": None}), "input[0].output"),
    ],
)
def test_what_anthropic_cannot_be_told_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        TO_MESSAGES(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"instructions": ["x"]}, "instructions"),
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input[0]"),
    ],
)
def test_what_is_no_request_is_the_callers_fault(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(CallerError) as caught:
        TO_MESSAGES(asked(**fields))
    assert caught.value.param == param


# ------------------------------------------------------------------------------------------- answers


USAGE = {"input_tokens": 10, "cache_read_input_tokens": 70, "cache_creation_input_tokens": 20, "output_tokens": 5}
CONTENT = [
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "text", "text": "Let me "},
    {"type": "text", "text": "look."},
    USE,
    {**USE, "id": "call_2", "input": {}},
]


def message(*content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "model": "claude",
        "content": list(content),
        "stop_reason": "end_turn",
        "usage": USAGE,
        **changes,
    }


def events_of(found: dict[str, Any], pieces: int) -> Iterator[dict[str, Any]]:
    """As Anthropic streams this message."""
    start = {**found, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    yield {"type": "message_start", "message": start}
    yield {"type": "ping"}
    for index, block in enumerate(found["content"]):
        kind, name = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}.get(
            block["type"], ("input_json_delta", "partial_json")
        )
        whole = block.get(name) or (orjson.dumps(block["input"]).decode() if block.get("input") else "")
        begun = {**block, **({name: ""} if name in block else {}), **({"input": {}} if "input" in block else {})}
        yield {"type": "content_block_start", "index": index, "content_block": begun}
        for at in range(0, len(whole) or 1, pieces):
            delta = {"type": kind, name: whole[at : at + pieces]}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": found["stop_reason"]}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}}
    yield {"type": "message_stop"}


def streamed(found: dict[str, Any], body: dict[str, Any], pieces: int = 3) -> list[dict[str, Any]]:
    """The events that its caller gets."""
    stream = ResponseStream(body)
    return events(b"".join(stream.event(event) for event in events_of(found, pieces)) + stream.end())


def test_an_answer_with_all_that_it_can_have() -> None:
    tool = {"type": "function", "name": "f", "parameters": SCHEMA}
    body = asked(instructions="Be brief.", tools=[tool], temperature=0.5, metadata={"a": "b"}, max_output_tokens=50)
    found = messages_response.answer(message(*CONTENT, stop_reason="tool_use"), body)
    assert [(item["type"], item["status"]) for item in found["output"]] == [
        ("reasoning", "completed"),
        ("message", "completed"),
        ("function_call", "completed"),
        ("function_call", "completed"),
    ]
    reasoning, said, first, second = found["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert [part["text"] for part in said["content"]] == ["Let me ", "look."]
    assert {part["type"] for part in said["content"]} == {"output_text"}
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "f", '{"x":1}')
    assert (second["call_id"], second["arguments"]) == ("call_2", "{}")
    ids = [item["id"] for item in found["output"]]
    assert [each.partition("_")[0] for each in ids] == ["rs", "msg", "fc", "fc"]
    assert len(set(ids)) == 4
    assert max(map(len, ids)) <= 64
    assert found["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 70, "cache_write_tokens": 20},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 105,
    }
    assert (found["id"], found["object"], found["model"]) == ("msg_1", "response", "claude")
    assert (found["status"], found["error"], found["incomplete_details"]) == ("completed", None, None)
    assert (found["instructions"], found["tools"], found["tool_choice"]) == ("Be brief.", [tool], "auto")
    assert (found["temperature"], found["metadata"], found["max_output_tokens"]) == (0.5, {"a": "b"}, 50)
    assert (found["store"], found["parallel_tool_calls"], found["text"]) == (False, True, {"format": {"type": "text"}})


@pytest.mark.parametrize(
    ("stop_reason", "status", "reason"),
    [
        ("end_turn", "completed", None),
        ("stop_sequence", "completed", None),
        ("pause_turn", "completed", None),
        ("tool_use", "completed", None),
        ("max_tokens", "incomplete", "max_output_tokens"),
        ("model_context_window_exceeded", "incomplete", "max_output_tokens"),
        ("refusal", "incomplete", "content_filter"),
        ("of_next_year", "completed", None),
        (None, "completed", None),
    ],
)
@pytest.mark.parametrize("content", [CONTENT[:4], CONTENT, []])
def test_why_it_stopped_whole_and_streamed(
    content: list[dict[str, Any]], stop_reason: str | None, status: str, reason: str | None
) -> None:
    given = message(*content, stop_reason=stop_reason)
    found = messages_response.answer(given, asked())
    assert (found["status"], (found["incomplete_details"] or {}).get("reason")) == (status, reason)
    assert [item["status"] for item in found["output"]][-1:] == [status][: len(content)]
    last = streamed(given, asked(stream=True))[-1]
    assert last["type"] == f"response.{status}"
    for name in ("created_at", "completed_at"):
        assert isinstance(last["response"].pop(name, 0), int)
        found.pop(name, None)
    assert last["response"] == found, "a stream ends with what the answer would have been as a whole"


def test_the_events_of_a_stream_and_their_order() -> None:
    found = streamed(message(*CONTENT, stop_reason="tool_use"), asked(stream=True), pieces=4)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [(event["type"].removeprefix("response."), event.get("output_index")) for event in found] == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("reasoning_summary_part.added", 0),
        ("reasoning_summary_text.delta", 0),
        ("reasoning_summary_text.done", 0),
        ("reasoning_summary_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("output_item.added", 3),
        ("function_call_arguments.delta", 3),
        ("function_call_arguments.done", 3),
        ("output_item.done", 3),
        ("completed", None),
    ]
    parts = [event["content_index"] for event in found if event["type"] == "response.content_part.added"]
    assert parts == [0, 1]
    added = [event["item"] for event in found if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert {item["status"] for item in added} == {"in_progress"}
    assert all(event["item_id"] in {item["id"] for item in added} for event in found if "item_id" in event)
    ended = [event["arguments"] for event in found if event["type"] == "response.function_call_arguments.done"]
    assert ended == ['{"x":1}', "{}"]
    assert found[0]["response"]["usage"] is None
    assert (found[0]["response"]["status"], found[0]["response"]["output"]) == ("in_progress", [])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_stream_cut_at_every_size_says_the_same(monkeypatch: pytest.MonkeyPatch, line_end: bytes) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    given = message(*CONTENT, {"type": "text", "text": "Grüße aus 東京 🗼"}, stop_reason="max_tokens")
    sent = b"".join(
        b"event: %b\ndata: %b\n\n".replace(b"\n", line_end) % (event["type"].encode(), orjson.dumps(event))
        for event in events_of(given, 3)
    )
    told: set[bytes] = set()
    for size in range(1, len(sent) + 1):
        reader = MESSAGES.reader({}, collect_content=True)
        reader.translator = ResponseStream(asked(stream=True))
        told.add(b"".join(reader.feed(sent[at : at + size]) for at in range(0, len(sent), size)) + reader.finish())
        assert reader.complete
    (only,) = told
    assert events(only) == streamed(given, asked(stream=True))
    assert events(only)[-1]["response"]["output"][-1]["content"][0]["text"] == "Grüße aus 東京 🗼"


def test_a_stream_that_fails_says_how_far_it_came() -> None:
    stream = ResponseStream(asked())
    told = stream.event({"type": "message_start", "message": {"id": "msg_1", "usage": USAGE}})
    told += stream.event({"type": "content_block_start", "content_block": {"type": "text", "text": "Half"}})
    found = events(told + stream.error("overloaded", "stream_broken"))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert found[-1]["type"] == "response.failed"
    response = found[-1]["response"]
    assert (response["id"], response["status"]) == ("msg_1", "failed")
    assert response["error"] == {"code": "server_error", "message": "overloaded"}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    (first, _, only) = events(ResponseStream(asked()).error("gone", "timeout"))
    assert (first["type"], only["response"]["error"]["message"]) == ("response.created", "gone")


def test_arguments_that_cannot_be_told_break_the_stream() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    stream = ResponseStream(asked())
    block = {"type": "tool_use", "id": "c", "name": "f", "input": deep}
    stream.event({"type": "content_block_start", "index": 0, "content_block": block})
    with pytest.raises(StreamError, match="nested too deeply"):
        stream.end()
