"""Requests of OpenAI's Responses API for a provider with Anthropic's Messages API."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import SYSTEM_ROLES, Body
from promptrollout.llm.protocols.messages import tool_of
from promptrollout.llm.protocols.responses import instructions_of, items_of, require_foreground
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

_TEXTS: Final = ("input_text", "output_text")
_OF_ITEMS: Final = {
    "message": {"type", "role", "content"},
    "function_call": {"type", "call_id", "name", "arguments"},
    "function_call_output": {"type", "call_id", "output"},
}


def request(body: Body) -> Body:
    """Raises Untranslatable, CallerError. `max_tokens`, which Anthropic requires, is added with the prompt."""
    require_foreground(body)
    translated = translate(body, _FIELDS, _DROPPED, API)
    instructions = instructions_of(body)
    system: list[Body] = [{"type": "text", "text": instructions}] if instructions else []
    turns: list[Body] = []
    for index, item in enumerate(items_of(body.get("input"))):
        _item(item, f"input[{index}]", system, turns)
    if system:
        translated["system"] = system
    translated["messages"] = turns
    one_call_at_a_time(body, translated)
    return translated


def _item(item: Body, path: str, system: list[Body], turns: list[Body]) -> None:
    """Add one item of input to `system`, which Anthropic has in a field of its own, or to the turns."""
    kind = item.get("type") or "message"
    if (fields := _OF_ITEMS.get(str(kind))) is not None:
        require_supported(item, path, API, fields, (*NOTES, "name") if kind == "function_call_output" else NOTES)
    if kind == "message":
        role, content, at = item.get("role"), item.get("content"), f"{path}.content"
        if role in SYSTEM_ROLES:
            system.extend(_texts(content, at))
        elif role == "user":
            add_turn(turns, "user", content if isinstance(content, str) else _parts(content, at))
        elif role == "assistant":
            add_turn(turns, "assistant", plain(_texts(content, at)))
        else:
            raise Untranslatable(f"{path}.role", "must be system, developer, user or assistant")
    elif kind == "function_call":
        add_turn(turns, "assistant", [tool_use(item.get("call_id"), item, path)])
    elif kind == "function_call_output":
        output = item.get("output")
        content_of_result = output if isinstance(output, str) else _parts(output, f"{path}.output")
        result = {"type": "tool_result", "tool_use_id": item.get("call_id"), "content": content_of_result}
        add_turn(turns, "user", [result])
    elif kind != "reasoning":  # of another model, which this one cannot read
        raise Untranslatable(f"{path}.type", f"{API} does not support {str(kind)[:100]}")


def _texts(content: Any, path: str) -> list[Body]:
    """Parts that are a text or a refusal. Empty ones are left out, since Anthropic rejects them."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part, at in objects(content, path):
        if part.get("type") == "refusal":
            require_supported(part, at, API, {"type", "refusal"})
            blocks.append({"type": "text", "text": text(part.get("refusal"), f"{at}.refusal")})
        elif part.get("type") in _TEXTS:
            blocks.append(text_block(part, at))
        else:
            raise Untranslatable(f"{at}.type", "only text is supported here")
    return [block for block in blocks if block["text"]]


def _parts(content: Any, path: str) -> list[Body]:
    return [_part(part, at) for part, at in objects(content, path)]


def _part(part: Body, path: str) -> Body:
    kind = part.get("type")
    if kind in _TEXTS:
        return text_block(part, path)
    if kind not in ("input_image", "input_file"):
        raise Untranslatable(f"{path}.type", f"{API} does not support {str(kind)[:100]}")
    if part.get("file_id") is not None:
        raise Untranslatable(f"{path}.file_id", f"{API} cannot read a file that is stored at OpenAI: send its data")
    if kind == "input_image":
        require_supported(part, path, API, {"type", "image_url", "cache_control"}, (*NOTES, "detail"))
        return cached(image(text(part.get("image_url"), f"{path}.image_url")), part)
    source = "file_data" if part.get("file_url") is None else "file_url"
    require_supported(part, path, API, {"type", source, "filename", "cache_control"}, (*NOTES, "detail"))
    file = {name: part[name] for name in (source, "filename") if name in part}
    if source == "file_data":
        return cached(document(file, f"{path}.file_data"), part)
    block: Body = {"type": "document", "source": {"type": "url", "url": text(part["file_url"], f"{path}.file_url")}}
    return cached(block | ({"title": file["filename"]} if isinstance(file.get("filename"), str) else {}), part)


def _tools(value: Any, translated: Body) -> None:
    """Functions, which this API has without `function` around them."""
    translated["tools"] = [
        function_of(tool, tool, path) if tool.get("type") == "function" else tool_of(tool, path)
        for tool, path in objects(value, "tools")
    ]


def _tool_choice(value: Any, translated: Body) -> None:
    function = value if isinstance(value, dict) and value.get("type") == "function" else None
    translated["tool_choice"] = tool_choice(value, function)


def _text(value: Any, translated: Body) -> None:
    _nested("text", value, translated, _OF_TEXT)


def _format(value: Any, translated: Body) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema" and isinstance(value.get("schema"), dict):
        put_format(value, translated, "text.format")
    elif kind != "text":
        raise Untranslatable("text.format", f"{API} supports only text and json_schema")


def _reasoning(value: Any, translated: Body) -> None:
    _nested("reasoning", value, translated, _OF_REASONING)


def _effort(value: Any, translated: Body) -> None:
    put_effort(value, translated, "reasoning.effort")


def _nested(name: str, value: Any, translated: Body, fields: dict[str, Field]) -> None:
    """Translate the fields of an object."""
    if not isinstance(value, dict):
        raise Untranslatable(name, "must be an object")
    for inner, inner_value in value.items():
        if inner_value is None:
            continue
        if inner not in fields:
            raise Untranslatable(f"{name}.{inner}", f"{API} does not support it")
        fields[inner](inner_value, translated)


def _state(name: str) -> Field:
    """A field that continues a conversation stored at OpenAI."""

    def refuse(value: Any, translated: Body) -> None:
        raise Untranslatable(name, f"{API} does not store conversations: send the earlier items instead")

    return refuse


_OF_TEXT: Final[dict[str, Field]] = {
    "format": _format,
    "verbosity": only("text.verbosity", ("medium",), API),
}
_OF_REASONING: Final[dict[str, Field]] = {
    "effort": _effort,
    # whether a summary is wanted: Anthropic's is always forwarded
    "summary": handled_elsewhere,
    "generate_summary": handled_elsewhere,
}
_DROPPED: Final = DROPPED | {"background", "max_tool_calls", "prompt_cache_options"}
_FIELDS: Final[dict[str, Field]] = {
    **FIELDS,
    "instructions": handled_elsewhere,
    "input": handled_elsewhere,
    "max_output_tokens": same("max_tokens"),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "text": _text,
    "reasoning": _reasoning,
    "previous_response_id": _state("previous_response_id"),
    "conversation": _state("conversation"),
    # SDKs and frameworks send these with values that ask for nothing
    "include": only("include", ([], ["reasoning.encrypted_content"]), API),
    "truncation": only("truncation", ("disabled",), API),
    "top_logprobs": only("top_logprobs", (0,), API),
}
