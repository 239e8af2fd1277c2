"""OpenAI's chat requests for a provider that speaks Anthropic's Messages API."""

from __future__ import annotations

import re
from typing import Any, Final

from promptrollout.gateway.errors import Untranslatable
from promptrollout.gateway.protocols.chat import history_of
from promptrollout.gateway.protocols.messages import tool_of
from promptrollout.gateway.render import SYSTEM_ROLES, Body
from promptrollout.gateway.translations.fields import Field, arguments, objects, only, same, text, translate

_API: Final = "Anthropic's API"
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_CHOICES: Final = {"auto": "auto", "required": "any", "none": "none"}
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)
# hints to OpenAI's own storage, caches and queues, and the usage of streams, which is always known
_DROPPED: Final = frozenset(
    {"stream_options", "store", "prompt_cache_key", "prompt_cache_retention", "service_tier", "metadata"}
)


def request(body: Body) -> Body:
    """Raises Untranslatable, CallerError. The limit on tokens that Anthropic wants is seen to where the prompt is put
    in."""
    found = translate(body, _FIELDS, _DROPPED, _API)
    system, messages = _messages(history_of(body))
    if system:
        found["system"] = system
    found["messages"] = messages
    if body.get("parallel_tool_calls") is False and found.get("tool_choice", {}).get("type") != "none":
        found["tool_choice"] = {"type": "auto", **found.get("tool_choice", {}), "disable_parallel_tool_use": True}
    return found


def _messages(history: list[Body]) -> tuple[list[Body], list[Body]]:
    """All system messages, which have a place of their own, and the turns."""
    system: list[Body] = []
    turns: list[Body] = []
    for index, message in enumerate(history):
        path, role = f"messages[{index}]", message.get("role")
        if message.get("name") is not None and role != "tool":
            raise Untranslatable(f"{path}.name", f"{_API} has nothing like it")
        if role in SYSTEM_ROLES:
            system.extend(_texts(message.get("content"), f"{path}.content"))
        elif role == "user":
            _add(turns, "user", _user(message.get("content"), f"{path}.content"))
        elif role == "assistant":
            _add(turns, "assistant", _assistant(message, path))
        elif role == "tool":
            _add(turns, "user", [_result(message, path)])
        else:
            raise Untranslatable(f"{path}.role", "must be system, developer, user, assistant or tool")
    return system, turns


def _add(turns: list[Body], role: str, content: str | list[Body]) -> None:
    """One more turn. Results of calls must stand together, in the turn right after the calls."""
    if not content:
        return
    if turns and turns[-1]["role"] == role == "user":
        before = turns[-1]["content"]
        if isinstance(before, list) and before[-1]["type"] == "tool_result":
            before.extend([{"type": "text", "text": content}] if isinstance(content, str) else content)
            return
    turns.append({"role": role, "content": content})


def _texts(content: Any, path: str) -> list[Body]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part, at in objects(content, path):
        if part.get("type") != "text":
            raise Untranslatable(f"{at}.type", "only text can stand here")
        blocks.append(_text_block(part, at))
    return blocks


def _text_block(part: Body, path: str) -> Body:
    block: Body = {"type": "text", "text": text(part.get("text"), f"{path}.text")}
    return block | ({"cache_control": part["cache_control"]} if part.get("cache_control") else {})


def _user(content: Any, path: str) -> str | list[Body]:
    if isinstance(content, str):
        return content
    return [_part(part, at) for part, at in objects(content, path)]


def _part(part: Body, path: str) -> Body:
    kind = part.get("type")
    if kind == "text":
        return _text_block(part, path)
    given = part.get(str(kind))
    if kind == "image_url" and isinstance(given, dict):
        return {"type": "image", "source": _source(text(given.get("url"), f"{path}.image_url.url"))}
    if kind == "file" and isinstance(given, dict):
        data = _DATA_URL.fullmatch(str(given.get("file_data") or ""))
        if data is None or data[1] != "application/pdf":
            raise Untranslatable(f"{path}.file", f"{_API} takes a file as file_data, a data: URL of a PDF")
        source = {"type": "base64", "media_type": data[1], "data": data[2]}
        return {"type": "document", "source": source} | (
            {"title": given["filename"]} if isinstance(given.get("filename"), str) else {}
        )
    raise Untranslatable(f"{path}.type", f"{_API} has nothing like {str(kind)[:100]}")


