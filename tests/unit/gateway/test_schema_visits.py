"""The bound on what there is to look at in an answer, found from its schema alone."""

import json
from typing import Any

import pytest

from promptrollout.gateway.contract import MAX_LOOP_WORK, make_contract
from promptrollout.gateway.schema_visits import Visits, visits


def doubled(levels: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**defs, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def expression(*operators: str) -> dict[str, Any]:
    def made(operator: str) -> dict[str, Any]:
        sides = {"left": {"$ref": "#"}, "right": {"$ref": "#"}}
        return {"properties": {"op": {"const": operator}, **sides}}

    return {"anyOf": [{"type": "number"}, *map(made, operators)]}


@pytest.mark.parametrize(
    ("schema", "bound"),
    [
        (True, Visits(1, 0)),
        ({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}, Visits(5, 0)),
        ({"pattern": "^[a-z]{1,64}$"}, Visits(2, 66)),
        ({"properties": {"a": {"$ref": "#"}}, "additionalProperties": {"$ref": "#"}}, Visits(3, 0)),
        ({"items": {"allOf": [{"type": "string"}, {"maxLength": 9}, {"minLength": 1}]}}, Visits(7, 0)),
        ({"anyOf": [{"prefixItems": [{"maximum": n} for n in range(9)]} for _ in range(3)]}, Visits(6, 0)),
        (doubled(3), Visits(38, 0)),
        (expression("+"), Visits(8, 0)),
    ],
)
def test_a_bound_counts_every_way_that_leads_to_a_value(schema: Any, bound: Visits) -> None:
    assert visits(schema) == bound


@pytest.mark.parametrize(
    "schema",
    [
        doubled(20),
        doubled(40),
        expression("+", "*"),
        {"$ref": "#"},
        {"patternProperties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}},
        {"unevaluatedProperties": False},
        {"$dynamicRef": "#a"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {"properties": {"a": {"$id": "https://example.com/b", "$ref": "#/x"}}},
        {"format": "regex"},
        {"properties": {f"p{n}": {"enum": list(range(100))} for n in range(9000)}},
    ],
)
def test_where_there_is_no_bound_none_is_given(schema: Any) -> None:
    assert visits(json.loads(json.dumps(schema))) is None


def test_whoever_looks_at_an_answer_is_decided_by_counts() -> None:
    light, heavy = make_contract({"items": {"type": "integer"}}), make_contract(expression("+", "*"))
    assert light.work(["[1, 2, 3]"]) < 200
    assert light.work(["[" + "1," * 200_000 + "1]"]) > MAX_LOOP_WORK
    assert light.work(["[1]"] * 30_000) > MAX_LOOP_WORK
    assert heavy.validator is None
    assert heavy.work(["1"]) > MAX_LOOP_WORK


@pytest.mark.parametrize(("pattern", "bounded"), [("^a+$", True), ("(?=a)a+", False), (r"(a+)\1", False)])
def test_patterns_that_may_backtrack_are_not_matched_in_the_event_loop(pattern: str, bounded: bool) -> None:
    assert (make_contract({"pattern": pattern}).validator is not None) is bounded


def test_a_schema_from_before_the_bounds_is_served_and_not_compiled_here() -> None:
    assert make_contract({"$ref": "#"}).validator is None
    assert make_contract({"pattern": r"\pL{400}"}).visits is None
