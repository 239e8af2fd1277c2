"""A request's JSON within bounds: what is taken here, every later step can walk through and write again."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from promptrollout.llm.errors import CallerError

MAX_DEPTH: Final = 64
"""Of objects and arrays in each other. Tools' schemas are the deepest that callers send, and OpenAI takes 10 levels of
them; writers of JSON stop at 254."""
MAX_BRACKETS: Final = 250_000
"""In texts too. A body of nothing but empty lists takes the parser 170 ns for each, and nobody else is answered."""


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
    # few brackets, and so most requests, cannot be deep: counting them costs next to nothing
    if brackets > MAX_DEPTH and _deeper_than(body, MAX_DEPTH):
        raise CallerError(400, "invalid_json", f"the request is nested too deeply: {MAX_DEPTH} levels are taken")
    return body


def read(kind: type[_M], payload: bytes, code: str) -> _M:
    """The request as this model has it. Raises CallerError, with `code` where a field is at fault, and names it."""
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
