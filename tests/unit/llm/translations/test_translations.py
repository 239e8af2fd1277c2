"""What a request becomes for a provider that speaks another protocol, field by field, and what cannot be said in it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.translations import TRANSLATIONS, chat_answer, messages_answer

TO_MESSAGES = TRANSLATIONS["chat", "messages"].request
TO_CHAT = TRANSLATIONS["messages", "chat"].request

USER = {"role": "user", "content": "Hello"}
PNG = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
USE = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}}


def messages(*given: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(given or [USER]), **fields}


# ------------------------------------------------------------------------------------------- OpenAI to Anthropic


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"stop": None, "tools": None}, {}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"safety_identifier": "s", "user": "u"}, {"metadata": {"user_id": "s"}}),
        ({"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False}, {}),
        ({"store": True, "metadata": {"a": "b"}, "prompt_cache_key": "k", "service_tier": "auto"}, {}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]},
            {"tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}]},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        ),
        ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"tool_choice": {"type": "none"}}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "tool", "name": "f"}},
        ),
        ({"parallel_tool_calls": False}, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        ({"parallel_tool_calls": True}, {}),
        ({"prompt_variables": {"a": 1}}, {"prompt_variables": {"a": 1}}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking": {"type": "enabled", "budget_tokens": 9}}),
    ],
)
def test_fields_of_openai_as_anthropic_has_them(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    body = messages(**fields)
    before = orjson.dumps(body)
    assert TO_MESSAGES(body) == {"model": "m", "messages": [USER], **wanted}
    assert orjson.dumps(body) == before, "the caller's request is left as it is"


def test_a_conversation_of_openai_as_anthropic_has_it() -> None:
    body = messages(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "No jokes.", "cache_control": {"type": "x"}}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}},
            ],
        },
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "", "tool_calls": None},
        {"role": "assistant", "content": None, "refusal": "No."},
    )
    found = TO_MESSAGES(body)
    assert found["system"] == [
        {"type": "text", "text": "Be brief."},
        {"type": "text", "text": "No jokes.", "cache_control": {"type": "x"}},
    ]
    assert found["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                },
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                    "title": "a.pdf",
                },
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}, USE, {**USE, "id": "call_2"}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "two"}]},
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "assistant", "content": "No."},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (messages(n=2), "n"),
        (messages(seed=1), "seed"),
        (messages(logprobs=True), "logprobs"),
        (messages(presence_penalty=0.5), "presence_penalty"),
        (messages(temperature=1.5), "temperature"),
        (messages(response_format={"type": "json_object"}), "response_format"),
        (messages(reasoning_effort="minimal"), "reasoning_effort"),
        (messages(modalities=["audio"]), "modalities"),
        (messages(of_next_year=1), "of_next_year"),
        (messages(tools=[{"type": "custom", "custom": {"name": "c"}}]), "tools[0]"),
        (messages(tool_choice={"type": "allowed_tools"}), "tool_choice"),
        (messages({"role": "function", "name": "f", "content": "x"}), "messages[0].name"),
        (messages({"role": "critic", "content": "x"}), "messages[0].role"),
        (messages({"role": "user", "name": "Zoë", "content": "x"}), "messages[0].name"),
        (messages({"role": "user", "content": [{"type": "input_audio"}]}), "messages[0].content[0].type"),
        (messages({"role": "user", "content": [{"type": "text", "text": 1}]}), "messages[0].content[0].text"),
        (messages({"role": "user", "content": ["x"]}), "messages[0].content[0]"),
        (messages({"role": "user", "content": 7}), "messages[0].content"),
        (
            messages({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}),
            "messages[0].content[0].file.file_id",
        ),
        (
            messages({"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}),
            "messages[0].content[0].type",
        ),
        (
            messages({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            messages({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[1]"}}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (messages({"role": "assistant", "audio": {"id": "a"}}), "messages[0].audio"),
    ],
)
def test_what_anthropic_cannot_be_told_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        TO_MESSAGES(body)
    assert caught.value.param == param


# ------------------------------------------------------------------------------------------- Anthropic to OpenAI


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        (
            {"temperature": 0.5, "top_p": 0.9, "stop_sequences": ["x"]},
            {"temperature": 0.5, "top_p": 0.9, "stop": ["x"]},
        ),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"stream": True, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}, {"stream": True}),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": SCHEMA, "cache_control": {"type": "x"}}]},
            {"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]},
        ),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        ),
        ({"thinking": {"type": "disabled"}}, {}),
        (
            {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}},
            {
                "reasoning_effort": "low",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
                },
            },
        ),
        ({"prompt_variables": {"a": 1}}, {"prompt_variables": {"a": 1}}),
    ],
)
def test_fields_of_anthropic_as_openai_has_them(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    body = messages(**fields)
    before = orjson.dumps(body)
    assert TO_CHAT(body) == {"model": "m", "messages": [USER], **wanted}
    assert orjson.dumps(body) == before


def test_a_conversation_of_anthropic_as_openai_has_it() -> None:
    body = messages(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                {
                    "type": "document",
                    "title": "a.pdf",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                },
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "plain"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Let me look."},
                USE,
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "one"}]},
                {"type": "text", "text": "And?"},
            ],
        },
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "x"}}, {"type": "text", "text": "Ok."}],
    )
    assert TO_CHAT(body)["messages"] == [
        {"role": "system", "content": "Be brief.\n\nOk."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PNG}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}},
                {"type": "text", "text": "plain"},
            ],
        },
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "user", "content": "And?"},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (messages(top_k=5), "top_k"),
        (messages(thinking={"type": "enabled", "budget_tokens": 1024}), "thinking"),
        (messages(container="c"), "container"),
        (messages(metadata={"user_id": "u", "x": 1}), "metadata.x"),
        (messages(output_config={"task_budget": 1}), "output_config.task_budget"),
        (messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools[0].type"),
        (messages(tool_choice={"type": "some"}), "tool_choice.type"),
        (messages(system=[{"type": "image"}]), "system[0].type"),
        (messages(USER, {"role": "assistant", "content": "Sure:"}), "messages[1]"),
        (messages({"role": "critic", "content": "x"}), "messages[0].role"),
        (messages({"role": "user", "content": [{"type": "search_result"}]}), "messages[0].content[0].type"),
        (
            messages({"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}),
            "messages[0].content[0].source.type",
        ),
        (
            messages({"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}),
            "messages[0].content[0].content[0].type",
        ),
        (
            messages({"role": "assistant", "content": [{"type": "server_tool_use"}]}, USER),
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_openai_cannot_be_told_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        TO_CHAT(body)
    assert caught.value.param == param


def test_what_anthropic_says_beside_its_turns_is_said_to_openai() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "All sales are final."}
    document = {"type": "document", "title": "Terms", "source": source, "citations": {"enabled": False}}
    late = {"role": "system", "content": [{"type": "text", "text": "Be brief now."}]}
    assert TO_CHAT(messages({"role": "user", "content": [document]}, late))["messages"] == [
        {"role": "user", "content": "Terms\n\nAll sales are final."},
        {"role": "system", "content": "Be brief now."},
    ]


@pytest.mark.parametrize("translate", [TO_MESSAGES, TO_CHAT])
@pytest.mark.parametrize("given", ["x", [1], {"role": "user"}])
def test_messages_that_are_none_are_the_callers_fault(translate: Any, given: Any) -> None:
    with pytest.raises(CallerError):
        translate({"model": "m", "messages": given})


# ------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("of_next_year", "stop"),
        (None, "stop"),
    ],
)
def test_why_anthropic_stopped_in_openais_words(stop_reason: str | None, finish_reason: str) -> None:
    found = {"content": [{"type": "text", "text": "a"}], "stop_reason": stop_reason}
    assert messages_answer.answer(found, {})["choices"][0]["finish_reason"] == finish_reason


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
def test_why_openai_stopped_in_anthropics_words(finish_reason: str, stop_reason: str) -> None:
    found = {"choices": [{"message": {"content": "a"}, "finish_reason": finish_reason}]}
    assert chat_answer.answer(found, {})["stop_reason"] == stop_reason


def test_an_answer_of_anthropic_with_all_that_it_can_have() -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 70,
        "cache_creation_input_tokens": 20,
        "output_tokens": 5,
    }
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Let me "},
        {"type": "text", "text": "look."},
        USE,
    ]
    found = messages_answer.answer(
        {"id": "msg_1", "model": "c", "content": content, "stop_reason": "tool_use", "usage": usage}, {}
    )
    assert found["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Let me look.",
        "refusal": None,
        "reasoning_content": "hm",
        "tool_calls": [CALL],
    }
    assert found["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 5,
        "total_tokens": 105,
        "prompt_tokens_details": {"cached_tokens": 70, "cache_write_tokens": 20},
    }
    back = chat_answer.answer(found, {})
    assert back["content"] == [{"type": "text", "text": "Let me look."}, USE]
    assert back["usage"] == usage
    assert back["stop_reason"] == "tool_use"


@pytest.mark.parametrize("arguments", ["{", "[1]", "1"])
def test_a_call_that_anthropic_cannot_be_told_is_no_answer(arguments: str) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(ValueError, match=r"unexpected|not a JSON object"):
        chat_answer.answer({"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}, {})


# ------------------------------------------------------------------------------------------- streams


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def called(index: int, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return {"index": index, "function": function} | ({} if name is None else {"id": f"id-{name}"})


def test_text_then_two_calls_are_three_blocks_one_after_another() -> None:
    stream = chat_answer.MessagesStream({})
    said = b"".join(
        stream.event(event)
        for event in (
            chunk(role="assistant", content=""),
            chunk(content="Wait"),
            chunk(tool_calls=[called(0, "f", '{"a":')]),
            chunk(tool_calls=[called(0, arguments="1}")]),
            chunk(tool_calls=[called(1, "g", "{}")]),
            chunk("tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}},
        )
    )
    said += stream.end()
    events = [orjson.loads(block.split(b"data: ")[1]) for block in said.split(b"\n\n") if block]
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert [event["content_block"]["name"] for event in events if event.get("content_block", {}).get("name")] == [
        "f",
        "g",
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert (events[-2]["usage"]["input_tokens"], events[-2]["usage"]["output_tokens"]) == (9, 3)


def content_of(stream: bytes) -> list[tuple[str, Any]]:
    """The blocks of a stream of Anthropic's, which must follow each other, as a strict client puts them together."""
    found: list[tuple[str, Any]] = []
    parts: list[str] | None = None
    for piece in stream.split(b"\n\n")[:-1]:
        event = orjson.loads(piece.split(b"data: ", 1)[1])
        kind = event["type"]
        if kind.startswith("content_block"):
            assert event["index"] == len(found)
        if kind == "content_block_start":
            assert parts is None, "a block begins while another is open"
            parts, block = [], event["content_block"]
        elif kind == "content_block_delta":
            assert parts is not None, "a delta of no open block"
            parts.append(event["delta"].get("text", event["delta"].get("partial_json")))
        elif kind == "content_block_stop":
            assert parts is not None, "a block ends that is not open"
            text, parts = "".join(parts), None
            found.append(("text", text) if block["type"] == "text" else (block["id"], orjson.loads(text or "{}")))
        else:
            assert parts is None, "an open block"
    return found


