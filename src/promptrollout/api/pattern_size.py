"""How large a regular expression is once its repetitions are written out: what it costs to compile, and to match."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_LARGEST: Final = 10**9
_CLASS_COST: Final = 6
"""Of `.`, a negated class, a class beyond ASCII: several states for each character of UTF-8."""
_PROPERTY_COST: Final = 300
r"""Of `\p{…}`: hundreds of ranges of Unicode."""
_ESCAPE: Final = re.compile(r"\\(?:[pP](?:\{[^}]{0,64}\}|.)|[xu]\{[^}]{0,64}\}|.)", re.DOTALL)
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT: Final = re.compile(r"\{\s*(\d{1,9})?\s*(?:,\s*(\d{1,9})?\s*)?\}")
_GROUP: Final = re.compile(r"\((?:\?(?:P?<\w{1,64}>|[a-zA-Z-]{0,9}:|<?[=!]|>))?")
_CASE_FLAG: Final = re.compile(r"\(\?[a-hj-zA-Z]*i")


@dataclass(frozen=True, slots=True)
class PatternSize:
    """Both are numbers, and do not depend on the machine."""

    positions: int
    """Places that a match can be at: for each character of a text, at most so many are looked at."""
    compile_cost: int
    """About microseconds."""


def pattern_size(pattern: str) -> PatternSize:
    """An upper bound. A text that is not a regular expression gets some bound too."""
    groups: list[list[int]] = [[0, 0]]
    atom = (0, 0)
    at = 0
    classes = True  # until one has no end: searching for the end of each of a thousand would take long
    while at < len(pattern):
        character = pattern[at]
        one = _ESCAPE.match(pattern, at) if character == "\\" else None
        if character == "[" and classes:
            one = _CLASS.match(pattern, at)
            classes = one is not None
        if one is not None:
            atom, at = (1, _cost_of(one[0])), one.end()
        elif character == "{" and (found := _REPEAT.match(pattern, at)):
            times = max(int(found[1] or 0), int(found[2] or 0), 1) - 1
            groups[-1][0] += atom[0] * times
            groups[-1][1] += atom[1] * times
            atom, at = (min(atom[0] * (times + 1), _LARGEST), min(atom[1] * (times + 1), _LARGEST)), found.end()
            continue
        elif character == "(" and (found := _GROUP.match(pattern, at)):
            groups.append([1, 1])
            at = found.end()
            continue
        elif character == ")" and len(groups) > 1:
            positions, cost = groups.pop()
            atom, at = (min(positions, _LARGEST), min(cost, _LARGEST)), at + 1
        else:
            atom, at = (1, _CLASS_COST if character == "." or character > "\x7f" else 1), at + 1
        groups[-1][0] += atom[0]
        groups[-1][1] += atom[1]
    factor = 4 if _CASE_FLAG.search(pattern) else 1
    positions, cost = (min(sum(group[n] for group in groups), _LARGEST) for n in (0, 1))
    return PatternSize(positions, cost * factor)


def _cost_of(text: str) -> int:
    """Of an escape, or of a class in brackets."""
    if "\\p" in text or "\\P" in text:
        return _PROPERTY_COST * max(1, text.count("\\p") + text.count("\\P"))
    if len(text) == 2 and text[1] not in "WDSs":
        return 1
    wide = text.startswith("[^") or not text.isascii() or any(each in text for each in ("\\W", "\\D", "\\S", "\\s"))
    return _CLASS_COST + len(text) // 8 if wide else 1 + len(text) // 8
