"""Prompts that the schema lets through and that could not be served: each is named with its place and a fix."""

from typing import Any

import pytest

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.template import (
    answer_validator,
    compile_template,
    prompt_problems,
    template_problems,
    variables_of,
)


def spec(content: str = "Hi.", **fields: Any) -> PromptSpec:
    return PromptSpec.model_validate(
        {"providerRef": {"name": "p"}, "model": "m", "messages": [{"role": "system", "content": content}]} | fields
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("plain", set()),
        ("{{ company }} and {{ user.name }}", {"company", "user"}),
        ("{% for item in items %}{{ item }}{% endfor %}", {"items"}),
        ("{% set a = b %}{{ a }}", {"b"}),
        ("{{ tone | default('kind') }}", {"tone"}),
        ("{% raw %}{{ json }}{% endraw %}", set()),
        ("{{ range(3) | join }}", set()),
    ],
)
def test_variables(text: str, names: set[str]) -> None:
    assert variables_of(text) == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello {{ name", "line 1"),
        ("Hello\n{{ }}", "line 2"),
        ('Answer {"a": {{"b": 1}}}', "line 1"),
        ("{% if x %}", "line 1"),
        ("{{ x | shout }}", "the filter 'shout' does not exist in prompts; there are: abs, capitalize"),
        ("{{ x | pprint }}", "the filter 'pprint' does not exist"),
        ("{{ x | map('pprint') }}", "the filter 'pprint' does not exist"),
        ("{{ x | tojson(indent=9) }}", "tojson takes no arguments"),
        ("{{ x is wild }}", "the test 'wild' does not exist in prompts; there are: boolean"),
        ("{{ x | select('callable') }}", "the test 'callable' does not exist"),
        ("{{ x.format(1) }}", "the method 'format' does not exist in prompts; there are: capitalize"),
        ("{{ x['format'](1) }}", "only methods can be called"),
        ("{{ lipsum(9) }}", "the function 'lipsum' does not exist in prompts; there are: range"),
        ("{{ '%9d' % 1 }}", "the operator % is for numbers"),
        ("{{ 'x' * n }}", "the operator * is for numbers"),
        ("{{ n * [1] }}", "the operator * is for numbers"),
        ("{{ 0xffffffffffffffffff }}", "too large"),
        ("{% macro f() %}{% endmacro %}", "macro is not supported"),
        ("{% filter upper %}x{% endfilter %}", "filter blocks are not supported"),
        ("{% set x %}y{% endset %}", "set blocks are not supported"),
        ("{% for x in xs recursive %}{% endfor %}", "recursive loops are not supported"),
        ("{% block x %}{% endblock %}", "block is not supported"),
        ("line 1 {{ x }}" * 9000, "more than 2500 tokens"),
        ("{% for x in a %}" * 21 + "{% endfor %}" * 21, "more than 20 nested loops"),
        ("{% include 'other' %}", "include is not supported"),
        ("{% extends 'other' %}", "extends is not supported"),
        ("{{ 9 ** 9 ** 9 }}", "** is not supported"),
        ("{{ " + "(" * 1000 + "1" + ")" * 1000 + " }}", "nested too deeply"),
    ],
    ids=lambda text: text[:24],
)
def test_template_that_does_not_parse(text: str, reason: str) -> None:
    ((path, said),) = template_problems(spec(text))
    assert path == "messages[0].content"
    assert reason in said
    with pytest.raises(ValueError, match=r"line \d|nested|more than"):
        compile_template(text)


def test_checking_does_not_evaluate() -> None:
    """The optimizer would do this while the template is only checked."""
    assert variables_of("{{ [1]|round(100000000000) }}{{ 1 // 0 }}") == set()


def test_text_is_kept_as_written() -> None:
    assert compile_template("<b>{{ a }}</b>\n").render(a="&") == "<b>&</b>\n"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "not a JSON Schema at type"),
        ({"properties": {"a": {"type": "strin"}}}, "at properties/a/type"),
        ({"type": "string", "pattern": "("}, "at pattern"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "Retrieval is disabled"),
        ({"$schema": "http://nope.example/x"}, "Unknown meta-schema"),
    ],
)
def test_output_schema_that_is_none(schema: dict[str, Any], reason: str) -> None:
    ((path, said),) = template_problems(spec(outputSchema=schema))
    assert path == "outputSchema"
    assert reason in said


def test_output_schema_of_an_older_draft() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "required": ["a"]}
    assert template_problems(spec(outputSchema=schema)) == []
    assert not answer_validator(schema).is_valid({})


@pytest.mark.parametrize(
    ("tool", "path"),
    [
        ({}, "tools[0]"),
        ({"type": "function"}, "tools[0].function"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "tools[0].function.parameters"),
        ({"type": "function", "function": {"name": "f", "parameters": {"type": 1}}}, "tools[0].function.parameters"),
    ],
)
def test_tool_that_no_provider_takes(tool: dict[str, Any], path: str) -> None:
    assert [found for found, _ in template_problems(spec(tools=[tool]))] == [path]


def test_sound_prompt() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert prompt_problems(spec(tools=[tool, {"type": "web_search"}], parameters={"extra": {"n": 1}})) == []


def test_extra_does_not_smuggle_fields_that_have_a_place() -> None:
    problems = prompt_problems(spec(parameters={"extra": {"model": "x", "max_tokens": 4, "reasoning_effort": "low"}}))
    assert problems == [
        ("parameters.extra.max_tokens", "max_tokens belongs in parameters.maxTokens: move it there"),
        ("parameters.extra.model", "model belongs in model: move it there"),
    ]


def test_too_large_counts_bytes() -> None:
    half = {"role": "user", "content": "ü" * 60_000}
    ((path, reason),) = prompt_problems(spec(messages=[half, half]))
    assert path == ""
    assert "at most 196608" in reason


def test_number_without_canonical_form() -> None:
    ((_, reason),) = prompt_problems(spec(outputSchema={"const": 2**60}))
    assert "write such numbers as strings" in reason
