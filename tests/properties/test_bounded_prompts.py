"""Whatever prompt is accepted: to check it, to load it and to hold an answer against its schema takes little time.

What is asserted is processor time, with a margin of fifty over what was measured: each of these bounds is a count, and
a schema or a template that escapes the counting has no bound at all.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.template import prompt_problems
from promptrollout.llm.answers.contract import MAX_LOOP_WORK, make_contract, matches
from promptrollout.llm.prompts.prompt import compile_prompt

CPU_SECONDS = 5.0
LEAVES: list[Any] = [
    *({"type": "string"}, {"type": "object"}, {"enum": [1, "a", None]}, {"minLength": 2}, {"uniqueItems": True}, True),
    *({"const": {"a": 1}}, {"required": ["a", "b"]}, {"not": {"type": "null"}}, {"multipleOf": 0.3}),
    *({"pattern": text} for text in ("^a+$", "(a|b)*c", r"\w{1,30}", "(?=a)a*b", ".{0,200}$", "(x+x+)+y", r"(a+)\1")),
]
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
MAPS = ("properties", "patternProperties", "dependentSchemas")
SINGLE = (
    *("not", "if", "then", "items", "contains", "propertyNames", "additionalProperties"),
    *("unevaluatedProperties", "unevaluatedItems"),
)
PIECES = [
    *("{{ a }}", "{{ a ~ b }}", "{% if a %}x{% endif %}", "{% for x in a %}{{ x }}{% endfor %}", "{% set y = a %}"),
    *("{{ a.b[0]|upper|default('x') }}", "{{ a if b else c }}", "{# x #}", "{% raw %}{{{% endraw %}", "{ } text\n"),
    *("{{ [a, b, {'c': d}] }}", "{{ a < b < c }}", "{% with x = a %}{{ x }}{% endwith %}", "{{ 'a' ~ 1.5 ~ true }}"),
]
NESTED = [
    *(("{% if a %}", "{% endif %}"), ("{% for x in a %}", "{% endfor %}"), ("{% with %}", "{% endwith %}")),
    *(
        ("{{ (", ") }}"),
        ("{{ [", "] }}"),
        ("{{ not ", "a }}"),
        ("{{ a", "|upper }}"),
        ("{{ a", ".b }}"),
        ("{{ a", "~b }}"),
    ),
    *(("{{ a", " if b else c }}"), ("{{ a", "[0] }}"), ("{{ -", "1 }}"), ("{%- ", " -%}")),
]


@contextmanager
def little_time(of: Any) -> Iterator[None]:
    before = time.process_time()
    yield
    assert time.process_time() - before < CPU_SECONDS, of


def prompt(messages: list[str], schema: Any = None) -> PromptSpec:
    said = [{"role": "user", "content": text} for text in messages]
    given: dict[str, Any] = {"providerRef": {"name": "p"}, "model": "m", "messages": said}
    return PromptSpec.model_validate(given if schema is None else {**given, "outputSchema": schema})


class Schemas:
    """Definitions that refer to each other, several times at once, in every way that there is."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._size = source.choice([1, 2, 3, 5, 8, 12, 20, 30])
        self._forward = source.random() < 0.6
        self._width = source.choice([1, 2, 2, 3, 4])

    def made(self) -> dict[str, Any]:
        definitions = {f"d{number}": self._schema(number) for number in range(self._size)}
        return {"$defs": definitions, "$ref": "#/$defs/d0"}

    def _inner(self, number: int) -> Any:
        if self._random.random() < 0.4 or (self._forward and number + 1 == self._size):
            return self._random.choice(LEAVES)
        return {"$ref": f"#/$defs/d{number + 1 if self._forward else self._random.randrange(self._size)}"}

    def _schema(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._random.choice([1, 1, 2, 3])):
            several = [self._inner(number) for _ in range(self._width)]
            name = self._random.choice([*LISTS, *MAPS, *SINGLE])
            if name in LISTS:
                found[name] = several
            elif name in MAPS:
                found[name] = dict(zip("ab", several, strict=False))
            else:
                found[name] = several[0]
        return found


def answers(source: random.Random) -> Iterator[Any]:
    depth, length = source.choice([5, 50, 240]), source.choice([10, 1000, 20_000])
    for inside in (lambda found: [found], lambda found: {"a": found, "b": "ab"}):
        value: Any = "ab"
        for _ in range(depth):
            value = inside(value)
        yield value
    yield [source.choice([1, "a", {"a": 1, "b": "aaab"}, ["a"]]) for _ in range(length)]
    yield {f"a{n}": {"a": n} for n in range(length)}
    yield "ab" * length


@settings(max_examples=250)
@given(st.randoms(use_true_random=False))
def test_schemas(source: random.Random) -> None:
    schema = Schemas(source).made()
    with little_time(schema):
        problems = prompt_problems(prompt(["x"], schema))
    with little_time(schema):
        contract = make_contract(schema)
    if contract.validator is None or problems:
        return
    for answer in answers(source):
        text = json.dumps(answer)
        if contract.work([text]) <= MAX_LOOP_WORK:
            with little_time((schema, text[:100])):
                matches(contract.validator, text)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(PIECES), st.integers(1, 3000))
        | st.tuples(st.sampled_from(NESTED), st.integers(1, 3000)),
        min_size=1,
        max_size=4,
    )
)
def test_templates(parts: list[tuple[Any, int]]) -> None:
    texts = [
        (piece * times if isinstance(piece, str) else piece[0] * times + "x" + piece[1] * times)[:40_000]
        for piece, times in parts
    ]
    spec = prompt(texts)
    with little_time(parts):
        problems = prompt_problems(spec)
    if not problems:
        with little_time(parts):
            compile_prompt(spec)
