"""Anthropic's requests for a provider with OpenAI's chat API."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.chat import history_of
from promptrollout.llm.translations.fields import Field, dumped, objects, only, require_supported, same, text, translate

_API: Final = "OpenAI's chat API"
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
# hints for Anthropic's own cache and queues
_DROPPED: Final = frozenset({"cache_control", "service_tier"})
_CACHE: Final = ("cache_control",)
_TEXT: Final = {"type", "text"}
_OF_SOURCES: Final = {"base64": {"type", "media_type", "data"}, "text": {"type", "media_type", "data"}}


def request(body: Body) -> Body:
    """Raises Untranslatable, CallerError."""
    translated = translate(body, _FIELDS, _DROPPED, _API)
    messages = _system(body.get("system"), "system")
    history = history_of(body)
    for index, message in enumerate(history):
        path, role = f"messages[{index}]", message.get("role")
        require_supported(message, path, _API, {"role", "content"})
        if role == "user":
            messages.extend(_user(message.get("content"), f"{path}.content"))
        elif role == "assistant":
            messages.extend(_assistant(message.get("content"), f"{path}.content"))
        elif role == "system":
            content = message.get("content")
            messages.extend(_system(content, f"{path}.content"))
        else:
            raise Untranslatable(f"{path}.role", "must be user, assistant or system")
    if history and history[-1].get("role") == "assistant":
        raise Untranslatable(f"messages[{len(history) - 1}]", f"{_API} cannot continue the assistant's text")
    translated["messages"] = messages
    return translated


def _system(system: Any, path: str) -> list[Body]:
    if not system:
        return []
    content = system if isinstance(system, str) else "\n\n".join(_texts(system, path))
    return [{"role": "system", "content": content}]


def _texts(blocks: Any, path: str) -> list[str]:
    texts = []
    for block, at in objects(blocks, path):
        if block.get("type") != "text":
            raise Untranslatable(f"{at}.type", "only text is supported here")
        require_supported(block, at, _API, _TEXT, _CACHE)
        texts.append(text(block.get("text"), f"{at}.text"))
    return texts


def _user(content: Any, path: str) -> list[Body]:
    """Results of tool calls become messages of their own, before the rest of the turn."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    messages: list[Body] = []
    parts: list[Body] = []
    for block, at in objects(content, path):
        if block.get("type") == "tool_result":
            messages.append(_result(block, at))
        else:
            parts.append(_part(block, at))
    if parts:
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": "user", "content": parts[0]["text"] if plain else parts})
    return messages


def _result(block: Body, path: str) -> Body:
    require_supported(block, path, _API, {"type", "tool_use_id", "content"}, (*_CACHE, "is_error"))
    content = block.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        content = "\n".join(_texts(content, f"{path}.content"))
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def _part(block: Body, path: str) -> Body:
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        require_supported(block, path, _API, _TEXT, _CACHE)
        return {"type": "text", "text": text(block.get("text"), f"{path}.text")}
    how = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict):
        require_supported(source, f"{path}.source", _API, _OF_SOURCES.get(str(how), source.keys()))
        require_supported(
            block, path, _API, {"type", "source", "title"} if kind == "document" else {"type", "source"}, _CACHE
        )
        data = f"data:{source.get('media_type')};base64,{source.get('data')}"
        if kind == "image" and how in ("base64", "url"):
            return {"type": "image_url", "image_url": {"url": data if how == "base64" else source.get("url")}}
        if kind == "document" and how == "base64":
            name = block.get("title") or "document.pdf"
            return {"type": "file", "file": {"filename": name, "file_data": data}}
        if kind == "document" and how == "text":
            content = text(source.get("data"), f"{path}.source.data")
            return {"type": "text", "text": f"{block['title']}\n\n{content}" if block.get("title") else content}
        raise Untranslatable(f"{path}.source.type", f"{_API} does not support {str(how)[:100]}")
    raise Untranslatable(f"{path}.type", f"{_API} does not support {str(kind)[:100]}")