def _source(url: str) -> Body:
    if data := _DATA_URL.fullmatch(url):
        return {"type": "base64", "media_type": data[1], "data": data[2]}
    return {"type": "url", "url": url}


def _assistant(message: Body, path: str) -> str | list[Body]:
    if message.get("audio") is not None:
        raise Untranslatable(f"{path}.audio", f"{_API} has nothing like it")
    if message.get("function_call") is not None:
        raise Untranslatable(f"{path}.function_call", "use tool_calls")
    content = message.get("content")
    blocks: list[Body] = []
    if isinstance(content, list):
        for part, at in objects(content, f"{path}.content"):
            said = {"type": "text", "text": part.get("refusal")} if part.get("type") == "refusal" else part
            blocks.extend(_texts([said], at))
    elif content:
        blocks.extend(_texts(content, f"{path}.content"))
    if message.get("refusal"):
        blocks.extend(_texts(message["refusal"], f"{path}.refusal"))
    if message.get("tool_calls") is not None:
        for call, at in objects(message["tool_calls"], f"{path}.tool_calls"):
            blocks.append(_call(call, at))
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


def _call(call: Body, path: str) -> Body:
    function = call.get("function")
    if not isinstance(function, dict):
        raise Untranslatable(f"{path}.function", "only calls of functions can be told to Anthropic's API")
    try:
        given = arguments(function.get("arguments"))
    except (ValueError, TypeError) as error:
        raise Untranslatable(f"{path}.function.arguments", "must be the text of a JSON object") from error
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given}


def _result(message: Body, path: str) -> Body:
    content = message.get("content")
    if not isinstance(content, str):
        content = _texts(content, f"{path}.content")
    return {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": content}


def _stop(value: Any, found: Body) -> None:
    found["stop_sequences"] = [value] if isinstance(value, str) else value


def _user_id(value: Any, found: Body) -> None:
    found.setdefault("metadata", {"user_id": str(value)})


def _safety_identifier(value: Any, found: Body) -> None:
    found["metadata"] = {"user_id": str(value)}


def _temperature(value: Any, found: Body) -> None:
    if isinstance(value, int | float) and value > 1:
        raise Untranslatable("temperature", f"{_API} takes 0 to 1")
    found["temperature"] = value


def _tools(value: Any, found: Body) -> None:
    found["tools"] = [tool_of(tool, path) for tool, path in objects(value, "tools")]


def _tool_choice(value: Any, found: Body) -> None:
    if isinstance(value, str) and value in _CHOICES:
        found["tool_choice"] = {"type": _CHOICES[value]}
        return
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise Untranslatable("tool_choice", "must be auto, required, none, or name a function")
    found["tool_choice"] = {"type": "tool", "name": function.get("name")}


def _response_format(value: Any, found: Body) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    schema = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, dict):
        raise Untranslatable("response_format", f"{_API} knows text and json_schema")
    found.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema.get("schema")}


def _reasoning_effort(value: Any, found: Body) -> None:
    if value not in _EFFORTS:
        raise Untranslatable("reasoning_effort", f"{_API} knows {', '.join(_EFFORTS)}")
    found.setdefault("output_config", {})["effort"] = value


def _max_tokens(value: Any, found: Body) -> None:
    found.setdefault("max_tokens", value)


def _in_messages(value: Any, found: Body) -> None:
    """Seen to when all else is known."""


_FIELDS: Final[dict[str, Field]] = {
    "model": same("model"),
    "messages": _in_messages,
    "max_completion_tokens": same("max_tokens"),
    "max_tokens": _max_tokens,
    "temperature": _temperature,
    "top_p": same("top_p"),
    "top_k": same("top_k"),
    "stop": _stop,
    "stream": same("stream"),
    "safety_identifier": _safety_identifier,
    "user": _user_id,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": only("parallel_tool_calls", (True, False), _API),
    "response_format": _response_format,
    "reasoning_effort": _reasoning_effort,
    "thinking": same("thinking"),
    "cache_control": same("cache_control"),
    # what OpenAI's SDKs and frameworks send though it asks for nothing
    "n": only("n", (1,), _API),
    "presence_penalty": only("presence_penalty", (0,), _API),
    "frequency_penalty": only("frequency_penalty", (0,), _API),
    "logit_bias": only("logit_bias", ({},), _API),
    "logprobs": only("logprobs", (False,), _API),
    "modalities": only("modalities", (["text"],), _API),
}
