"""PromQL of signal `Custom` as far as it can be checked without a Prometheus: variables, and what was left open."""

from collections.abc import Iterator
from typing import Final

from promptrollout.api import query_template
from promptrollout.api.slo import Custom
from promptrollout.cli.lint_schema import Problem

CLOSES: Final = {")": "(", "]": "[", "}": "{"}
QUOTES: Final = ('"', "'", "`")


def query_problems(custom: Custom) -> Iterator[Problem]:
    """Paths begin at the objective."""
    for field, query in custom.fields.items():
        if reason := query_template.problem(query) or unbalanced(query):
            yield Problem(tuple(field.split(".")), reason)


def unbalanced(query: str) -> str | None:
    """The first bracket or quote without its other half, and the fix; None if there is none."""
    opened: list[tuple[str, int]] = []
    at = 0
    while at < len(query):
        sign = query[at]
        if sign == "#":
            at = query.find("\n", at)
            if at < 0:
                break
        elif sign in QUOTES:
            end = _closing_quote(query, at)
            if end is None:
                return f"the quote {sign} at character {at + 1} is never closed; close it"
            at = end
        elif sign in CLOSES.values():
            opened.append((sign, at))
        elif sign in CLOSES:
            if not opened:
                return f"{sign} at character {at + 1} closes nothing; remove it, or open it before"
            before, where = opened.pop()
            if before != CLOSES[sign]:
                return f"{sign} at character {at + 1} cannot close {before} at character {where + 1}; correct one"
        at += 1
    if opened:
        sign, where = opened[-1]
        return f"{sign} at character {where + 1} is never closed; close it"
    return None


def _closing_quote(query: str, start: int) -> int | None:
    """Where a string ends; a backslash escapes in it, but not between backticks."""
    at = start + 1
    while at < len(query):
        if query[at] == query[start]:
            return at
        at += 2 if query[at] == "\\" and query[start] != "`" else 1
    return None
