"""Check whether an answer conforms to the version's output schema."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import jsonschema_rs
import orjson

from promptrollout.api.schema_graph import SchemaRefused
from promptrollout.api.schema_limits import CompileBudget
from promptrollout.api.template import answer_validator
from promptrollout.llm.answers.choices import MAX_CONTENT_BYTES, Choice
from promptrollout.llm.answers.schema_process import SchemaProcess
from promptrollout.llm.answers.schema_visits import Visits, visits

MAX_LOOP_WORK: Final = 1_000_000
"""Of checking one answer in the event loop, in keywords and characters: 10 to 30 ms."""
_PARSING: Final = 10
"""Cost of parsing a value, in keywords."""
_KEYWORDS_PER_POSITION: Final = 200
"""Any keyword may copy, hash or compare a text, which costs a small part of matching it."""
_UNUSUAL_NUMBER: Final = re.compile(r"(?:^|[\[:,\s])-?(?:[0-9.]{26}|[0-9.]{1,25}[eE][-+]?[0-9]{2})")
"""A number whose exponent may have two digits or more: an exact comparison can take ten times as long."""
_LOOKING_FOR_NUMBERS: Final = 3
"""Cost of searching a character for such numbers, in positions."""


@dataclass(frozen=True, slots=True)
class Contract:
    """An output schema, ready to check answers."""

    schema: bytes
    validator: jsonschema_rs.Validator | None
    """None: its running time is not bounded, so it is not used in the event loop."""
    visits: Visits | None

    def work(self, contents: Iterable[str]) -> int:
        """An upper bound of the work to check these texts. Counted, not timed: the verdict must not depend on the
        load."""
        if self.visits is None:
            return MAX_LOOP_WORK + 1
        per_value = self.visits.keywords + _PARSING
        positions = self.visits.positions + self.visits.keywords / _KEYWORDS_PER_POSITION
        positions += _LOOKING_FOR_NUMBERS * self.visits.numbers
        total = 0.0
        for content in contents:
            values = len(content)
            if values * (per_value + positions) > MAX_LOOP_WORK:
                values = 1 + sum(map(content.count, ",:[{"))
            total += values * per_value + len(content) * positions
            if total > MAX_LOOP_WORK or (self.visits.numbers and _UNUSUAL_NUMBER.search(content)):
                return MAX_LOOP_WORK + 1
        return math.ceil(total)


def make_contract(schema: Any) -> Contract:
    """Raises ValueError, naming the place in the schema."""
    text = orjson.dumps(schema)
    try:
        CompileBudget().take(schema)
    except SchemaRefused:
        return Contract(text, None, None)  # a version from before this limit existed
    validator = answer_validator(schema)
    bounded = visits(schema)
    if bounded is not None and bounded.positions and _backtracks(schema):
        bounded = None
    return Contract(text, None if bounded is None else validator, bounded)


async def check_contract(
    contract: Contract, choices: Iterable[Choice], process: SchemaProcess, in_flight_mark: AbstractContextManager[None]
) -> bool | None:
    """Whether every choice is JSON that matches the schema. None: not checked.

    Only complete answers are checked: those that were cut by a length limit or a filter, and tool calls, say nothing
    about the schema. Answers longer than what is collected are not checked either.
    """
    contents = [
        choice.content for choice in choices if choice.finish_reason == "stop" and choice.size <= MAX_CONTENT_BYTES
    ]
    if not contents:
        return None
    if contract.validator is None or contract.work(contents) > MAX_LOOP_WORK:
        return await process.matches(contract.schema, [content.encode() for content in contents])
    with in_flight_mark:
        return all(matches(contract.validator, content) for content in contents)


def matches(validator: jsonschema_rs.Validator, content: str | bytes) -> bool:
    """Whether a text is JSON that matches the schema."""
    try:
        return validator.is_valid(orjson.loads(content))
    except ValueError:  # not JSON, or a value that the validator does not support
        return False


def _backtracks(schema: Any) -> bool:
    """Whether it has a regular expression with look-around or back-references: these can take exponential time."""
    try:
        jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return True
    return False
