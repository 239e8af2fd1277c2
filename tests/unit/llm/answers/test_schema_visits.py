"""The bound on what there is to look at in an answer, found from its schema alone."""

import json
from typing import Any

import pytest

from promptrollout.llm.answers.contract import MAX_LOOP_WORK, make_contract
from promptrollout.llm.answers.schema_visits import Visits, visits


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
        ({"format": "uri", "allOf": [{"contentMediaType": "application/json"}] * 3}, Visits(8, 4)),
        ({"propertyNames": {"allOf": [{"format": "iri"}, {"pattern": "^a$"}]}}, Visits(5, 4)),
        ({"items": {"multipleOf": 0.01, "minimum": 0}}, Visits(101, 0, numbers=True)),
        ({"enum": [1, 2.5, "a", None]}, Visits(164, 0, numbers=True)),
        ({"properties": {"a": {"uniqueItems": True}, "b": {"uniqueItems": True}}}, Visits(402, 1, numbers=True)),
        ({"uniqueItems": True, "items": {"uniqueItems": True}}, Visits(804, 2, numbers=True)),
        ({"properties": {"a": {"$ref": "#"}}, "additionalProperties": {"$ref": "#"}}, Visits(3, 0)),
        ({"items": {"allOf": [{"type": "string"}, {"maxLength": 9}, {"minLength": 1}]}}, Visits(7, 2)),
        ({"anyOf": [{"prefixItems": [{"maxItems": n} for n in range(9)]} for _ in range(3)]}, Visits(6, 0)),
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
        {"multipleOf": 1e-300},
        {"const": [5e-324]},
        {"allOf": [{"multipleOf": 0.01}] * 300},
        {"enum": list(range(300))},
        {"uniqueItems": True, "items": {"$ref": "#"}},
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


DRAFT_7 = "http://json-schema.org/draft-07/schema#"
OF_TEXTS = [
    *({"format": f"{kind}-reference"} for kind in ("uri", "iri")),
    {"format": "uri-template"},
    {"format": "relative-json-pointer"},
    {"contentMediaType": "application/json"},
    {"contentEncoding": "base64"},
    {"maxLength": 9},
]


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"items": {"multipleOf": 0.01}}, "[" + "1e300," * 20_000 + "1]"),
        ({"items": {"multipleOf": 0.01}}, "[1, 1e300]"),
        ({"items": {"maximum": 0.5}}, "[-0.5e-300]"),
        ({"items": {"enum": [1, 2, 3]}}, "[0." + "0" * 300 + "1]"),
        ({"uniqueItems": True}, "[\n1E0300]"),
        ({"properties": {"a": {"const": 7}}}, '{"a":1e+300}'),
        ({"allOf": [{"multipleOf": 0.01, "$comment": str(n)} for n in range(200)]}, "[" + "1.5," * 200 + "1]"),
        *(({"$schema": DRAFT_7, "allOf": [one] * 3_900}, f'"{"a" * 1_000_000}"') for one in OF_TEXTS),
        ({"$schema": DRAFT_7, "propertyNames": {"allOf": [OF_TEXTS[0]] * 300}}, f'{{"{"a" * 300_000}": 1}}'),
        ({"properties": {"a": {"minimum": 0}}}, f'{{"b": "{" 1" * 200_000}"}}'),
        ({"allOf": [{"properties": {"a": True}}] * 3_900}, f'{{"{"a" * 1_000_000}": 1}}'),
    ],
)
def test_what_is_slow_for_each_character_or_number_is_not_checked_in_the_event_loop(schema: Any, answer: str) -> None:
    assert make_contract(schema).work([answer]) > MAX_LOOP_WORK


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"items": {"multipleOf": 0.01}}, "[" + "19.99," * 1_000 + "1e3]"),
        ({"items": {"type": "number", "minimum": 0, "maximum": 100}}, "[" + "19.99," * 5_000 + "1]"),
        ({"items": {"enum": list(range(10))}}, "[" + "3," * 500 + "1]"),
        ({"items": {"enum": ["1e300", 2]}}, '["1e300", "sha-12e45678901234567890123456789012"]'),
        ({"uniqueItems": True, "items": {"type": "string"}}, '["' + '","'.join(map(str, range(500))) + '"]'),
        ({"properties": {"text": {"type": "string", "maxLength": 200_000}}}, f'{{"text": "{"a" * 100_000}"}}'),
        ({"$schema": DRAFT_7, "items": {"format": "uri"}}, '["' + '","'.join(["https://example.com/"] * 500) + '"]'),
    ],
)
def test_usual_answers_are_checked_in_the_event_loop(schema: Any, answer: str) -> None:
    assert make_contract(schema).work([answer]) <= MAX_LOOP_WORK
