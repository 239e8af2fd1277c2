"""What is refused before it is compiled, because nobody could say how long that takes."""

import json
from typing import Any

import pytest

from promptrollout.api.pattern_size import pattern_size
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.schema_limits import MAX_COMPILE_COST, SchemaRefused, compile_cost
from promptrollout.api.template import MAX_TOKENS, prompt_problems


def spec(**changes: Any) -> PromptSpec:
    made = {"providerRef": {"name": "p"}, "model": "m", "messages": [{"role": "user", "content": "hi"}], **changes}
    return PromptSpec.model_validate(made)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def doubled(levels: int, **more: Any) -> dict[str, Any]:
    """Each level refers to the next one twice."""
    defs: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2, **more} for n in range(levels)}
    return {"$defs": {**defs, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def test_tokens_of_all_templates_are_counted_together_and_before_any_is_compiled() -> None:
    ten = said(*["{{ " + "x~" * 8990 + "x }}"] * 10)
    ((path, reason),) = prompt_problems(spec(messages=ten))
    assert path == "messages[0].content"
    assert f"more than {MAX_TOKENS} tokens" in reason
    some = "{{ a }}" * 500  # three each
    assert prompt_problems(spec(messages=said(some))) == []
    assert [where for where, _ in prompt_problems(spec(messages=said(some, some)))] == ["messages[1].content"]


def test_text_outside_of_braces_is_no_token() -> None:
    assert prompt_problems(spec(messages=said("word { } % # " * 9_000 + "{{ a }}"))) == []


def test_a_prompt_that_is_too_large_is_not_looked_at_further() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": 1, "description": "x" * 200_000}}}
    assert [path for path, _ in prompt_problems(spec(tools=[tool]))] == [""]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "#"}, "leads back to itself"),
        ({"not": {"not": {"$ref": "#"}}}, "leads back to itself"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}}, "leads back to itself"),
        (doubled(40), "levels of $ref"),
        (doubled(14, unevaluatedProperties=False), "cost too much to compile"),
        ({"allOf": [{"$dynamicRef": "#a"}], "unevaluatedItems": False}, "$dynamicRef"),
        ({"pattern": r"\pL{400}"}, "cost too much to compile"),
        ({"allOf": [{"pattern": f".{{500}}{n}"} for n in range(40)]}, "cost too much to compile"),
        ({"patternProperties": {r"((a{100}){100}){100}": True}}, "cost too much to compile"),
        ({"prefixItems": [{"type": "string"} for _ in range(6000)]}, "more than 4000 schemas"),
    ],
)
def test_a_schema_that_costs_too_much_to_compile_is_refused(schema: dict[str, Any], reason: str) -> None:
    ((path, found),) = prompt_problems(spec(outputSchema=schema))
    assert path == "outputSchema"
    assert reason in found
    assert len(found) <= 160


@pytest.mark.parametrize(
    "schema",
    [
        doubled(12),
        doubled(4, unevaluatedProperties=False),
        {"properties": {"children": {"items": {"$ref": "#"}}}},
        {"pattern": r"^[\w.+-]{1,64}@[\w.-]{1,255}$"},
        {"properties": {f"p{n}": {"type": "string", "maxLength": 9} for n in range(1000)}},
        {"$id": "https://example.com/a", "$defs": {"a": {"type": "null"}}, "$ref": "https://example.com/a#/$defs/a"},
    ],
)
def test_what_people_write_is_taken(schema: dict[str, Any]) -> None:
    assert prompt_problems(spec(outputSchema=json.loads(json.dumps(schema)))) == []


def test_the_schemas_of_tools_count_together() -> None:
    parameters = {"properties": {f"p{n}": {} for n in range(400)}}
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": parameters}} for n in range(20)]
    assert compile_cost(parameters) * 20 > MAX_COMPILE_COST
    assert prompt_problems(spec(tools=tools[:10])) == []
    assert prompt_problems(spec(tools=tools))[0][0] == "tools[10].function.parameters"


@pytest.mark.parametrize(
    ("pattern", "positions"),
    [
        ("abc", 3),
        ("a{3}", 3),
        ("a{3,5}", 5),
        ("a{3,}", 3),
        ("(ab){4}", 12),
        ("((a{100}){100}){100}", 1_010_100),
        ("[a-z]{10}", 10),
        (r"\d{4}-\d{2}", 7),
        ("a{", 2),
        ("[", 1),
        (")", 1),
    ],
)
def test_repetitions_are_written_out(pattern: str, positions: int) -> None:
    assert pattern_size(pattern).positions == positions


def test_hostile_patterns_are_measured_in_time_proportional_to_their_length() -> None:
    for part in ("[", "\\p{", "(?<a", "{1,", "(?i", "[]", "\\", "[a\\]"):
        assert pattern_size(part * 40_000).positions > 0


def test_malformed_schemas_are_left_to_the_validator() -> None:
    for schema in (
        {"allOf": 1, "properties": [], "items": 5, "$ref": 1, "dependencies": {"a": ["b"]}},
        {"$ref": "#/x"},
    ):
        assert compile_cost(schema) > 0
    assert compile_cost({"allOf": [{"$ref": f"#/allOf/{'9' * 5000}"}]}) > 0
    with pytest.raises(SchemaRefused):
        compile_cost({"if": {"$ref": "#"}})
