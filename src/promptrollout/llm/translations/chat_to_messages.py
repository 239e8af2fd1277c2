"""OpenAI's chat requests for a provider with Anthropic's Messages API."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import SYSTEM_ROLES, Body
from promptrollout.llm.protocols.chat import history_of
from promptrollout.llm.protocols.messages import tool_of
from promptrollout.llm.translations.fields import Field, objects, only, require_supported, same, text, translate
from promptrollout.llm.translations.messages_request import (
    API,
    DROPPED,
    FIELDS,
    NOTES,
    add_turn,
    cached,
    document,
    function_of,
    handled_elsewhere,
    image,
    one_call_at_a_time,
    plain,
    put_effort,
    put_format,
    text_block,
    tool_choice,
    tool_use,
)

_OF_ROLES: Final = {
    "assistant": {"role", "content", "refusal", "tool_calls", "audio", "function_call"},
    "tool": {"role", "content", "tool_call_id"},
}
# reasoning of another model, and what SDKs add to an answer that is sent back
_REASONING: Final = (
    *NOTES,
    *("reasoning_content", "reasoning", "thinking_blocks", "reasoning_details", "provider_specific_fields"),
)


def request(body: Body) -> Body:
    """Raises Untranslatable, CallerError. `max_tokens`, which Anthropic requires, is added with the prompt."""
    translated = translate(body, _FIELDS, DROPPED, API)
    system, messages = _messages(history_of(body))
    if system:
        translated["system"] = system
    translated["messages"] = messages
    one_call_at_a_time(body, translated)
    return translated


def _messages(history: list[Body]) -> tuple[list[Body], list[Body]]:
    """All system messages, which Anthropic has in a field of their own, and the turns."""
    system: list[Body] = []
    turns: list[Body] = []
    for index, message in enumerate(history):
        path, role = f"messages[{index}]", message.get("role")
        if message.get("name") is not None and role != "tool":
            raise Untranslatable(f"{path}.name", f"{API} does not support it")
        dropped = {"assistant": _REASONING, "tool": ("name",)}.get(str(role), ())
        require_supported(message, path, API, _OF_ROLES.get(str(role), {"role", "content"}), dropped)
        if role in SYSTEM_ROLES:
            system.extend(_texts(message.get("content"), f"{path}.content"))
        elif role == "user":
            add_turn(turns, "user", _user(message.get("content"), f"{path}.content"))
        elif role == "assistant":
            add_turn(turns, "assistant", _assistant(message, path))
        elif role == "tool":
            add_turn(turns, "user", [_result(message, path)])
        else:
            raise Untranslatable(f"{path}.role", "must be system, developer, user, assistant or tool")
    return system, turns


def _texts(content: Any, path: str) -> list[Body]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part, at in objects(content, path):
        if part.get("type") != "text":
            raise Untranslatable(f"{at}.type", "only text is supported here")
        blocks.append(text_block(part, at))
    return blocks


def _user(content: Any, path: str) -> str | list[Body]:
    if isinstance(content, str):
        return content
    return [_part(part, at) for part, at in objects(content, path)]


def _part(part: Body, path: str) -> Body:
    kind = part.get("type")
    if kind == "text":
        return text_block(part, path)
    source = part.get(str(kind))
    if kind in ("image_url", "file") and isinstance(source, dict):
        require_supported(part, path, API, {"type", kind, "cache_control"}, NOTES)
        if kind == "file":
            return cached(document(source, f"{path}.file"), part)
        require_supported(source, f"{path}.image_url", API, {"url"}, ("detail",))
        return cached(image(text(source.get("url"), f"{path}.image_url.url")), part)
    raise Untranslatable(f"{path}.type", f"{API} does not support {str(kind)[:100]}")


def _assistant(message: Body, path: str) -> str | list[Body]:
    if message.get("audio") is not None:
        raise Untranslatable(f"{path}.audio", f"{API} does not support it")
    if message.get("function_call") is not None:
        raise Untranslatable(f"{path}.function_call", "use tool_calls")
    content = message.get("content")
    blocks: list[Body] = []
    if isinstance(content, list):
        for part, at in objects(content, f"{path}.content"):
            if part.get("type") == "refusal":
                require_supported(part, at, API, {"type", "refusal"})
                blocks.append({"type": "text", "text": text(part.get("refusal"), f"{at}.refusal")})
            elif part.get("type") == "text":
                blocks.append(text_block(part, at))
            else:
                raise Untranslatable(f"{at}.type", "only text is supported here")
    elif content:
        blocks.extend(_texts(content, f"{path}.content"))
    if message.get("refusal"):
        blocks.extend(_texts(message["refusal"], f"{path}.refusal"))
    if message.get("tool_calls") is not None:
        for call, at in objects(message["tool_calls"], f"{path}.tool_calls"):
            blocks.append(_call(call, at))
    return plain(blocks)


def _call(call: Body, path: str) -> Body:
    function = call.get("function")
    if not isinstance(function, dict):
        raise Untranslatable(f"{path}.function", "Anthropic's API supports only calls of functions")
    require_supported(call, path, API, {"id", "type", "function"}, ("index",))
    require_supported(function, f"{path}.function", API, {"name", "arguments"}, ("parsed_arguments",))
    return tool_use(call.get("id"), function, f"{path}.function")


def _result(message: Body, path: str) -> Body:
    content = message.get("content")
    if not isinstance(content, str):
        content = _texts(content, f"{path}.content")
    return {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": content}


def _stop(value: Any, translated: Body) -> None:
    translated["stop_sequences"] = [value] if isinstance(value, str) else value


def _tools(value: Any, translated: Body) -> None:
    translated["tools"] = [_tool(tool, path) for tool, path in objects(value, "tools")]


def _tool(tool: Body, path: str) -> Body:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool_of(tool, path)
    require_supported(tool, path, API, {"type", "function", "cache_control"})
    return function_of(tool, function, f"{path}.function")


def _tool_choice(value: Any, translated: Body) -> None:
    function = None
    if isinstance(value, dict) and value.get("type") == "function":
        require_supported(value, "tool_choice", API, {"type", "function"})
        function = value.get("function")
    translated["tool_choice"] = tool_choice(value, function)


def _response_format(value: Any, translated: Body) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    schema = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, dict):
        raise Untranslatable("response_format", f"{API} supports only text and json_schema")
    put_format(schema, translated, "response_format.json_schema")


def _reasoning_effort(value: Any, translated: Body) -> None:
    put_effort(value, translated, "reasoning_effort")


def _max_tokens(value: Any, translated: Body) -> None:
    translated.setdefault("max_tokens", value)


_FIELDS: Final[dict[str, Field]] = {
    **FIELDS,
    "messages": handled_elsewhere,
    "max_completion_tokens": same("max_tokens"),
    "max_tokens": _max_tokens,
    "stop": _stop,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "reasoning_effort": _reasoning_effort,
    # SDKs and frameworks send these with values that ask for nothing
    "n": only("n", (1,), API),
    "presence_penalty": only("presence_penalty", (0,), API),
    "frequency_penalty": only("frequency_penalty", (0,), API),
    "logit_bias": only("logit_bias", ({},), API),
    "logprobs": only("logprobs", (False,), API),
    "top_logprobs": only("top_logprobs", (0,), API),
    "verbosity": only("verbosity", ("medium",), API),
    "modalities": only("modalities", (["text"],), API),
}