@given(data=st.data())
def test_calls_that_a_provider_interleaves_follow_each_other(data: st.DataObject) -> None:
    value = st.text(max_size=5) | st.integers(-5, 5) | st.just("}")
    wanted = data.draw(st.lists(st.dictionaries(st.text(max_size=3), value, max_size=3), min_size=1, max_size=4))
    numbered = data.draw(st.booleans())
    rest: list[list[dict[str, Any]]] = []
    for number, arguments in enumerate(wanted):
        text = orjson.dumps(arguments).decode() if arguments else data.draw(st.sampled_from(["", "{}"]))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        rest.append([called(number, str(number), pieces[0]), *(called(number, None, piece) for piece in pieces[1:])])
    stream = chat_answer.MessagesStream({})
    sent = b""
    said = ""
    order: list[int] = []
    while any(rest):
        if text := data.draw(st.sampled_from(["", "", "Hm"])):
            said += text
            sent += stream.event(chunk(content=text))
        at = data.draw(st.sampled_from([number for number, pieces in enumerate(rest) if pieces]))
        delta = rest[at].pop(0)
        if not numbered:
            delta = {**{k: v for k, v in delta.items() if k != "index"}, "id": f"id-{at}"}
        order.append(at)
        sent += stream.event(chunk(tool_calls=[delta]))
    found = content_of(sent + stream.event(chunk("tool_calls")) + stream.end())
    assert "".join(text for kind, text in found if kind == "text") == said
    calls = [each for each in found if each[0] != "text"]
    assert calls == [(f"id-{number}", wanted[number]) for number in dict.fromkeys(order)]


