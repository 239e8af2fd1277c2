"""Requests of OpenAI's Responses API for a provider that speaks Anthropic's Messages API."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import SYSTEM_ROLES, Body
from promptrollout.llm.protocols.messages import tool_of
from promptrollout.llm.protocols.responses import instructions_of, items_of, require_foreground
from promptrollout.llm.translations.fields import Field, objects, only, same, text, translate, understood
from promptrollout.llm.translations.messages_request import (
    API,
    DROPPED,
    FIELDS,
    NOTES,
    add_turn,
    cached,
    document,
    elsewhere,
    function_of,
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
    """Raises Untranslatable, CallerError. The limit on tokens that Anthropic wants is seen to where the prompt is put
    in."""
    require_foreground(body)
    found = translate(body, _FIELDS, _DROPPED, API)
    instructions = instructions_of(body)
    system: list[Body] = [{"type": "text", "text": instructions}] if instructions else []
    turns: list[Body] = []
    for index, item in enumerate(items_of(body.get("input"))):
        _item(item, f"input[{index}]", system, turns)
    if system:
        found["system"] = system
    found["messages"] = turns
    one_call_at_a_time(body, found)
    return found


def _item(item: Body, path: str, system: list[Body], turns: list[Body]) -> None:
    """One item of input: into `system`, which has a place of its own, or the turns."""
    kind = item.get("type") or "message"
    if (taken := _OF_ITEMS.get(str(kind))) is not None:
        understood(item, path, API, taken, (*NOTES, "name") if kind == "function_call_output" else NOTES)
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
        said = output if isinstance(output, str) else _parts(output, f"{path}.output")
        result = {"type": "tool_result", "tool_use_id": item.get("call_id"), "content": said}
        add_turn(turns, "user", [result])
    elif kind != "reasoning":  # another model's, for itself
        raise Untranslatable(f"{path}.type", f"{API} has nothing like {str(kind)[:100]}")


def _texts(content: Any, path: str) -> list[Body]:
    """Parts that are text, or refuse to be one. Anthropic takes no empty ones."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part, at in objects(content, path):
        if part.get("type") == "refusal":
            understood(part, at, API, {"type", "refusal"})
            blocks.append({"type": "text", "text": text(part.get("refusal"), f"{at}.refusal")})
        elif part.get("type") in _TEXTS:
            blocks.append(text_block(part, at))
        else:
            raise Untranslatable(f"{at}.type", "only text can stand here")
    return [block for block in blocks if block["text"]]


def _parts(content: Any, path: str) -> list[Body]:
    return [_part(part, at) for part, at in objects(content, path)]


def _part(part: Body, path: str) -> Body:
    kind = part.get("type")
    if kind in _TEXTS:
        return text_block(part, path)
    if kind not in ("input_image", "input_file"):
        raise Untranslatable(f"{path}.type", f"{API} has nothing like {str(kind)[:100]}")
    if part.get("file_id") is not None:
        raise Untranslatable(f"{path}.file_id", "a file that OpenAI keeps is not to be had there: send its data")
    if kind == "input_image":
        understood(part, path, API, {"type", "image_url", "cache_control"}, (*NOTES, "detail"))
        return cached(image(text(part.get("image_url"), f"{path}.image_url")), part)
    source = "file_data" if part.get("file_url") is None else "file_url"
    understood(part, path, API, {"type", source, "filename", "cache_control"}, (*NOTES, "detail"))
    file = {name: part[name] for name in (source, "filename") if name in part}
    if source == "file_data":
        return cached(document(file, f"{path}.file_data"), part)
    block: Body = {"type": "document", "source": {"type": "url", "url": text(part["file_url"], f"{path}.file_url")}}
    return cached(block | ({"title": file["filename"]} if isinstance(file.get("filename"), str) else {}), part)


def _tools(value: Any, found: Body) -> None:
    """Functions, which stand here without `function` around them."""
    found["tools"] = [
        function_of(tool, tool, path) if tool.get("type") == "function" else tool_of(tool, path)
        for tool, path in objects(value, "tools")
    ]


def _tool_choice(value: Any, found: Body) -> None:
    function = value if isinstance(value, dict) and value.get("type") == "function" else None
    found["tool_choice"] = tool_choice(value, function)


def _text(value: Any, found: Body) -> None:
    _inside("text", value, found, _OF_TEXT)


def _format(value: Any, found: Body) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema" and isinstance(value.get("schema"), dict):
        put_format(value, found, "text.format")
    elif kind != "text":
        raise Untranslatable("text.format", f"{API} knows text and json_schema")


def _reasoning(value: Any, found: Body) -> None:
    _inside("reasoning", value, found, _OF_REASONING)


def _effort(value: Any, found: Body) -> None:
    put_effort(value, found, "reasoning.effort")


def _inside(name: str, value: Any, found: Body, fields: dict[str, Field]) -> None:
    """The fields of a field."""
    if not isinstance(value, dict):
        raise Untranslatable(name, "must be an object")
    for inner, given in value.items():
        if given is None:
            continue
        if inner not in fields:
            raise Untranslatable(f"{name}.{inner}", f"{API} has nothing like it")
        fields[inner](given, found)


def _state(name: str) -> Field:
    """What goes on from a conversation that OpenAI keeps."""

    def refuse(value: Any, found: Body) -> None:
        raise Untranslatable(name, f"{API} keeps no conversations: send the items before this one instead")

    return refuse


_OF_TEXT: Final[dict[str, Field]] = {
    "format": _format,
    "verbosity": only("text.verbosity", ("medium",), API),
}
_OF_REASONING: Final[dict[str, Field]] = {
    "effort": _effort,
    # whether a summary is wanted: Anthropic's is told wherever there is one
    "summary": elsewhere,
    "generate_summary": elsewhere,
}
_DROPPED: Final = DROPPED | {"background", "max_tool_calls", "prompt_cache_options"}
_FIELDS: Final[dict[str, Field]] = {
    **FIELDS,
    "instructions": elsewhere,
    "input": elsewhere,
    "max_output_tokens": same("max_tokens"),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "text": _text,
    "reasoning": _reasoning,
    "previous_response_id": _state("previous_response_id"),
    "conversation": _state("conversation"),
    # what OpenAI's SDKs and frameworks send though it asks for nothing that there is
    "include": only("include", ([], ["reasoning.encrypted_content"]), API),
    "truncation": only("truncation", ("disabled",), API),
    "top_logprobs": only("top_logprobs", (0,), API),
}
