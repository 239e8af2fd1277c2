"""Draws and answers of the simulated model."""

import json
import random
from typing import Any

import jsonschema_rs
import pytest

from promptrollout.sandbox.model.answers import Draws, DrawSource, broken_answer, compose, minimal_instance
from promptrollout.sandbox.model.behaviour import Behaviour, BreakKind, Outcome

ANSWER = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "string"}}}
SCHEMAS: list[dict[str, Any]] = [
    ANSWER,
    {"type": "string", "minLength": 40},
    {"type": "string", "maxLength": 3},
    {"enum": ["yes", "no"]},
    {"const": 4},
    {"type": ["integer", "null"], "minimum": 5, "multipleOf": 4},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "maximum": -3},
    {"type": "array", "minItems": 2, "items": {"type": "boolean"}},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 3},
    {"anyOf": [{"type": "null"}, ANSWER]},
    {"allOf": [ANSWER, {"required": ["tone"], "properties": {"tone": {"enum": ["warm"]}}}]},
    {
        "$defs": {"step": {"type": "object", "required": ["at"], "properties": {"at": {"format": "date-time"}}}},
        "type": "object",
        "required": ["steps", "none"],
        "properties": {"steps": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}}},
    },
]


def draws_of(**given: float) -> Draws:
    return Draws(
        **{**dict.fromkeys(("outcome", "latency", "tokens", "quality", "kind", "cut"), 0.5), **given}, request_id="r"
    )


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_the_good_answer_fits_the_schema(schema: dict[str, Any]) -> None:
    assert jsonschema_rs.is_valid(schema, minimal_instance(schema))


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}}
    assert isinstance(minimal_instance(schema), dict)


@pytest.mark.parametrize("kind", list(BreakKind))
def test_a_broken_answer_never_fits(kind: BreakKind) -> None:
    rule = Behaviour(name="a", contract_break_rate=1, contract_break_kinds=[kind])
    for schema in [ANSWER, {"type": "object"}, {"type": "integer", "minimum": 100}]:
        text = broken_answer(rule, 0.5, schema)
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            continue
        assert not jsonschema_rs.is_valid(schema, value)


def test_the_same_seed_draws_the_same_in_any_order_across_users() -> None:
    keys = [f"user-{number % 7}" for number in range(100)]

    def by_user(order: list[str]) -> dict[str, list[Draws]]:
        source = DrawSource(seed=5)
        drawn: dict[str, list[Draws]] = {}
        for user in order:
            drawn.setdefault(user, []).append(source.draw("rule", user, [{"role": "user", "content": "hi"}]))
        return drawn

    shuffled = list(keys)
    random.Random(1).shuffle(shuffled)
    assert by_user(keys) == by_user(shuffled)


def test_seed_rule_user_messages_and_repetition_each_change_the_draw() -> None:
    source = DrawSource(seed=5)
    base = source.draw("rule", "u", ["m"])
    others = [
        source.draw("rule", "u", ["m"]),
        source.draw("other", "u", ["m"]),
        source.draw("rule", "v", ["m"]),
        source.draw("rule", "u", ["n"]),
        DrawSource(seed=6).draw("rule", "u", ["m"]),
    ]
    assert len({base, *others}) == 6
    source.reset()
    assert source.draw("rule", "u", ["m"]) == base


def test_the_memory_of_keys_is_bounded() -> None:
    source = DrawSource(seed=0, capacity=2)
    first = source.draw("r", "a", [])
    for user in ("b", "c"):
        source.draw("r", user, [])
    assert source.draw("r", "a", []) == first


def test_outcomes_come_at_their_rate() -> None:
    source = DrawSource(seed=1)
    rule = Behaviour(name="a", contract_break_rate=0.3)
    broken = sum(
        rule.outcome(source.draw("a", f"user-{number}", []).outcome)[0] is Outcome.CONTRACT_BREAK
        for number in range(4000)
    )
    assert broken == pytest.approx(1200, abs=120)  # four standard deviations


@pytest.mark.parametrize(
    ("settings", "content", "refusal", "finish"),
    [
        ({"answer": "fine"}, "fine", None, "stop"),
        ({"answer": {"answer": "fine"}}, '{"answer":"fine"}', None, "stop"),
        ({"answer": "fine", "emptyRate": 1}, "", None, "stop"),
        ({"answer": "fine", "truncationRate": 1}, "fi", None, "length"),
        ({"answer": "fine", "refusalRate": 1}, None, "I'm sorry, but I can't help with that.", "stop"),
    ],
)
def test_each_outcome_has_its_shape(
    settings: dict[str, Any], content: str | None, refusal: str | None, finish: str
) -> None:
    reply = compose(Behaviour.model_validate({"name": "a", **settings}), draws_of(), 40, None, None)
    assert (reply.content, reply.refusal, reply.finish_reason) == (content, refusal, finish)


def test_tokens_follow_the_rule_and_the_callers_limit() -> None:
    rule = Behaviour.model_validate(
        {"name": "a", "answer": "12345678", "tokens": {"completionMean": 200, "cachedShare": 0.5}}
    )
    free = compose(rule, draws_of(), 400, None, None)
    assert (free.usage.prompt, free.usage.cached, free.usage.completion) == (100, 50, 200)
    limited = compose(rule, draws_of(), 400, None, 100)
    assert (limited.usage.completion, limited.finish_reason, limited.content) == (100, "length", "1234")


def test_quality_stays_on_its_scale() -> None:
    rule = Behaviour.model_validate({"name": "a", "quality": {"mean": 4.9, "spread": 2}})
    assert compose(rule, draws_of(quality=0.99), 4, None, None).quality == 5.0
