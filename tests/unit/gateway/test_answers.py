"""The contract check: complete answers only, JSON that matches, nothing else."""

import pytest

from promptrollout.api.template import answer_validator
from promptrollout.gateway.contract import MAX_CONTENT_BYTES, Choice, applies, choices_of, kept
from tests.unit.gateway.kit import SCHEMA, completion

VALIDATOR = answer_validator(SCHEMA)
GOOD = '{"answer": "yes"}'


@pytest.mark.parametrize(
    ("choices", "verdict"),
    [
        ([Choice(GOOD, "stop")], True),
        ([Choice(GOOD, "stop"), Choice("prose", "stop")], False),
        ([Choice('{"answer": 1}', "stop")], False),
        ([Choice("{}", "stop")], False),
        ([Choice(f"```json\n{GOOD}\n```", "stop")], False),
        ([Choice('{"answer": "y', "stop")], False),
        ([Choice("", "stop")], False),
        ([Choice("1" * 400, "stop")], False),
        ([Choice('{"answer": "y', "length")], None),
        ([Choice("", "tool_calls")], None),
        ([Choice("", "content_filter")], None),
        ([Choice("", None)], None),
        ([Choice(" " * (MAX_CONTENT_BYTES + 1), "stop")], None),
        ([], None),
    ],
)
def test_verdicts(choices: list[Choice], verdict: bool | None) -> None:
    assert kept(VALIDATOR, choices) is verdict


def test_choices_of_any_answer() -> None:
    assert choices_of(completion(GOOD)) == [Choice(GOOD, "stop")]
    assert choices_of({"choices": [None, {"message": None, "finish_reason": "stop"}]}) == [Choice("", "stop")]
    assert choices_of({"choices": None}) == []


@pytest.mark.parametrize(
    ("body", "does"),
    [
        ({}, True),
        ({"response_format": None}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, False),
    ],
)
def test_a_caller_who_asks_for_another_format_is_not_judged_by_ours(body: dict[str, object], does: bool) -> None:
    assert applies(body) is does
