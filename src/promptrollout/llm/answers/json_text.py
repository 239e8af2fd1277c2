"""A provider's answer as JSON: whether parsing it is affordable, and serializing it again."""

from __future__ import annotations

from typing import Any, Final

import orjson

MAX_ANSWER_BRACKETS: Final = 1_000_000
"""In an answer. The log probabilities of 16,000 tokens, with twenty alternatives each, have 700,000."""
MAX_ANSWER_COMMAS: Final = 4_000_000
"""Each is followed by a value, of 8 to 60 bytes in memory."""
_SMALL_BYTES: Final = 1024 * 1024


def dumped(body: dict[str, Any]) -> bytes | None:
    """None: it is nested too deeply to be serialized."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return None


def costs_too_much(answer: bytes) -> bool:
    """Whether parsing an answer would block the event loop, or take many times its size in memory."""
    if len(answer) <= _SMALL_BYTES:
        return False
    brackets = answer.count(b"{") + answer.count(b"[")
    return brackets > MAX_ANSWER_BRACKETS or answer.count(b",") > MAX_ANSWER_COMMAS
