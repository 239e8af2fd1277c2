"""A provider's answer as JSON: whether reading it is affordable, and writing it again."""

from __future__ import annotations

from typing import Any, Final

import orjson

MAX_ANSWER_BRACKETS: Final = 1_000_000
"""Of an answer: the probabilities of 16,000 tokens, with twenty others each, are 700,000."""
MAX_ANSWER_COMMAS: Final = 4_000_000
"""Behind each stands a value, of 8 to 60 bytes in memory."""
_SMALL_BYTES: Final = 1024 * 1024


def dumped(found: dict[str, Any]) -> bytes | None:
    """None: it is nested too deeply to be written again."""
    try:
        return orjson.dumps(found)
    except orjson.JSONEncodeError:
        return None


def costs_too_much(answer: bytes) -> bool:
    """Whether to parse a provider's answer would hold the event loop, or take many times its size."""
    if len(answer) <= _SMALL_BYTES:
        return False
    brackets = answer.count(b"{") + answer.count(b"[")
    return brackets > MAX_ANSWER_BRACKETS or answer.count(b",") > MAX_ANSWER_COMMAS
