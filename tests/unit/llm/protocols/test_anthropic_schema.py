"""What of an output schema Anthropic's structured outputs are asked for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptrollout.llm.protocols.anthropic_schema import supported_schema

TEXT = {"type": "string"}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (TEXT, TEXT),
        ({"type": "string", "format": "date", "default": "x", "examples": ["y"]}, {"type": "string", "format": "date"}),
        (of(a=TEXT), {**of(a=TEXT), "additionalProperties": False}),
        ({"properties": {"a": TEXT}}, {**of(a=TEXT), "additionalProperties": False}),
        ({"type": "object", "additionalProperties": False}, {**of(), "additionalProperties": False}),
        (
            {**of(a=TEXT), "required": ["a"], "additionalProperties": False, "title": "T", "description": "d"},
            {**of(a=TEXT), "required": ["a"], "additionalProperties": False, "title": "T", "description": "d"},
        ),
        ({"enum": ["a", 1, None], "type": ["string", "integer", "null"]}, {"enum": ["a", 1, None]}),
        ({"const": "a", "title": "T"}, {"const": "a", "title": "T"}),
        ({"type": "array", "items": TEXT, "minItems": 1}, {"type": "array", "items": TEXT, "minItems": 1}),
        (
            {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 3},
            {"type": "array", "items": TEXT, "description": '{"minItems":2,"maxItems":3}'},
        ),
        (
            {"type": "integer", "minimum": 1, "maximum": 5, "description": "Stars."},
            {"type": "integer", "description": 'Stars.\n\n{"minimum":1,"maximum":5}'},
        ),
        (
            {"type": "string", "format": "iban", "maxLength": 9},
            {"type": "string", "description": '{"maxLength":9,"format":"iban"}'},
        ),
        (
            {"type": ["string", "null"], "description": "d", "maxLength": 9},
            {"anyOf": [{"type": "string", "description": '{"maxLength":9}'}, {"type": "null"}], "description": "d"},
        ),
        ({"oneOf": [TEXT, {"type": "null"}], "title": "T"}, {"anyOf": [TEXT, {"type": "null"}], "title": "T"}),
        (
            {"$defs": {"a": TEXT, "unused": {}}, "$ref": "#/$defs/a"},
            {"$ref": "#/$defs/a", "$defs": {"a": TEXT}},
        ),
        (
            {"definitions": {"enum": TEXT}, **of(enum={"$ref": "#/definitions/enum"})},
            {
                **of(enum={"$ref": "#/definitions/enum"}),
                "additionalProperties": False,
                "definitions": {"enum": TEXT},
            },
        ),
    ],
)
def test_what_can_be_said_is_said_and_other_bounds_stand_in_the_description(
    schema: dict[str, Any], wanted: dict[str, Any]
) -> None:
    before = orjson.dumps(schema)
    assert supported_schema(schema) == wanted
    assert orjson.dumps(schema) == before


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": TEXT},
        {**of(a=TEXT), "additionalProperties": True},
        {**of(a=TEXT), "patternProperties": {"^x": TEXT}},
        {**of(a=TEXT), "allOf": [of(b=TEXT)]},
        {**of(a=TEXT), "anyOf": [{"required": ["a"]}]},
        {**of(a=TEXT), "required": ["b"]},
        of(a={}),
        of(a=True),
        {"type": "array"},
        {"type": "array", "items": True},
        {"type": "array", "prefixItems": [TEXT], "items": TEXT},
        {"enum": [{"a": 1}]},
        {"allOf": [TEXT]},
        {"not": TEXT},
        {"anyOf": [TEXT], "oneOf": [TEXT]},
        {"$ref": "#"},
        {"$ref": "#/properties/a", **of(a=TEXT)},
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    ],
)
def test_a_schema_that_closed_objects_would_change_is_not_said(schema: dict[str, Any]) -> None:
    assert supported_schema(schema) is None


def test_many_definitions_cost_no_more_than_their_number() -> None:
    count = 500
    both = {f"d{n}": of(a={"$ref": f"#/$defs/d{n + 1}"}, b={"$ref": f"#/$defs/d{n + 1}"}) for n in range(count)}
    found = supported_schema({"$ref": "#/$defs/d0", "$defs": {**both, f"d{count}": TEXT}})
    assert found is not None
    assert len(found["$defs"]) == count + 1
