"""Templates: filled with values, never with code; bounded in size and time."""

import pytest

from promptrollout.gateway import templates
from promptrollout.gateway.templates import MissingVariable, RenderError, compile_renderer


@pytest.mark.parametrize(
    ("text", "variables", "rendered"),
    [
        ("plain } text", {}, "plain } text"),
        ("Hello {{ name }}!\n", {"name": "Zoë"}, "Hello Zoë!\n"),
        ("{{ name }}", {"name": "{{ secret }} {% for %}"}, "{{ secret }} {% for %}"),
        ("{{ name }}", {"name": "<b>&"}, "<b>&"),
        ("{% for x in xs %}{{ loop.index }}/{{ loop.length }}{{ x }} {% endfor %}", {"xs": "ab"}, "1/2a 2/2b "),
        ("{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", {"d": {"a": 1}}, "a1"),
        ("{{ x is defined }} {{ x|default('y') }}", {}, "False y"),
        ("{{ d|tojson }}", {"d": {"a": [1]}}, '{"a": [1]}'),
        ("{{ 'x'|center(3) }}{{ 'y'.rjust(2) }}", {}, " x  y"),
        ("{{ 'ab' * 2 }}{{ 7 % 4 }}", {}, "abab3"),
    ],
)
def test_renders(text: str, variables: dict[str, object], rendered: str) -> None:
    assert compile_renderer(text)(variables) == rendered


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{ company }}", "company"),
        ("{% if company %}x{% endif %}", "company"),
        ("{% for x in company %}x{% endfor %}", "company"),
        ("{{ company|upper }}", "company"),
        ("{{ company + 1 }}", "company"),
        ("{{ user.company }}", "company"),
    ],
)
def test_a_missing_variable_is_named(text: str, name: str) -> None:
    with pytest.raises(MissingVariable) as caught:
        compile_renderer(text)({"user": {}})
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ 'a' * 100000000000 }}", "repetition"),
        ("{% set x = [1] * 100000000000 %}", "repetition"),
        ("{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}", "longer than"),
        ("{{ 'x'|center(99999999999) }}", "width"),
        ("{{ 'x'|indent(width=99999999999) }}", "width"),
        ("{{ 'x'.ljust(99999999999) }}", "width"),
        ("{{ n / 0 }}", "ZeroDivisionError"),
        ("{{ n.x() }}", "not allowed|TypeError|Undefined|x"),
        ("{{ '%0999999999d' % 1 }}", "not supported"),
        ("{{ [1].append(2) }}", "not allowed"),
    ],
)
def test_what_cannot_be_rendered_says_why(text: str, message: str) -> None:
    with pytest.raises((RenderError, MissingVariable), match=message):
        compile_renderer(text)({"n": 1})


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_time_is_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_RENDER_SECONDS", 0.01)
    with pytest.raises(RenderError, match=r"longer than 0\.01 s"):
        compile_renderer(text)({})


def test_nothing_is_evaluated_while_it_is_compiled() -> None:
    compile_renderer("{{ 'a' * 100000000000 }}{{ 'x'|center(100000000000) }}")


def test_what_is_no_template_is_refused_with_line_and_fix() -> None:
    with pytest.raises(ValueError, match=r"line 2: .*raw"):
        compile_renderer("first\n{{ open")
