"""The contract check: complete answers only, JSON that matches, nothing else."""

import pytest

from promptrollout.gateway.metrics.in_flight import InFlightFile, InFlightMark
from promptrollout.llm.answers.choices import MAX_CONTENT_BYTES, Choice, choices_of
from promptrollout.llm.answers.contract import check_contract, make_contract
from promptrollout.llm.answers.schema_process import SchemaProcess
from promptrollout.llm.protocols.chat import CHAT
from tests.unit.gateway.kit import SCHEMA, completion

CONTRACT = make_contract(SCHEMA)
GOOD = '{"answer": "yes"}'


def said(content: str, finish_reason: str | None) -> Choice:
    choice = Choice()
    choice.add({"role": "assistant", "content": content}, finish_reason, collect=True)
    return choice


@pytest.mark.parametrize(
    ("choices", "verdict"),
    [
        ([said(GOOD, "stop")], True),
        ([said(GOOD, "stop"), said("prose", "stop")], False),
        ([said('{"answer": 1}', "stop")], False),
        ([said("{}", "stop")], False),
        ([said(f"```json\n{GOOD}\n```", "stop")], False),
        ([said('{"answer": "y', "stop")], False),
        ([said("", "stop")], False),
        ([said("1" * 400, "stop")], False),
        ([said('{"answer": "y', "length")], None),
        ([said("", "tool_calls")], None),
        ([said("", "content_filter")], None),
        ([said("", None)], None),
        ([said(" " * (MAX_CONTENT_BYTES + 1), "stop")], None),
        ([], None),
    ],
)
async def test_verdicts(choices: list[Choice], verdict: bool | None) -> None:
    mark = InFlightMark(InFlightFile(), "", "", "stable")
    assert await check_contract(CONTRACT, choices, SchemaProcess(), mark) is verdict


def test_choices_of_any_answer() -> None:
    def read(answer: dict[str, object]) -> list[tuple[str, str | None]]:
        return [(choice.content, choice.finish_reason) for choice in choices_of(answer)]

    assert read(completion(GOOD)) == [(GOOD, "stop")]
    assert read({"choices": [None, {"message": None, "finish_reason": "stop"}]}) == [("", "stop")]
    assert read({"choices": None}) == []


@pytest.mark.parametrize(
    ("body", "does"),
    [
        ({}, True),
        ({"response_format": None}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "text"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, False),
        ({"response_format": {"type": "grammar"}}, False),
        ({"response_format": "json"}, False),
    ],
)
def test_a_caller_who_brings_a_schema_is_not_judged_by_ours(body: dict[str, object], does: bool) -> None:
    assert CHAT.leaves_format(body) is does
