"""Fourth step of a request's way: whether the answer keeps the version's output schema."""

from __future__ import annotations

from collections.abc import Iterable

import jsonschema_rs
import orjson

from promptrollout.gateway.choices import MAX_CONTENT_BYTES, Choice


def kept(validator: jsonschema_rs.Validator, choices: Iterable[Choice]) -> bool | None:
    """Whether every choice is JSON that matches. None: nothing to judge.

    Judged are complete answers: what was cut at a length limit or by a filter, and calls of tools, say nothing about
    the schema; nor is an answer judged that is longer than what is collected.
    """
    judged = False
    for choice in choices:
        if choice.finish_reason != "stop" or choice.size > MAX_CONTENT_BYTES:
            continue
        judged = True
        try:
            if not validator.is_valid(orjson.loads(choice.content)):
                return False
        except ValueError:  # no JSON, or nothing that the validator can hold
            return False
    return True if judged else None
