"""Shared by the translations from OpenAI's APIs to requests of Anthropic's Messages API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.messages import tool_of
from promptrollout.llm.translations.fields import Field, arguments, only, require_supported, same, text

API: Final = "Anthropic's API"
EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
# hints for OpenAI's own storage, caches and queues, and options of streams
DROPPED: Final = frozenset(
    {"stream_options", "store", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
    | {"service_tier", "metadata"}
)
# of a part or an item: marks of OpenAI's cache, and notes on an earlier answer
NOTES: Final = (
    *("prompt_cache_breakpoint", "annotations", "logprobs", "id", "status", "phase"),
    *("parsed", "parsed_arguments"),  # by the SDKs
)
_CHOICES: Final = {"auto": "auto", "required": "any", "none": "none"}
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)


def add_turn(turns: list[Body], role: str, content: str | list[Body]) -> None:
    """Add a turn, or extend the last one: the assistant's text and tool calls are one turn, and the results of its
    calls must all be in the turn after it."""
    if not content:
        return
    if turns and turns[-1]["role"] == role:
        before = turns[-1]["content"]
        if role == "assistant" and isinstance(before, str):
            before = turns[-1]["content"] = [{"type": "text", "text": before}]
        if isinstance(before, list) and (role == "assistant" or before[-1]["type"] == "tool_result"):
            before.extend([{"type": "text", "text": content}] if isinstance(content, str) else content)
            return
    turns.append({"role": role, "content": content})


def plain(blocks: list[Body]) -> str | list[Body]:
    """The blocks, as a plain text if they are just one."""
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


def text_block(part: Body, path: str) -> Body:
    require_supported(part, path, API, {"type", "text", "cache_control"}, NOTES)
    return cached({"type": "text", "text": text(part.get("text"), f"{path}.text")}, part)


def cached(block: Body, part: Body) -> Body:
    """The block with `cache_control`, which a caller may set if it knows that the provider is Anthropic's."""
    return block | ({"cache_control": part["cache_control"]} if part.get("cache_control") else {})


def image(url: str) -> Body:
    if data := _DATA_URL.fullmatch(url):
        return {"type": "image", "source": {"type": "base64", "media_type": data[1], "data": data[2]}}
    return {"type": "image", "source": {"type": "url", "url": url}}


def document(file: Body, path: str) -> Body:
    """A file whose content is in the request. Raises Untranslatable."""
    require_supported(file, path, API, {"file_data", "filename"})
    data = _DATA_URL.fullmatch(str(file.get("file_data") or ""))
    if data is None or data[1] != "application/pdf":
        raise Untranslatable(path, f"{API} supports only files in file_data, as a data: URL of a PDF")
    source = {"type": "base64", "media_type": data[1], "data": data[2]}
    title = {"title": file["filename"]} if isinstance(file.get("filename"), str) else {}
    return {"type": "document", "source": source, **title}


def tool_use(call_id: Any, function: Body, path: str) -> Body:
    """A call of a function. Raises Untranslatable."""
    try:
        parsed = arguments(function.get("arguments"))
    except (ValueError, TypeError) as error:
        raise Untranslatable(f"{path}.arguments", "must be the text of a JSON object") from error
    return {"type": "tool_use", "id": call_id, "name": function.get("name"), "input": parsed}


def tool_choice(value: Any, function: Any) -> Body:
    """OpenAI's choice by a word, or `function`, which names the only one to call. Raises Untranslatable."""
    if isinstance(value, str) and value in _CHOICES:
        return {"type": _CHOICES[value]}
    if not isinstance(function, dict):
        raise Untranslatable("tool_choice", "must be auto, required, none, or name a function")
    require_supported(function, "tool_choice", API, {"type", "name"})
    return {"type": "tool", "name": function.get("name")}


def one_call_at_a_time(body: Body, translated: Body) -> None:
    """Translate `parallel_tool_calls: false`, once the tool choice is known."""
    if body.get("parallel_tool_calls") is False and translated.get("tool_choice", {}).get("type") != "none":
        translated["tool_choice"] = {
            "type": "auto",
            **translated.get("tool_choice", {}),
            "disable_parallel_tool_use": True,
        }


def put_format(wanted: Body, translated: Body, path: str) -> None:
    """Translate OpenAI's `json_schema`. `name` and `strict` are dropped: Anthropic is always strict."""
    require_supported(wanted, path, API, {"type", "schema", "description"}, ("name", "strict"))
    schema = wanted.get("schema")
    if isinstance(schema, dict) and wanted.get("description"):
        schema = {"description": wanted["description"], **schema}
    translated.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}


def function_of(tool: Body, function: Body, path: str) -> Body:
    """A function as a tool of Anthropic's API. Raises Untranslatable."""
    require_supported(function, path, API, {"type", "name", "description", "parameters", "strict", "cache_control"})
    return cached(tool_of({"function": function}, path), tool)


def put_effort(value: Any, translated: Body, path: str) -> None:
    if value not in EFFORTS:
        raise Untranslatable(path, f"{API} supports {', '.join(EFFORTS)}")
    translated.setdefault("output_config", {})["effort"] = value


def handled_elsewhere(value: Any, translated: Body) -> None:
    """A field that is translated after all others."""


def _user_id(value: Any, translated: Body) -> None:
    translated.setdefault("metadata", {"user_id": str(value)})


def _safety_identifier(value: Any, translated: Body) -> None:
    translated["metadata"] = {"user_id": str(value)}


def _temperature(value: Any, translated: Body) -> None:
    if isinstance(value, int | float) and value > 1:
        raise Untranslatable("temperature", f"{API} supports 0 to 1")
    translated["temperature"] = value


FIELDS: Final[Mapping[str, Field]] = {
    "model": same("model"),
    "temperature": _temperature,
    "top_p": same("top_p"),
    "top_k": same("top_k"),
    "stream": same("stream"),
    "safety_identifier": _safety_identifier,
    "user": _user_id,
    "parallel_tool_calls": only("parallel_tool_calls", (True, False), API),
    "thinking": same("thinking"),
    "cache_control": same("cache_control"),
}
"""Fields of both of OpenAI's APIs, and fields of Anthropic's that callers may add."""
