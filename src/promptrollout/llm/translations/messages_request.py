"""What requests to Anthropic's Messages API have in common, from whichever of OpenAI's APIs they come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.messages import tool_of
from promptrollout.llm.translations.fields import Field, arguments, only, same, text, understood

API: Final = "Anthropic's API"
EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
# hints to OpenAI's own storage, caches and queues, and how streams are sent
DROPPED: Final = frozenset(
    {"stream_options", "store", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
    | {"service_tier", "metadata"}
)
# of a part or an item: marks of OpenAI's cache, and what is noted of an answer before
NOTES: Final = (
    *("prompt_cache_breakpoint", "annotations", "logprobs", "id", "status", "phase"),
    *("parsed", "parsed_arguments"),  # by the SDKs
)
_CHOICES: Final = {"auto": "auto", "required": "any", "none": "none"}
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)


def add_turn(turns: list[Body], role: str, content: str | list[Body]) -> None:
    """One more turn, or more of the last one: what the assistant says and calls is one turn, and the results of its
    calls must stand together in the turn right after it."""
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
    """The shortest way to say these blocks."""
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


def text_block(part: Body, path: str) -> Body:
    understood(part, path, API, {"type", "text", "cache_control"}, NOTES)
    return cached({"type": "text", "text": text(part.get("text"), f"{path}.text")}, part)


def cached(block: Body, part: Body) -> Body:
    """With the mark of Anthropic's cache that callers may set who know whom they speak to."""
    return block | ({"cache_control": part["cache_control"]} if part.get("cache_control") else {})


def image(url: str) -> Body:
    if data := _DATA_URL.fullmatch(url):
        return {"type": "image", "source": {"type": "base64", "media_type": data[1], "data": data[2]}}
    return {"type": "image", "source": {"type": "url", "url": url}}


def document(file: Body, path: str) -> Body:
    """A file that stands in the request itself. Raises Untranslatable."""
    understood(file, path, API, {"file_data", "filename"})
    data = _DATA_URL.fullmatch(str(file.get("file_data") or ""))
    if data is None or data[1] != "application/pdf":
        raise Untranslatable(path, f"{API} takes a file as file_data, a data: URL of a PDF")
    source = {"type": "base64", "media_type": data[1], "data": data[2]}
    title = {"title": file["filename"]} if isinstance(file.get("filename"), str) else {}
    return {"type": "document", "source": source, **title}


def tool_use(call_id: Any, function: Body, path: str) -> Body:
    """The call of a function. Raises Untranslatable."""
    try:
        given = arguments(function.get("arguments"))
    except (ValueError, TypeError) as error:
        raise Untranslatable(f"{path}.arguments", "must be the text of a JSON object") from error
    return {"type": "tool_use", "id": call_id, "name": function.get("name"), "input": given}


def tool_choice(value: Any, function: Any) -> Body:
    """One of OpenAI's words, or `function`, what else names the only one to be called. Raises Untranslatable."""
    if isinstance(value, str) and value in _CHOICES:
        return {"type": _CHOICES[value]}
    if not isinstance(function, dict):
        raise Untranslatable("tool_choice", "must be auto, required, none, or name a function")
    understood(function, "tool_choice", API, {"type", "name"})
    return {"type": "tool", "name": function.get("name")}


def one_call_at_a_time(body: Body, found: Body) -> None:
    """`parallel_tool_calls: false`, once the choice of tools is known."""
    if body.get("parallel_tool_calls") is False and found.get("tool_choice", {}).get("type") != "none":
        found["tool_choice"] = {"type": "auto", **found.get("tool_choice", {}), "disable_parallel_tool_use": True}


def put_format(asked: Body, found: Body, path: str) -> None:
    """OpenAI's `json_schema`. Its name says nothing, and Anthropic keeps to a schema in any case."""
    understood(asked, path, API, {"type", "schema", "description"}, ("name", "strict"))
    schema = asked.get("schema")
    if isinstance(schema, dict) and asked.get("description"):
        schema = {"description": asked["description"], **schema}
    found.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}


def function_of(tool: Body, function: Body, path: str) -> Body:
    """A tool with a function as Anthropic has it. Raises Untranslatable."""
    understood(function, path, API, {"type", "name", "description", "parameters", "strict", "cache_control"})
    return cached(tool_of({"function": function}, path), tool)


def put_effort(value: Any, found: Body, path: str) -> None:
    if value not in EFFORTS:
        raise Untranslatable(path, f"{API} knows {', '.join(EFFORTS)}")
    found.setdefault("output_config", {})["effort"] = value


def elsewhere(value: Any, found: Body) -> None:
    """A field that is seen to when all else is known."""


def _user_id(value: Any, found: Body) -> None:
    found.setdefault("metadata", {"user_id": str(value)})


def _safety_identifier(value: Any, found: Body) -> None:
    found["metadata"] = {"user_id": str(value)}


def _temperature(value: Any, found: Body) -> None:
    if isinstance(value, int | float) and value > 1:
        raise Untranslatable("temperature", f"{API} takes 0 to 1")
    found["temperature"] = value


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
"""That both of OpenAI's APIs have, and what callers add who know whom they speak to."""
