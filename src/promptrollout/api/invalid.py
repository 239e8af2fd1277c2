"""What pydantic found wrong, in words: the field, the reason, and the fix where it is known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

_FIXES: Final[Mapping[str, str]] = {
    "extra_forbidden": "unknown field: remove it or correct its name",
    "missing": "required: add it",
}
_BRANCH: Final = re.compile(r"[A-Z]\w*|.*\[.*|constrained-\w+")
"""What pydantic puts into a path for a branch of a union: it is no field."""


def problems(error: ValidationError) -> Iterator[str]:
    """`path: reason` for each; without a path where the whole is wrong."""
    for found in error.errors(include_url=False, include_input=False):
        where = path(found["loc"])
        reason = _FIXES.get(found["type"], found["msg"])
        yield f"{where}: {reason}" if where else reason


def first_problem(error: ValidationError) -> str:
    return next(problems(error))


def path(parts: tuple[Any, ...]) -> str:
    """`objectives.0.max`."""
    return ".".join(str(part) for part in parts if not _BRANCH.fullmatch(str(part)))
