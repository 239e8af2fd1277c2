"""Helpers of all translations: fields that are translated, dropped or refused by name, and parts of answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import orjson

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import VARIABLES, Body

Field = Callable[[Any, Body], None]
"""Translates a field's value into the other protocol's request."""

_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})
_USUAL: Final[Mapping[str, Any]] = {
    "caller": {"type": "direct"},
    "allowed_callers": ["direct"],
    "citations": {"enabled": False},
    "transformations": {"oversized_image": "downsize"},
}
"""The defaults of fields: such a value asks for nothing."""


def translate(body: Body, fields: Mapping[str, Field], dropped: Collection[str], api: str) -> Body:
    """The request in the other protocol. Raises Untranslatable for an unknown field, unless it is empty."""
    request: Body = {}
    for name, value in body.items():
        if value is None or name in dropped:
            continue
        if name == VARIABLES:
            request[name] = value
        elif (field := fields.get(name)) is not None:
            field(value, request)
        else:
            raise Untranslatable(name, f"{api} does not support it")
    return request


def require_supported(
    fields: Body, path: str, api: str, translated: Collection[str], dropped: Collection[str] = ()
) -> None:
    """Raises Untranslatable for a field of an object that is neither translated nor dropped, unless it asks for
    nothing: ignoring it would change the answer silently."""
    for name in fields.keys() - translated:
        value = fields[name]
        if name not in dropped and value not in _NOTHING and value != _USUAL.get(name):
            raise Untranslatable(f"{path}.{name}", f"{api} does not support it")


def same(name: str) -> Field:
    """A field with the same meaning under this name."""

    def copy(value: Any, request: Body) -> None:
        request[name] = value

    return copy


def only(name: str, values: Collection[Any], api: str) -> Field:
    """A field without counterpart in the other protocol, of which only these values mean the same there."""

    def check(value: Any, request: Body) -> None:
        if value not in values:
            raise Untranslatable(name, f"{api} does not support {str(value)[:100]}")

    return check


def objects(values: Any, path: str) -> Iterator[tuple[Body, str]]:
    """The objects of a list, each with its path. Raises Untranslatable."""
    if not isinstance(values, list):
        raise Untranslatable(path, "must be a list")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise Untranslatable(f"{path}[{index}]", "must be an object")
        yield value, f"{path}[{index}]"


def text(value: Any, path: str) -> str:
    """Raises Untranslatable for a value that is not a text."""
    if not isinstance(value, str):
        raise Untranslatable(path, "must be a text")
    return value


def arguments(value: Any) -> dict[str, Any]:
    """The arguments of a tool call as an object. Raises ValueError."""
    parsed = orjson.loads(value) if value else {}
    if not isinstance(parsed, dict):
        raise ValueError("the arguments of a tool call are not a JSON object")
    return parsed


def dumped(value: Any) -> str:
    """The arguments of a tool call as a text. Raises ValueError."""
    try:
        return orjson.dumps(value or {}).decode()
    except orjson.JSONEncodeError as error:
        raise ValueError("the arguments of a tool call are nested too deeply") from error


def dumped_in_stream(value: Any) -> str:
    """The arguments of a tool call as a text. Raises StreamError."""
    try:
        return dumped(value)
    except ValueError as error:
        raise StreamError(str(error)) from error


def listed(values: Any) -> list[Body]:
    """The objects of a value that may be a list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def cached_input(usage: Any) -> tuple[int, int, int]:
    """All input tokens of Anthropic's usage, and those of them that were read from its cache and written to it.
    Anthropic counts these separately from `input_tokens`, OpenAI within them."""
    read, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
    return count(usage, "input_tokens") + read + written, read, written


def count(usage: Any, name: str) -> int:
    """A number of tokens; 0 if it is missing or not valid."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
