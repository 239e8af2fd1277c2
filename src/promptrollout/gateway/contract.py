"""Fourth step of a request's way: whether the answer keeps the version's output schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jsonschema_rs
import orjson

MAX_CONTENT_BYTES: Final = 1024 * 1024
"""A longer answer is not checked."""


@dataclass(slots=True)
class Choice:
    """One of the answers (`n` asks for several)."""

    content: str
    finish_reason: str | None


def applies(body: Mapping[str, Any]) -> bool:
    """Whether the caller left the format of the answer to the prompt."""
    asked = body.get("response_format")
    return asked is None or (isinstance(asked, dict) and asked.get("type") == "json_object")


def kept(validator: jsonschema_rs.Validator, choices: Iterable[Choice]) -> bool | None:
    """Whether every choice is JSON that matches. None: nothing to judge.

    Judged are complete answers: what was cut at a length limit or by a filter, and calls of tools, say nothing about
    the schema.
    """
    judged = False
    for choice in choices:
        if choice.finish_reason != "stop" or len(choice.content) > MAX_CONTENT_BYTES:
            continue
        judged = True
        try:
            if not validator.is_valid(orjson.loads(choice.content)):
                return False
        except ValueError:  # no JSON, or nothing that the validator can hold
            return False
    return True if judged else None


def choices_of(answer: Mapping[str, Any]) -> list[Choice]:
    """The choices of an answer that did not stream."""
    found: list[Choice] = []
    for choice in answer.get("choices") or ():
        if isinstance(choice, dict):
            message = choice.get("message")
            content = message.get("content") if isinstance(message, dict) else None
            found.append(Choice(content if isinstance(content, str) else "", choice.get("finish_reason")))
    return found