def test_calls_in_a_row_wait_for_nothing_and_go_on_behind_their_end_never() -> None:
    stream = chat_answer.MessagesStream({})
    assert b"{}" in stream.event(chunk(tool_calls=[called(0, "f", "{}")]))
    assert b'"name":"g"' in stream.event(chunk(tool_calls=[called(1, "g")]))
    assert b"partial_json" not in stream.event(chunk(tool_calls=[called(0, arguments="\n")]))
    with pytest.raises(StreamError):
        stream.event(chunk(tool_calls=[called(0, arguments="1")]))


def test_an_answer_without_a_single_chunk_is_an_empty_message() -> None:
    assert chat_answer.MessagesStream({}).end().startswith(b"event: message_start")


def test_a_call_without_arguments_streams_as_an_empty_object() -> None:
    stream = messages_answer.ChatStream({})
    said = b""
    for index, found in enumerate(({}, {"a": 1}, {})):
        block = {"type": "tool_use", "id": f"call_{index}", "name": "f", "input": found}
        said += stream.event({"type": "content_block_start", "index": index, "content_block": block})
        delta = {"type": "input_json_delta", "partial_json": '{"b":2}' if index == 2 else ""}
        said += stream.event({"type": "content_block_delta", "index": index, "delta": delta})
        said += stream.event({"type": "content_block_stop", "index": index})
    arguments = ["", "", ""]
    for event in said.split(b"\n\n")[:-1]:
        for call in orjson.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]["tool_calls"]:
            arguments[call["index"]] += call["function"]["arguments"]
    assert arguments == ["{}", '{"a":1}', '{"b":2}']


def test_thinking_of_anthropic_streams_as_reasoning_and_usage_only_where_it_was_asked_for() -> None:
    for asked in (False, True):
        stream = messages_answer.ChatStream({"stream_options": {"include_usage": asked}})
        start = {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 4}}}
        said = stream.event(start) + stream.event({"type": "ping"})
        delta = {"type": "thinking_delta", "thinking": "hm"}
        said += stream.event({"type": "content_block_delta", "index": 0, "delta": delta})
        said += stream.event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}})
        said += stream.end()
        assert said.endswith(b"data: [DONE]\n\n")
        assert b'"reasoning_content":"hm"' in said
        assert (b'"prompt_tokens":4' in said) is asked
