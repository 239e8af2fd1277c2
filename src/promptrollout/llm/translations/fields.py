"""What all translations need: fields that are taken, dropped or refused by name, and what answers are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import orjson

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import VARIABLES, Body

Field = Callable[[Any, Body], None]
"""Puts what a field's value says into the other protocol's request."""

_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})
_USUAL: Final[Mapping[str, Any]] = {
    "caller": {"type": "direct"},
    "allowed_callers": ["direct"],
    "citations": {"enabled": False},
    "transformations": {"oversized_image": "downsize"},
}
"""What fields ask for where nobody sends them."""


def translate(body: Body, fields: Mapping[str, Field], dropped: Collection[str], api: str) -> Body:
    """The request in the other protocol. Raises Untranslatable for a field that is neither known nor empty."""
    request: Body = {}
    for name, value in body.items():
        if value is None or name in dropped:
            continue
        if name == VARIABLES:
            request[name] = value
        elif (field := fields.get(name)) is not None:
            field(value, request)
        else:
            raise Untranslatable(name, f"{api} has nothing like it")
    return request


def understood(found: Body, path: str, api: str, taken: Collection[str], dropped: Collection[str] = ()) -> None:
    """Raises Untranslatable for a field of an object inside the request that is neither taken nor dropped, unless it
    asks for nothing: what nobody looks at would change the answer without a word."""
    for name in found.keys() - taken:
        value = found[name]
        if name not in dropped and value not in _NOTHING and value != _USUAL.get(name):
            raise Untranslatable(f"{path}.{name}", f"{api} has nothing like it")


def same(name: str) -> Field:
    """A field that means the same under this name."""

    def put(value: Any, request: Body) -> None:
        request[name] = value

    return put


def only(name: str, values: Collection[Any], api: str) -> Field:
    """A field of which the other protocol knows the usual values alone, without saying so."""

    def put(value: Any, request: Body) -> None:
        if value not in values:
            raise Untranslatable(name, f"{api} has nothing like {str(value)[:100]}")

    return put


def objects(values: Any, path: str) -> Iterator[tuple[Body, str]]:
    """The objects of a list, each with its path. Raises Untranslatable."""
    if not isinstance(values, list):
        raise Untranslatable(path, "must be a list")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise Untranslatable(f"{path}[{index}]", "must be an object")
        yield value, f"{path}[{index}]"


def text(value: Any, path: str) -> str:
    """Raises Untranslatable for what is no text."""
    if not isinstance(value, str):
        raise Untranslatable(path, "must be a text")
    return value


def arguments(value: Any) -> dict[str, Any]:
    """A call's arguments as an object. Raises ValueError."""
    found = orjson.loads(value) if value else {}
    if not isinstance(found, dict):
        raise ValueError("a call's arguments are no object")
    return found


def dumped(value: Any) -> str:
    """A call's arguments as a text. Raises ValueError."""
    try:
        return orjson.dumps(value or {}).decode()
    except orjson.JSONEncodeError as error:
        raise ValueError("a call's arguments are nested too deeply") from error


def dumped_in_stream(value: Any) -> str:
    """A call's arguments as a text. Raises StreamError."""
    try:
        return dumped(value)
    except ValueError as error:
        raise StreamError(str(error)) from error


def listed(values: Any) -> list[Body]:
    """The objects of what may be a list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def cached_input(usage: Any) -> tuple[int, int, int]:
    """The input tokens of an answer of Anthropic's, and those of them that were read from the cache and written to it:
    Anthropic counts these beside `input_tokens`, OpenAI within."""
    read, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
    return count(usage, "input_tokens") + read + written, read, written


def count(found: Any, name: str) -> int:
    """A number of tokens; 0 where there is none."""
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
