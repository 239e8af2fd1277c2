"""Limits on the size of what a template makes, checked before anything is made.

Each raises RenderError. The limit on time is in `templates`.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, KeysView, ValuesView
from typing import Any, Final

from promptrollout.llm.errors import PrepareError

MAX_CHARACTERS: Final = 1024 * 1024
"""Of the rendered text, and of any intermediate text."""
MAX_VALUES: Final = 100_000
"""In lists and objects, nested ones included."""
MAX_STRIPPED_CHARACTERS: Final = 32 * 1024
"""Removing tags takes quadratic time."""
_MAX_BITS: Final = 2048
_MAX_PRECISION: Final = 20
_MAX_STRIP_SET: Final = 64


class RenderError(PrepareError):
    """The template cannot be rendered with these values."""


def measure(value: Any) -> None:
    """Raises RenderError for a value that is too large; shared values count each time."""
    values = characters = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            characters += len(item)
            if characters > MAX_CHARACTERS:
                raise _too_long()
        elif isinstance(item, dict | list | tuple | KeysView | ValuesView | ItemsView):
            values += len(item)
            if values > MAX_VALUES:
                raise too_many()
            stack.extend(item)
            if isinstance(item, dict):
                stack.extend(item.values())
        elif isinstance(item, int):
            check_bits(item)


def too_many() -> RenderError:
    return RenderError(f"more than {MAX_VALUES} values")


def _too_long() -> RenderError:
    return RenderError(f"a text is longer than {MAX_CHARACTERS} characters")


def bounded_text(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise _too_long()
    return value


def check_bits(number: int) -> None:
    if number.bit_length() > _MAX_BITS:
        raise RenderError("a number is too large")


def split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    most = MAX_VALUES if maxsplit < 0 else min(maxsplit, MAX_VALUES)
    pieces = text.split(sep, most)
    if len(pieces) > MAX_VALUES:
        raise too_many()
    return pieces


def check_strip_set(chars: Any = None) -> None:
    if isinstance(chars, str) and len(chars) > _MAX_STRIP_SET:
        raise RenderError(f"strip accepts at most {_MAX_STRIP_SET} different characters")


def _check_trim(value: Any, chars: Any = None) -> None:
    check_strip_set(chars)


def _check_replace(value: Any, old: Any, new: Any, count: int | None = None) -> None:
    text, old, new = str(value), str(old), str(new)
    if len(text) + text.count(old) * len(new) > MAX_CHARACTERS:
        raise _too_long()


def _check_join(value: Any, d: Any = "", attribute: Any = None) -> None:
    if hasattr(value, "__len__") and len(value) * len(str(d)) > MAX_CHARACTERS:
        raise _too_long()


def _check_round(value: Any, precision: Any = 0, method: Any = "common") -> None:
    if not isinstance(precision, int) or abs(precision) > _MAX_PRECISION:
        raise RenderError(f"round accepts at most {_MAX_PRECISION} digits")


def _check_striptags(value: Any) -> None:
    if len(str(value)) > MAX_STRIPPED_CHARACTERS:
        raise RenderError(f"striptags accepts at most {MAX_STRIPPED_CHARACTERS} characters")


def _check_tojson(value: Any) -> None:
    """Accepts no indent, whose size would not be limited."""


FILTER_CHECKS: Final[dict[str, Callable[..., None]]] = {
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "striptags": _check_striptags,
    "tojson": _check_tojson,
    "trim": _check_trim,
}
