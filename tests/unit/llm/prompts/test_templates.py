"""Templates: filled with values, never with code; bounded in size and time."""

import itertools
import logging
import time
from typing import Any

import pytest

from promptrollout.llm.prompts import templates
from promptrollout.llm.prompts.bounds import RenderError
from promptrollout.llm.prompts.templates import MissingVariable, compile_renderer


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
        ("{{ 6 * 7 }} {{ 7 % 4 }} {{ 7 // 2 }} {{ 1 + 2 - 4 }} {{ 'a' + 'b' }} {{ 'n' ~ 1 }}", {}, "42 3 3 -1 ab n1"),
        ("{{ xs|map(attribute='n')|join(', ') }}", {"xs": [{"n": "a"}, {"n": "b"}]}, "a, b"),
        ("{{ xs|map('upper')|list }} {{ xs|select('ne', 'a')|first }}", {"xs": ["a", "b"]}, "['A', 'B'] b"),
        ("{{ xs|selectattr('n', 'gt', 1)|length }}", {"xs": [{"n": 1}, {"n": 2}]}, "1"),
        ("{{ s.strip().upper() }} {{ s.split('-')[1:] }} {{ s|replace('a', 'o') }}", {"s": "a-b"}, "A-B ['b'] o-b"),
        ("{{ d.copy }} {{ d['pop'] }} {{ d.get('x', 1) }}", {"d": {"copy": "c", "pop": "p"}}, "c p 1"),
        ("{{ d|items|list }} {{ d|dictsort }}", {"d": {"a": 1}}, "[('a', 1)] [('a', 1)]"),
        ("{% for k in 'ab' %}{{ loop.cycle('x', 'y') }}{{ ', ' if not loop.last }}{% endfor %}", {}, "x, y"),
        ("{% if 'a' in s and n > 1 %}y{% elif n is none %}z{% endif %}", {"s": "abc", "n": 2}, "y"),
        (
            "{{ '<b>x</b>'|striptags }}{{ 2.56|round(1) }}{{ 'abc def ghi'|truncate(8, end='…') }}",
            {},
            "x2.6abc def ghi",
        ),
        (
            "{{ ('a', 'b')[0] }}{{ {'k': 1}.k }}{{ range(3)|join }}{{ d|tojson|e }}",
            {"d": "<"},
            'a1012"\\u003c"',
        ),
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
        ("{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}", "longer than"),
        ("{{ n / 0 }}", "ZeroDivisionError"),
        ("{{ 'hello world'|truncate(2) }}", "AssertionError"),
        ("{{ n.bit_length }}", "not allowed"),
        ("{{ s.format }}", "not allowed"),
        ("{{ s['format'] }}", "not allowed"),
        ("{{ [s]|map(attribute='format')|join }}", "not allowed"),
        ("{{ [s]|map(f)|list }}", "pprint"),
        ("{{ s % n }}", "only on numbers"),
        ("{{ s * n }}", "only on numbers"),
        ("{{ s ~ '\\ud800' }}", "UnicodeEncodeError"),
        ("{{ range(n) }}", "TypeError"),
    ],
)
def test_what_cannot_be_rendered_says_why(text: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        compile_renderer(text)({"n": 1, "s": "%9d", "f": "pprint"} | ({"range": 1} if "range(n)" in text else {}))


def test_whatever_a_template_raises_is_a_render_error_and_logged_once_without_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    render = compile_renderer("{{ name|int // 0 }}")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(RenderError):
                render({"name": "secret"})
    (record,) = caplog.records
    assert "ZeroDivisionError" in record.getMessage()
    assert "secret" not in caplog.text


def test_a_pod_that_waits_for_its_share_of_a_core_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy with something else the clock goes on, and the CPU that was used does not."""
    clock = itertools.count(step=10.0)
    monkeypatch.setattr(templates.time, "perf_counter", lambda: next(clock))
    assert compile_renderer("{{ a }} and {{ b.c }}")({"a": "x", "b": {"c": "y"}}) == "x and y"


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) if range(99999)|select('gt', 100000)|list %}{% endfor %}",
        "{% if range(99999)|sort == 1 %}{% endif %}" * 500,
    ],
)
def test_time_is_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_RENDER_SECONDS", 0.01)
    with pytest.raises(RenderError, match=r"longer than 0\.01 s"):
        compile_renderer(text)({})


def test_a_pod_without_a_processor_is_no_slow_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of a rendering for longer than it may take, as on a node that is overcommitted."""
    monkeypatch.setattr(templates, "MAX_RENDER_SECONDS", 0.05)
    render = compile_renderer("{% for name in names %}{{ name }} {% endfor %}")

    class Stopping(str):
        def __str__(self) -> str:
            time.sleep(0.1)
            return "late"

    assert render({"names": [Stopping("late"), "late"]}).split() == ["late", "late"]


def test_nothing_is_evaluated_while_it_is_compiled() -> None:
    compile_renderer("{{ 1|round(100000000000) }}{{ 1 // 0 }}")


def doubling(expression: str) -> str:
    """Sixty steps, each of which doubles: `@` is the value before."""
    steps = [f"{{% set x{n + 1} = {expression.replace('@', f'x{n}')} %}}" for n in range(60)]
    return "{% set x0 = start %}" + "".join(steps) + "{{ x60 }}"


LONG = "x" * 500_000
MANY = ["x"] * 50_000


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        (doubling("@ + @"), {"start": "ab"}),
        (doubling("@ + @"), {"start": [1, 2]}),
        (doubling("@ ~ @"), {"start": "ab"}),
        (doubling("[@, @]"), {"start": "ab"}),
        (doubling("(@, @)"), {"start": "ab"}),
        (doubling("{'a': @, 'b': @}"), {"start": "ab"}),
        (doubling("[@.items(), @.items()]|items"), {"start": {"a": 1}}),
        (doubling("@ * @"), {"start": 99}),
        (doubling("@|tojson"), {"start": '"' * 20}),
        (doubling("@|replace('a', 'aa')"), {"start": "a"}),
        ("{{ [d.items(), d.items(), d.items()] }}", {"d": {str(n): n for n in range(50_000)}}),
        ("{{ 1|round(1000000000) }}", {}),
        ("{{ 1|round(-1000000000) }}", {}),
        ("{{ s|replace('', s) }}", {"s": LONG}),
        ("{{ xs|join(s) }}", {"xs": MANY, "s": LONG}),
        ("{{ s|join(s) }}", {"s": LONG}),
        ("{{ s|striptags }}", {"s": "<!---->" * 70_000}),
        ("{{ s|trim(t) }}", {"s": LONG, "t": "y" * 400_000 + "x"}),
        ("{{ s.strip(t) }}", {"s": LONG, "t": "y" * 400_000 + "x"}),
        ("{{ s|sort|join }}", {"s": LONG}),
        ("{{ s.split('x') }}", {"s": LONG}),
        ("{{ xs|map(attribute=a)|list }}", {"xs": [[0]] * 10_000, "a": "0." * 10_000 + "0"}),
        ("{{ xs|sort(attribute=a)|list }}", {"xs": MANY, "a": "0," * 10_000 + "0"}),
        ("{{ xs|select('in', s)|list }}{{ xs|select('in', t)|list }}", {"xs": ["xy"] * 50_000, "s": LONG, "t": "y"}),
        ("{% set a = ('xy' in s) %}" * 500 + "{{ y }}", {"s": LONG}),
        ("{{ xs" + "|map('string')" * 60 + "|join }}", {"xs": MANY}),
        ("{{ [range(99999)|list] }}{{ x * n }}", {"n": 10_000, "x": [1]}),
        ("{{ s|int(0, 16) % t|int(0, 16) }}", {"s": "f" * 500_000, "t": "f" * 250_000}),
        ("{{ s }}", {"s": "x" * 2_000_000}),
        ("{{ xs|length }}", {"xs": [1] * 200_000}),
    ],
    ids=lambda value: value[:48] if isinstance(value, str) else "",
)
def test_nothing_holds_the_gateway(text: str, variables: dict[str, Any]) -> None:
    render = compile_renderer(text)
    began = time.process_time()
    with pytest.raises((RenderError, MissingVariable)):
        render(variables)
    assert time.process_time() - began < 40 * templates.MAX_RENDER_SECONDS, "a bound does not hold"


def test_what_is_no_template_is_refused_with_line_and_fix() -> None:
    with pytest.raises(ValueError, match=r"line 2: .*raw"):
        compile_renderer("first\n{{ open")