def _assistant(content: Any, path: str) -> list[Body]:
    if isinstance(content, str):
        return [{"role": "assistant", "content": content}]
    texts: list[str] = []
    calls: list[Body] = []
    for block, at in objects(content, path):
        kind = block.get("type")
        if kind == "text":
            require_supported(block, at, _API, _TEXT, (*_CACHE, "citations", "parsed_output"))
            texts.append(text(block.get("text"), f"{at}.text"))
        elif kind == "tool_use":
            require_supported(block, at, _API, {"type", "id", "name", "input"}, _CACHE)
            try:
                function = {"name": block.get("name"), "arguments": dumped(block.get("input"))}
            except ValueError as error:
                raise Untranslatable(f"{at}.input", str(error)) from error
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # signed by another model, which this one cannot read
            raise Untranslatable(f"{at}.type", f"{_API} does not support {str(kind)[:100]}")
    if not texts and not calls:
        return []
    message: Body = {"role": "assistant", "content": "".join(texts) or None}
    return [message | ({"tool_calls": calls} if calls else {})]


def _tools(value: Any, translated: Body) -> None:
    tools = []
    for tool, path in objects(value, "tools"):
        if tool.get("type", "custom") != "custom":
            raise Untranslatable(
                f"{path}.type", f"{_API} has no tools that the provider runs: {str(tool['type'])[:100]}"
            )
        taken = {"type", "name", "description", "strict", "input_schema"}
        require_supported(tool, path, _API, taken, (*_CACHE, "eager_input_streaming"))
        function: Body = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        function.update({name: tool[name] for name in ("description", "strict") if tool.get(name) is not None})
        tools.append({"type": "function", "function": function})
    translated["tools"] = tools


def _tool_choice(value: Any, translated: Body) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict):
        taken = {"type", "name"} if kind == "tool" else {"type"}
        require_supported(value, "tool_choice", _API, taken | {"disable_parallel_tool_use"})
    if kind == "tool":
        translated["tool_choice"] = {"type": "function", "function": {"name": value.get("name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        translated["tool_choice"] = _CHOICES[kind]
    else:
        raise Untranslatable("tool_choice.type", "must be auto, any, tool or none")
    if value.get("disable_parallel_tool_use") is True:
        translated["parallel_tool_calls"] = False


def _metadata(value: Any, translated: Body) -> None:
    if not isinstance(value, dict):
        raise Untranslatable("metadata", "must be an object")
    require_supported(value, "metadata", _API, {"user_id"})
    if value.get("user_id") is not None:
        translated["user"] = value["user_id"]


def _output_config(value: Any, translated: Body) -> None:
    if not isinstance(value, dict):
        raise Untranslatable("output_config", "must be an object")
    require_supported(value, "output_config", _API, {"format", "effort"})
    if value.get("effort") is not None:
        translated["reasoning_effort"] = value["effort"]
    if (wanted := value.get("format")) is not None:
        if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
            raise Untranslatable("output_config.format", "must be a json_schema")
        require_supported(wanted, "output_config.format", _API, {"type", "schema"})
        schema = {"name": "answer", "strict": True, "schema": wanted.get("schema")}
        translated["response_format"] = {"type": "json_schema", "json_schema": schema}


def _thinking(value: Any, translated: Body) -> None:
    if not isinstance(value, dict) or value.get("type") != "disabled":
        raise Untranslatable("thinking", f"{_API} does not support it; use output_config.effort")
    require_supported(value, "thinking", _API, {"type"}, ("display",))


def _in_messages(value: Any, translated: Body) -> None:
    """Translated after all other fields."""


_FIELDS: Final[dict[str, Field]] = {
    "model": same("model"),
    "system": _in_messages,
    "messages": _in_messages,
    # max_tokens is refused by OpenAI's reasoning models
    "max_tokens": same("max_completion_tokens"),
    "temperature": same("temperature"),
    "top_p": same("top_p"),
    "stop_sequences": same("stop"),
    "stream": same("stream"),
    "metadata": _metadata,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "output_config": _output_config,
    "thinking": _thinking,
    "speed": only("speed", ("standard",), _API),
}
