"""Every field that a caller's SDK knows is told to a provider of another API, or refused by its name; few are dropped.

`tests/clients/test_translated_fields.py` holds these tables against the SDKs' own types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.translations import TRANSLATIONS

Object = dict[str, Any]
PDF = "data:application/pdf;base64,JVBERi0="
PNG = "data:image/png;base64,iVBORw0KGgo="
CACHE = {"type": "ephemeral"}
SCHEMA = {"type": "object"}
HI = {"role": "user", "content": "Hi"}

TOLD, DROPPED, REFUSED = "told", "dropped", "refused"


class Kind:
    """An object that requests are made of: the least of it, where it stands, and what becomes of its fields."""

    def __init__(
        self, path: str, base: Object, request: Callable[[Object], Object], fields: dict[str, tuple[str, Any]]
    ) -> None:
        self.path = path
        self.base = base
        self.request = request
        self.fields = fields


def anthropic(**fields: Any) -> Object:
    return {"model": "m", "max_tokens": 9, "messages": [HI], **fields}


def user_block(block: Object) -> Object:
    return anthropic(messages=[{"role": "user", "content": [block]}])


def assistant_block(block: Object) -> Object:
    return anthropic(messages=[{"role": "assistant", "content": [block]}, HI])


def block(kind: str) -> str:
    return f"messages[0].content[0]{kind}"


CITED = [{"type": "char_location", "cited_text": "x"}]
SOURCE = {"type": "base64", "media_type": "image/png", "data": "AA=="}
PDF_SOURCE = {"type": "base64", "media_type": "application/pdf", "data": "AA=="}
TEXT_SOURCE = {"type": "text", "media_type": "text/plain", "data": "x"}

OF_ANTHROPIC: dict[str, Kind] = {
    "request": Kind(
        "",
        {},
        lambda fields: anthropic(**fields),
        {
            "max_tokens": (TOLD, 5),
            "messages": (TOLD, [{"role": "user", "content": "else"}]),
            "model": (TOLD, "else"),
            "cache_control": (DROPPED, CACHE),
            "container": (REFUSED, "c"),
            "diagnostics": (REFUSED, {"previous_message_id": "m"}),
            "inference_geo": (REFUSED, "eu"),
            "metadata": (TOLD, {"user_id": "u"}),
            "output_config": (TOLD, {"effort": "low"}),
            "service_tier": (DROPPED, "auto"),
            "speed": (REFUSED, "fast"),
            "stop_sequences": (TOLD, ["x"]),
            "system": (TOLD, "x"),
            "thinking": (REFUSED, {"type": "enabled", "budget_tokens": 1024}),
            "tool_choice": (TOLD, {"type": "any"}),
            "tools": (TOLD, [{"name": "f", "input_schema": SCHEMA}]),
            "user_profile_id": (REFUSED, "u"),
            "workspace_id": (REFUSED, "w"),
            "stream": (TOLD, True),
            "temperature": (TOLD, 0.5),
            "top_p": (TOLD, 0.5),
            "top_k": (REFUSED, 5),
        },
    ),
    "message": Kind(
        "messages[0]",
        {"role": "user", "content": "x"},
        lambda message: anthropic(messages=[message]),
        {"role": (TOLD, "system"), "content": (TOLD, "y")},
    ),
    "text": Kind(
        block(""),
        {"type": "text", "text": "x"},
        user_block,
        {
            "type": (REFUSED, "of_next_year"),
            "text": (TOLD, "y"),
            "cache_control": (DROPPED, CACHE),
            "citations": (REFUSED, CITED),
        },
    ),
    "system text": Kind(
        "system[0]",
        {"type": "text", "text": "x"},
        lambda block: anthropic(system=[block]),
        {"text": (TOLD, "y"), "cache_control": (DROPPED, CACHE), "citations": (REFUSED, CITED)},
    ),
    "assistant's text": Kind(
        block(""),
        {"type": "text", "text": "x"},
        assistant_block,
        {
            "text": (TOLD, "y"),
            "cache_control": (DROPPED, CACHE),
            "citations": (DROPPED, CITED),
            "parsed_output": (DROPPED, {"a": 1}),
        },
    ),
    "image": Kind(
        block(""),
        {"type": "image", "source": SOURCE},
        user_block,
        {
            "type": (REFUSED, "video"),
            "source": (TOLD, {"type": "url", "url": "https://example.com/a.png"}),
            "cache_control": (DROPPED, CACHE),
            "transformations": (REFUSED, {"oversized_image": "error"}),
        },
    ),
    "image's source": Kind(
        block(".source"),
        SOURCE,
        lambda source: user_block({"type": "image", "source": source}),
        {"type": (REFUSED, "file"), "media_type": (TOLD, "image/gif"), "data": (TOLD, "BB==")},
    ),
    "document": Kind(
        block(""),
        {"type": "document", "source": PDF_SOURCE},
        user_block,
        {
            "type": (REFUSED, "search_result"),
            "source": (TOLD, TEXT_SOURCE),
            "cache_control": (DROPPED, CACHE),
            "citations": (REFUSED, {"enabled": True}),
            "context": (REFUSED, "The contract of 2024."),
            "title": (TOLD, "Contract"),
        },
    ),
    "text document": Kind(
        block(""),
        {"type": "document", "source": TEXT_SOURCE},
        user_block,
        {"citations": (REFUSED, {"enabled": True}), "context": (REFUSED, "x"), "title": (TOLD, "Contract")},
    ),
    "tool_use": Kind(
        block(""),
        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
        assistant_block,
        {
            "type": (REFUSED, "server_tool_use"),
            "id": (TOLD, "d"),
            "name": (TOLD, "g"),
            "input": (TOLD, {"a": 1}),
            "cache_control": (DROPPED, CACHE),
            "caller": (REFUSED, {"type": "code_execution_20260120", "tool_id": "t"}),
            "toolset_name": (REFUSED, "browser"),
        },
    ),
    "tool_result": Kind(
        block(""),
        {"type": "tool_result", "tool_use_id": "c", "content": "x"},
        user_block,
        {
            "tool_use_id": (TOLD, "d"),
            "type": (REFUSED, "web_search_tool_result"),
            "content": (TOLD, [{"type": "text", "text": "y"}]),
            "cache_control": (DROPPED, CACHE),
            "is_error": (DROPPED, True),
            "toolset_name": (REFUSED, "browser"),
        },
    ),
    "tool": Kind(
        "tools[0]",
        {"name": "f", "input_schema": SCHEMA},
        lambda tool: anthropic(tools=[tool]),
        {
            "name": (TOLD, "g"),
            "input_schema": (TOLD, {"type": "object", "title": "x"}),
            "allowed_callers": (REFUSED, ["code_execution_20260120"]),
            "cache_control": (DROPPED, CACHE),
            "defer_loading": (REFUSED, True),
            "description": (TOLD, "d"),
            "eager_input_streaming": (DROPPED, True),
            "input_examples": (REFUSED, [{"a": 1}]),
            "strict": (TOLD, True),
            "type": (REFUSED, "bash_20250124"),
        },
    ),
    "tool_choice": Kind(
        "tool_choice",
        {"type": "tool", "name": "f"},
        lambda choice: anthropic(tool_choice=choice),
        {"type": (REFUSED, "some"), "name": (TOLD, "g"), "disable_parallel_tool_use": (TOLD, True)},
    ),
    "metadata": Kind("metadata", {}, lambda found: anthropic(metadata=found), {"user_id": (TOLD, "u")}),
    "output_config": Kind(
        "output_config",
        {},
        lambda config: anthropic(output_config=config),
        {"effort": (TOLD, "low"), "format": (TOLD, {"type": "json_schema", "schema": SCHEMA})},
    ),
    "format": Kind(
        "output_config.format",
        {"type": "json_schema", "schema": SCHEMA},
        lambda found: anthropic(output_config={"format": found}),
        {"schema": (TOLD, {"type": "array"}), "type": (REFUSED, "grammar")},
    ),
}


def chat(**fields: Any) -> Object:
    return {"model": "m", "messages": [HI], **fields}


def part(found: Object) -> Object:
    return chat(messages=[{"role": "user", "content": [found]}])


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MARK = {"mode": "explicit"}

OF_CHAT: dict[str, Kind] = {
    "request": Kind(
        "",
        {},
        lambda fields: chat(**fields),
        {
            "messages": (TOLD, [{"role": "user", "content": "else"}]),
            "model": (TOLD, "else"),
            "audio": (REFUSED, {"voice": "v", "format": "wav"}),
            "frequency_penalty": (REFUSED, 0.5),
            "function_call": (REFUSED, "auto"),
            "functions": (REFUSED, [{"name": "f"}]),
            "logit_bias": (REFUSED, {"1": 2}),
            "logprobs": (REFUSED, True),
            "max_completion_tokens": (TOLD, 5),
            "max_tokens": (TOLD, 5),
            "metadata": (DROPPED, {"a": "b"}),
            "modalities": (REFUSED, ["audio"]),
            "moderation": (REFUSED, {"model": "m"}),
            "n": (REFUSED, 2),
            "parallel_tool_calls": (TOLD, False),
            "prediction": (REFUSED, {"type": "content", "content": "x"}),
            "presence_penalty": (REFUSED, 0.5),
            "prompt_cache_key": (DROPPED, "k"),
            "prompt_cache_options": (DROPPED, {"mode": "implicit"}),
            "prompt_cache_retention": (DROPPED, "24h"),
            "reasoning_effort": (TOLD, "low"),
            "response_format": (TOLD, {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}),
            "safety_identifier": (TOLD, "s"),
            "seed": (REFUSED, 1),
            "service_tier": (DROPPED, "auto"),
            "stop": (TOLD, "x"),
            "store": (DROPPED, True),
            "stream_options": (DROPPED, {"include_usage": True}),
            "temperature": (TOLD, 0.5),
            "tool_choice": (TOLD, "required"),
            "tools": (TOLD, [{"type": "function", "function": {"name": "f"}}]),
            "top_logprobs": (REFUSED, 3),
            "top_p": (TOLD, 0.5),
            "user": (TOLD, "u"),
            "verbosity": (REFUSED, "low"),
            "web_search_options": (REFUSED, {"search_context_size": "low"}),
            "stream": (TOLD, True),
        },
    ),
    "message": Kind(
        "messages[0]",
        {"role": "user", "content": "x"},
        lambda message: chat(messages=[message]),
        {"role": (TOLD, "system"), "content": (TOLD, "y"), "name": (REFUSED, "Zoe")},
    ),
    "assistant": Kind(
        "messages[0]",
        {"role": "assistant", "content": "x"},
        lambda message: chat(messages=[message, HI]),
        {
            "role": (TOLD, "user"),
            "audio": (REFUSED, {"id": "a"}),
            "content": (TOLD, [{"type": "refusal", "refusal": "No."}]),
            "function_call": (REFUSED, {"name": "f", "arguments": "{}"}),
            "name": (REFUSED, "Zoe"),
            "refusal": (TOLD, "No."),
            "tool_calls": (TOLD, [CALL]),
            # what answers have
            "annotations": (DROPPED, [{"type": "url_citation"}]),
            "reasoning_content": (DROPPED, "hm"),
            "parsed": (DROPPED, {"a": 1}),
            "thinking_blocks": (DROPPED, [{"type": "thinking", "thinking": "hm", "signature": "s"}]),
            "reasoning_details": (DROPPED, [{"type": "reasoning.text", "text": "hm"}]),
            "provider_specific_fields": (DROPPED, {"a": 1}),
        },
    ),
    "tool message": Kind(
        "messages[0]",
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        lambda message: chat(messages=[message]),
        {
            "content": (TOLD, "y"),
            "role": (REFUSED, "function"),
            "tool_call_id": (TOLD, "d"),
            "name": (DROPPED, "f"),
        },
    ),
    "text": Kind(
        block(""),
        {"type": "text", "text": "x"},
        part,
        {
            "text": (TOLD, "y"),
            "type": (REFUSED, "input_audio"),
            "prompt_cache_breakpoint": (DROPPED, MARK),
            "cache_control": (TOLD, CACHE),
        },
    ),
    "image": Kind(
        block(""),
        {"type": "image_url", "image_url": {"url": PNG}},
        part,
        {
            "image_url": (TOLD, {"url": "https://example.com/a.png"}),
            "type": (REFUSED, "input_audio"),
            "prompt_cache_breakpoint": (DROPPED, MARK),
            "cache_control": (TOLD, CACHE),
        },
    ),
    "image_url": Kind(
        block(".image_url"),
        {"url": PNG},
        lambda url: part({"type": "image_url", "image_url": url}),
        {"url": (TOLD, "https://example.com/a.png"), "detail": (DROPPED, "high")},
    ),
    "file part": Kind(
        block(""),
        {"type": "file", "file": {"file_data": PDF}},
        part,
        {
            "file": (TOLD, {"file_data": PDF, "filename": "a.pdf"}),
            "type": (REFUSED, "input_audio"),
            "prompt_cache_breakpoint": (DROPPED, MARK),
            "cache_control": (TOLD, CACHE),
        },
    ),
    "file": Kind(
        block(".file"),
        {"file_data": PDF},
        lambda file: part({"type": "file", "file": file}),
        {"file_data": (TOLD, PDF.replace("J", "K")), "file_id": (REFUSED, "f"), "filename": (TOLD, "a.pdf")},
    ),
    "refusal": Kind(
        block(""),
        {"type": "refusal", "refusal": "No."},
        lambda found: chat(messages=[{"role": "assistant", "content": [found]}, HI]),
        {"refusal": (TOLD, "Never."), "type": (REFUSED, "image_url")},
    ),
    "call": Kind(
        "messages[0].tool_calls[0]",
        CALL,
        lambda call: chat(messages=[{"role": "assistant", "tool_calls": [call]}, HI]),
        {"id": (TOLD, "d"), "function": (TOLD, {"name": "g", "arguments": "{}"}), "type": (DROPPED, None)},
    ),
    "called function": Kind(
        "messages[0].tool_calls[0].function",
        {"name": "f", "arguments": "{}"},
        lambda function: chat(messages=[{"role": "assistant", "tool_calls": [{**CALL, "function": function}]}, HI]),
        {"arguments": (TOLD, '{"a":1}'), "name": (TOLD, "g")},
    ),
    "tool": Kind(
        "tools[0]",
        {"type": "function", "function": {"name": "f"}},
        lambda tool: chat(tools=[tool]),
        {"function": (TOLD, {"name": "g"}), "type": (DROPPED, None), "cache_control": (TOLD, CACHE)},
    ),
    "function": Kind(
        "tools[0].function",
        {"name": "f"},
        lambda function: chat(tools=[{"type": "function", "function": function}]),
        {
            "name": (TOLD, "g"),
            "description": (TOLD, "d"),
            "parameters": (TOLD, {"type": "object", "title": "x"}),
            "strict": (TOLD, True),
        },
    ),
    "tool_choice": Kind(
        "tool_choice",
        {"type": "function", "function": {"name": "f"}},
        lambda choice: chat(tool_choice=choice),
        {"function": (TOLD, {"name": "g"}), "type": (REFUSED, "custom")},
    ),
    "schema": Kind(
        "response_format.json_schema",
        {"name": "n", "schema": SCHEMA},
        lambda schema: chat(response_format={"type": "json_schema", "json_schema": schema}),
        {
            "name": (DROPPED, "else"),
            "description": (TOLD, "d"),
            "schema": (TOLD, {"type": "array"}),
            "strict": (DROPPED, True),
        },
    ),
}


def response(**fields: Any) -> Object:
    return {"model": "m", "input": "Hi", **fields}


def item(found: Object) -> Object:
    return response(input=[found, HI])


def input_part(found: Object) -> Object:
    return item({"role": "user", "content": [found]})


INPUT = "input[0].content[0]"
CALLER = {"type": "program", "caller_id": "p"}

OF_RESPONSES: dict[str, Kind] = {
    "request": Kind(
        "",
        {},
        lambda fields: response(**fields),
        {
            "background": (REFUSED, True),
            "context_management": (REFUSED, [{"type": "compaction"}]),
            "conversation": (REFUSED, "conv_1"),
            "include": (REFUSED, ["message.output_text.logprobs"]),
            "input": (TOLD, "else"),
            "instructions": (TOLD, "Be brief."),
            "max_output_tokens": (TOLD, 5),
            "max_tool_calls": (DROPPED, 3),
            "metadata": (DROPPED, {"a": "b"}),
            "model": (TOLD, "else"),
            "moderation": (REFUSED, {"model": "m"}),
            "parallel_tool_calls": (TOLD, False),
            "previous_response_id": (REFUSED, "resp_1"),
            "prompt": (REFUSED, {"id": "p"}),
            "prompt_cache_key": (DROPPED, "k"),
            "prompt_cache_options": (DROPPED, {"mode": "implicit"}),
            "prompt_cache_retention": (DROPPED, "24h"),
            "reasoning": (TOLD, {"effort": "low"}),
            "safety_identifier": (TOLD, "s"),
            "service_tier": (DROPPED, "auto"),
            "store": (DROPPED, True),
            "stream_options": (DROPPED, {"include_obfuscation": False}),
            "temperature": (TOLD, 0.5),
            "text": (TOLD, {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}),
            "tool_choice": (TOLD, "required"),
            "tools": (TOLD, [{"type": "function", "name": "f", "parameters": SCHEMA}]),
            "top_logprobs": (REFUSED, 3),
            "top_p": (TOLD, 0.5),
            "truncation": (REFUSED, "auto"),
            "user": (TOLD, "u"),
            "stream": (TOLD, True),
        },
    ),
    "message": Kind(
        "input[0]",
        {"role": "user", "content": "x"},
        item,
        {
            "content": (TOLD, "y"),
            "role": (TOLD, "system"),
            "phase": (DROPPED, "commentary"),
            "type": (REFUSED, "item_reference"),
            "status": (DROPPED, "completed"),
            "id": (DROPPED, "msg_1"),
        },
    ),
    "text": Kind(
        INPUT,
        {"type": "input_text", "text": "x"},
        input_part,
        {
            "text": (TOLD, "y"),
            "type": (REFUSED, "input_audio"),
            "prompt_cache_breakpoint": (DROPPED, MARK),
            "cache_control": (TOLD, CACHE),
        },
    ),
    "output text": Kind(
        INPUT,
        {"type": "output_text", "text": "x"},
        lambda found: item({"role": "assistant", "content": [found]}),
        {
            "annotations": (DROPPED, [{"type": "url_citation"}]),
            "text": (TOLD, "y"),
            "type": (REFUSED, "input_image"),
            "logprobs": (DROPPED, [{"token": "x"}]),
            "parsed": (DROPPED, {"a": 1}),
        },
    ),
    "refusal": Kind(
        INPUT,
        {"type": "refusal", "refusal": "No."},
        lambda found: item({"role": "assistant", "content": [found]}),
        {"refusal": (TOLD, "Never."), "type": (REFUSED, "input_image")},
    ),
    "image": Kind(
        INPUT,
        {"type": "input_image", "image_url": PNG},
        input_part,
        {
            "detail": (DROPPED, "high"),
            "type": (REFUSED, "input_audio"),
            "file_id": (REFUSED, "f"),
            "image_url": (TOLD, "https://example.com/a.png"),
            "prompt_cache_breakpoint": (DROPPED, MARK),
        },
    ),
    "file": Kind(
        INPUT,
        {"type": "input_file", "file_data": PDF},
        input_part,
        {
            "type": (REFUSED, "input_audio"),
            "detail": (DROPPED, "high"),
            "file_data": (TOLD, PDF.replace("J", "K")),
            "file_id": (REFUSED, "f"),
            "filename": (TOLD, "a.pdf"),
            "prompt_cache_breakpoint": (DROPPED, MARK),
        },
    ),
    "file by its URL": Kind(
        INPUT,
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        input_part,
        {"file_url": (TOLD, "https://example.com/b.pdf"), "filename": (TOLD, "a.pdf"), "file_data": (REFUSED, PDF)},
    ),
    "call": Kind(
        "input[0]",
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        item,
        {
            "arguments": (TOLD, '{"a":1}'),
            "call_id": (TOLD, "d"),
            "name": (TOLD, "g"),
            "type": (REFUSED, "custom_tool_call"),
            "id": (DROPPED, "fc_1"),
            "caller": (REFUSED, CALLER),
            "namespace": (REFUSED, "crm"),
            "status": (DROPPED, "completed"),
            "parsed_arguments": (DROPPED, {"a": 1}),
        },
    ),
    "result": Kind(
        "input[0]",
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        item,
        {
            "call_id": (TOLD, "d"),
            "output": (TOLD, "y"),
            "type": (REFUSED, "custom_tool_call_output"),
            "id": (DROPPED, "fc_1"),
            "caller": (REFUSED, CALLER),
            "name": (DROPPED, "f"),
            "namespace": (REFUSED, "crm"),
            "status": (DROPPED, "completed"),
        },
    ),
    "tool": Kind(
        "tools[0]",
        {"type": "function", "name": "f", "parameters": SCHEMA},
        lambda tool: response(tools=[tool]),
        {
            "name": (TOLD, "g"),
            "parameters": (TOLD, {"type": "object", "title": "x"}),
            "strict": (TOLD, True),
            "type": (REFUSED, "custom"),
            "allowed_callers": (REFUSED, ["programmatic"]),
            "defer_loading": (REFUSED, True),
            "description": (TOLD, "d"),
            "output_schema": (REFUSED, SCHEMA),
        },
    ),
    "tool_choice": Kind(
        "tool_choice",
        {"type": "function", "name": "f"},
        lambda choice: response(tool_choice=choice),
        {"name": (TOLD, "g"), "type": (REFUSED, "custom")},
    ),
    "reasoning": Kind(
        "reasoning",
        {},
        lambda reasoning: response(reasoning=reasoning),
        {
            "context": (REFUSED, "auto"),
            "effort": (TOLD, "low"),
            "generate_summary": (DROPPED, "auto"),
            "mode": (REFUSED, "pro"),
            "summary": (DROPPED, "auto"),
        },
    ),
    "text config": Kind(
        "text",
        {},
        lambda text: response(text=text),
        {"format": (TOLD, {"type": "json_schema", "schema": SCHEMA}), "verbosity": (REFUSED, "low")},
    ),
    "schema": Kind(
        "text.format",
        {"type": "json_schema", "name": "n", "schema": SCHEMA},
        lambda found: response(text={"format": found}),
        {
            "name": (DROPPED, "else"),
            "schema": (TOLD, {"type": "object", "title": "x"}),
            "type": (REFUSED, "json_object"),
            "description": (TOLD, "d"),
            "strict": (DROPPED, True),
        },
    ),
}

TABLES = {
    ("messages", "chat"): OF_ANTHROPIC,
    ("chat", "messages"): OF_CHAT,
    ("responses", "messages"): OF_RESPONSES,
}
ROWS = [
    pytest.param(way, kind, name, *fate, id=f"{way[0]}-{of}-{name}")
    for way, kinds in TABLES.items()
    for of, kind in kinds.items()
    for name, fate in kind.fields.items()
]


@pytest.mark.parametrize(("way", "kind", "name", "fate", "value"), ROWS)
def test_no_field_is_dropped_that_says_something(
    way: tuple[str, str], kind: Kind, name: str, fate: str, value: Any
) -> None:
    translate = TRANSLATIONS[way].request
    without = translate(kind.request(kind.base))
    body = kind.request({**kind.base, name: value})
    before = orjson.dumps(body)
    if fate == REFUSED:
        with pytest.raises((Untranslatable, CallerError)) as caught:
            translate(body)
        param = getattr(caught.value, "param", "")
        assert param.startswith(kind.path) or kind.path.startswith(param)
        assert param.endswith(name) or name in kind.base, "it is named"
    else:
        assert (translate(body) != without) is (fate == TOLD)
    assert orjson.dumps(body) == before


@pytest.mark.parametrize(
    ("way", "kind"),
    [pytest.param(way, kind, id=f"{way[0]}-{of}") for way, kinds in TABLES.items() for of, kind in kinds.items()],
)
def test_a_field_that_nobody_knows_yet_is_refused_by_its_name(way: tuple[str, str], kind: Kind) -> None:
    with pytest.raises(Untranslatable) as caught:
        TRANSLATIONS[way].request(kind.request({**kind.base, "of_next_year": {"a": 1}}))
    assert caught.value.param == f"{kind.path}.of_next_year".removeprefix(".")
    assert TRANSLATIONS[way].request(kind.request({**kind.base, "of_next_year": None}))
