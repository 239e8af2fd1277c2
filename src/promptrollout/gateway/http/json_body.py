"""Parse a request's JSON within limits, so that every later step can traverse and serialize it."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from promptrollout.llm.errors import CallerError

MAX_DEPTH: Final = 64
"""Levels of nested objects and arrays. Schemas of tools are the deepest, of which OpenAI supports 10 levels; JSON
serializers stop at 254."""
MAX_BRACKETS: Final = 250_000
"""Those within texts included. The parser takes 170 ns for an empty list, and blocks the event loop meanwhile."""


_M = TypeVar("_M", bound=BaseModel)


def load(payload: bytes) -> dict[str, Any]:
    """The request as an object. Raises CallerError."""
    brackets = payload.count(b"{") + payload.count(b"[")
    if brackets > MAX_BRACKETS:
        raise CallerError(400, "invalid_json", f"the request has more than {MAX_BRACKETS:,} opening brackets")
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise CallerError(400, "invalid_json", f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CallerError(400, "invalid_json", "the request must be a JSON object")
    # most requests have too few brackets to be deep: counting them costs next to nothing
    if brackets > MAX_DEPTH and _deeper_than(body, MAX_DEPTH):
        raise CallerError(400, "invalid_json", f"the request is nested too deeply: at most {MAX_DEPTH} levels")
    return body


def read(kind: type[_M], payload: bytes, code: str) -> _M:
    """The request as this model. Raises CallerError, which names an invalid field and has this `code` then."""
    body = load(payload)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CallerError(400, code, f"{field}: {first['msg']}", field or None) from error


def _deeper_than(body: Any, levels: int) -> bool:
    """Level by level, without recursion."""
    containers = [body]
    for _ in range(levels):
        containers = [
            inner
            for outer in containers
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not containers:
            return False
    return True
