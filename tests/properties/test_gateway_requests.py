"""Whatever a caller sends, it gets an answer in the documented shape, and what was assigned counts exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promptrollout.gateway.http.json_body import MAX_DEPTH
from tests.properties.gateway import HEADER_BYTES, JSON_VALUES, Lab, lab
from tests.unit.gateway.kit import CANARY, SCHEMA, arm, delivery, request

TEMPLATE = "{% for item in items %}{{ item | upper }} {% endfor %}{{ name | default('nobody') | truncate(20) }}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("gateway")) as made:
        stable = arm(url=made.provider.url, outputSchema=SCHEMA)
        prompt = [{"role": "system", "content": TEMPLATE}]
        canary = arm(CANARY, made.provider.url, messages=prompt, callerSystemMessage="Refuse")
        made.apply("support", delivery(weight=50, stable=stable, canary=canary))
        made.apply("alone", delivery(rolloutUID="uid-2", stable=arm(url=made.provider.url, messages=prompt)))
        yield made


def nested(depth: int, opening: str, closing: str) -> bytes:
    text = '{"model":"support","user":"u","x":' + opening * depth + "1" + closing * depth + "}"
    return text.encode()


FIELDS = (
    st.sampled_from(["model", "messages", "user", "safety_identifier", "metadata", "prompt_variables", "stream"])
    | st.sampled_from(["stream_options", "response_format", "tools", "max_tokens", "max_completion_tokens", "n"])
    | st.sampled_from(["", "x" * 300])
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", 1, None, []])},
        optional={"content": JSON_VALUES, "tool_calls": JSON_VALUES, "name": JSON_VALUES},
    )
    | JSON_VALUES,
    max_size=4,
)
NEARLY = st.fixed_dictionaries(
    {"model": st.sampled_from(["support", "alone"]), "user": st.text(max_size=10) | JSON_VALUES},
    optional={
        "messages": MESSAGES,
        "stream": st.booleans(),
        "stream_options": JSON_VALUES,
        "response_format": JSON_VALUES,
        "prompt_variables": st.fixed_dictionaries({}, optional={"items": JSON_VALUES, "name": JSON_VALUES}),
    },
)
# what JSON's grammar allows and few libraries send: twice the same key, lone surrogates, numbers without end
ODD_VALUES = st.sampled_from(
    ["1e400", "-1e400", "9" * 400, "18446744073709551616", "-0", "0.1e-999", "1E+2", "01", "NaN", "Infinity"]
) | st.sampled_from([r'"\ud800"', r'"\udfff\ud800"', r'"\u0000"', '""', "null", "{}", "[[]]", '{"a":1,"a":2}', "'x'"])
ODD = st.lists(st.tuples(FIELDS, ODD_VALUES), max_size=5).map(
    lambda pairs: ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}").encode()
)
ODD_FILLED = st.lists(st.tuples(FIELDS, ODD_VALUES), max_size=5).map(
    lambda pairs: (
        '{"model":"support","user":"u","messages":[{"role":"user","content":"Hi"}]'
        + "".join(f",{json.dumps(name)}:{value}" for name, value in pairs if name != "model")
        + "}"
    ).encode()
)


@settings(max_examples=150)
@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
@example(b"")
@example(b"\xff\xfe{}")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 100_000)
def test_a_body_of_anything_is_refused_as_the_callers_fault(world: Lab, body: bytes) -> None:
    told = world.ask(body)
    assert told.answered.status in (400, 404)
    assert told.requests == 0


@settings(max_examples=300)
@given(
    NEARLY.map(lambda value: json.dumps(value).encode()) | ODD | ODD_FILLED,
    st.dictionaries(st.sampled_from(["x-user-id", "traceparent", "tracestate", "authorization"]), HEADER_BYTES),
)
def test_a_body_that_is_nearly_right_is_answered_and_counted_once(
    world: Lab, body: bytes, headers: dict[str, bytes]
) -> None:
    told = world.ask(body, {name: value.decode("latin-1") for name, value in headers.items()})
    assert told.answered.status in (200, 400, 404)
    assert told.requests == (told.answered.status == 200) or told.errors
    if told.answered.status == 200:
        assert len(told.sent) == 1
        assert "prompt_variables" not in told.sent[0]
        assert told.sent[0]["model"] == "gpt"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@settings(max_examples=30)
@given(depth=st.integers(1, 2000))
@example(depth=100_000)
def test_a_body_of_any_depth_is_answered_or_refused(world: Lab, depth: int, opening: str, closing: str) -> None:
    told = world.ask(nested(depth, opening, closing))
    assert told.answered.status in (200, 400)
    assert told.answered.status == 200 or told.answered.error["code"] == "invalid_json"
    if depth < MAX_DEPTH:  # the body is a level itself
        assert told.answered.status == 200


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(["items", "name", "other", "loop", "self"]), JSON_VALUES))
def test_variables_of_any_kind_fill_a_template_or_are_refused(world: Lab, variables: dict[str, Any]) -> None:
    told = world.ask(json.dumps(request(model="alone", prompt_variables=variables)).encode())
    assert told.answered.status in (200, 400)
    if told.answered.status == 400:
        assert told.answered.error["code"] in ("prompt_variable_missing", "prompt_render_failed", "invalid_json")
        assert told.answered.error["param"] or told.answered.error["code"] == "invalid_json"


@settings(max_examples=150)
@given(
    st.text(max_size=60)
    | st.sampled_from(["{{ 7*7 }}", "{% raw %}", "#}", "${x}", "{{ self.__init__ }}", "<|im_end|>"])
)
def test_text_of_a_caller_is_never_read_as_a_template(world: Lab, text: str) -> None:
    prompt = [{"role": "system", "content": "<{{ text }}>"}]
    if "echo" not in world.gateway.registry.names():
        world.apply("echo", delivery(rolloutUID="uid-3", stable=arm(url=world.provider.url, messages=prompt)))
    told = world.ask(
        request(model="echo", prompt_variables={"text": text}, messages=[{"role": "user", "content": text}])
    )
    assert told.answered.status == 200
    assert [message["content"] for message in told.sent[0]["messages"]] == [f"<{text}>", text]
