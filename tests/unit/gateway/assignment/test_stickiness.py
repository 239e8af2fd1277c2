"""Buckets, units and audiences: docs/reference/stickiness.md as tests."""

import json
import re
from pathlib import Path

import pytest
from openfeature.contrib.tools.flagd.core.targeting.targeting import targeting
from openfeature.evaluation_context import EvaluationContext

from promptrollout.api.delivery import Audience, RequestMatch, Stickiness
from promptrollout.gateway.assignment.assign import Assignment, Routing, assign
from promptrollout.gateway.assignment.bucketing import bucket, unit_hash, within

DOCS = Path(__file__).parents[4] / "docs" / "reference" / "stickiness.md"
VECTORS = json.loads(DOCS.with_name("stickiness-vectors.json").read_text())


def murmur3_x86_32(data: bytes, seed: int = 0) -> int:
    """Austin Appleby's reference algorithm, written down again: the check must not be the library itself."""

    def mixed(word: int) -> int:
        word = word * 0xCC9E2D51 & 0xFFFFFFFF
        word = (word << 15 | word >> 17) & 0xFFFFFFFF
        return word * 0x1B873593 & 0xFFFFFFFF

    state = seed
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        state ^= mixed(int.from_bytes(data[at : at + 4], "little"))
        state = (state << 13 | state >> 19) & 0xFFFFFFFF
        state = (state * 5 + 0xE6546B64) & 0xFFFFFFFF
    if tail := data[whole:]:
        state ^= mixed(int.from_bytes(tail, "little"))
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & 0xFFFFFFFF
    return state ^ state >> 16


@pytest.mark.parametrize("unit", ["", "a", "ab", "abc", "abcd", "user-1", "Zoë", "用户", "x" * 1000])
def test_buckets_are_murmur3_of_salt_and_unit_scaled_to_ten_thousand(unit: str) -> None:
    assert bucket(unit_hash("salt", unit.encode())) == murmur3_x86_32(b"salt" + unit.encode()) * 10_000 >> 32


def test_the_vectors_of_the_documentation_hold() -> None:
    rows = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \| (\d+) \|", DOCS.read_text(), re.MULTILINE)
    assert len(rows) >= 8
    assert [bucket(unit_hash(salt, unit.encode())) for salt, unit, _ in rows] == [int(found) for _, _, found in rows]


def test_the_committed_vectors_hold() -> None:
    assert len(VECTORS) >= 40
    for vector in VECTORS:
        salt, unit = vector["salt"], vector["unit"].encode()
        hashed = unit_hash(salt, unit)
        assert bucket(hashed) == vector["bucket"], vector
        assert [weight for weight in range(101) if within(hashed, weight)][:1] == [vector["canaryFromWeight"]]


@pytest.mark.parametrize("weight", [0, 1, 5, 10, 25, 50, 75, 99, 100])
def test_flagd_itself_assigns_the_vectors_alike(weight: int) -> None:
    """Its own evaluation, of the flag that docs/reference/stickiness.md shows."""
    rule = {
        "fractional": [
            {"cat": [{"var": "salt"}, {"var": "targetingKey"}]},
            ["canary", weight * 100],
            ["stable", 10_000 - weight * 100],
        ]
    }
    assert json.loads(re.findall(r"```json\n(.*?)```", DOCS.read_text(), re.DOTALL)[0])["targeting"] == {
        "fractional": [rule["fractional"][0], ["canary", 1000], ["stable", 9000]]
    }
    for vector in VECTORS:
        context = EvaluationContext(vector["unit"], {"salt": vector["salt"]})
        ours = "canary" if within(unit_hash(vector["salt"], vector["unit"].encode()), weight) else "stable"
        assert targeting("support", rule, context) == ours, vector


def test_no_unit_flips_back_while_the_weight_grows() -> None:
    units = [f"user-{n}".encode() for n in range(20_000)]
    before: set[bytes] = set()
    for weight in (0, 1, 5, 10, 25, 50, 99, 100):
        now = {unit for unit in units if within(unit_hash("salt", unit), weight)}
        assert before <= now
        assert abs(len(now) / len(units) - weight / 100) < 0.01
        before = now
    assert len(before) == len(units)


def test_another_salt_chooses_other_units() -> None:
    units = [f"user-{n}".encode() for n in range(10_000)]
    first = {unit for unit in units if within(unit_hash("one", unit), 10)}
    second = {unit for unit in units if within(unit_hash("two", unit), 10)}
    assert 0.05 < len(first & second) / len(first) < 0.15


@pytest.mark.parametrize(
    ("by", "headers", "body", "unit"),
    [
        ("User", {"x-user-id": b"h"}, {"safety_identifier": "s", "user": "u"}, b"h"),
        ("User", {}, {"safety_identifier": "s", "user": "u"}, b"s"),
        ("User", {}, {"user": "Zoë"}, "Zoë".encode()),
        ("User", {}, {"user": 17}, b"17"),
        ("User", {}, {"user": {"id": 1}}, b""),
        ("User", {}, {"user": ""}, b""),
        ("User", {"baggage": b"user.id=b"}, {"user": "u", "metadata": {"user_id": "m"}}, b"u"),
        ("User", {"baggage": b"user.id=b"}, {"metadata": {"user_id": "m"}}, b"m"),
        ("User", {"baggage": b"tier=1, user.id=Zo%C3%AB%20X;p=1"}, {"metadata": {"user_id": None}}, "Zoë X".encode()),
        ("User", {"baggage": b"userid=b"}, {}, b""),
        ("User", {}, {"prompt_cache_key": "shared"}, b""),
        ("Conversation", {"baggage": b"gen_ai.conversation.id=b"}, {"conversation": "r"}, b"r"),
        ("Conversation", {"baggage": b"gen_ai.conversation.id=b"}, {"conversation": {"id": "o"}}, b"o"),
        ("Conversation", {"baggage": b"gen_ai.conversation.id=b"}, {"conversation": None}, b"b"),
        ("Conversation", {"x-conversation-id": b"c"}, {}, b"c"),
        ("Conversation", {}, {"metadata": {"conversation_id": "m"}}, b"m"),
        ("Conversation", {}, {"metadata": "m", "user": "u"}, b""),
        ("Header", {"x-tenant": b"t"}, {"user": "u"}, b"t"),
        ("Header", {}, {"user": "u"}, b""),
    ],
)
def test_where_the_unit_comes_from(by: str, headers: dict[str, bytes], body: dict[str, object], unit: bytes) -> None:
    stickiness = Stickiness.model_validate({"by": by, "header": "X-Tenant"})
    assigned = assign(Routing.of(50, "salt", stickiness), headers, body, never)
    assert assigned.unit == (unit_hash("salt", unit) if unit else None)
    assert assigned.keyless is (not unit)


def routing(by: str = "User", weight: int = 100, audience: Audience | None = None) -> Routing:
    return Routing.of(weight, "salt", Stickiness.model_validate({"by": by}), audience)


def never() -> bytes:
    raise AssertionError("no random unit is wanted here")


def test_no_key_is_stable_outside_the_comparison() -> None:
    assert assign(routing(), {}, {}, never) == Assignment("stable-outside", keyless=True)


def test_by_request_every_request_is_its_own_unit() -> None:
    draws = iter([b"1", b"2"])
    assert assign(routing("Request"), {}, {}, lambda: next(draws)).variant == "canary"
    assert assign(routing("Request", weight=0), {}, {}, lambda: next(draws)).variant == "stable"


@pytest.mark.parametrize(
    ("headers", "variant"),
    [
        ({"x-plan": b"free", "x-region": b"eu"}, "canary"),
        ({"x-plan": b"gold", "x-region": b"eu"}, "stable-outside"),
        ({"x-region": b"eu"}, "stable-outside"),
        ({"x-plan": b"free"}, "stable-outside"),
        ({"x-plan": b"free", "x-region": b"eu", "x-internal": b"yes"}, "stable-outside"),
        ({"x-plan": b"free", "x-region": b"eu", "x-internal": b"no"}, "canary"),
    ],
)
def test_the_audience_needs_every_include_and_no_exclude(headers: dict[str, bytes], variant: str) -> None:
    audience = Audience(
        include=[RequestMatch(header="X-Plan", values=["free", "pro"]), RequestMatch(header="x-region", values=["eu"])],
        exclude=[RequestMatch(header="x-internal", values=["yes"])],
    )
    assert assign(routing(audience=audience), headers, {"user": "u"}, never).variant == variant


def test_the_audience_looks_at_baggage_too() -> None:
    audience = Audience(
        include=[RequestMatch(baggage="user.plan", values=["free", "a b"])],
        exclude=[RequestMatch(baggage="staff", values=["yes"])],
    )

    def variant(baggage: bytes | None) -> str:
        headers = {} if baggage is None else {"baggage": baggage}
        return assign(routing(audience=audience), headers, {"user": "u"}, never).variant

    assert variant(b"user.plan=free") == variant(b"x=1,user.plan = a%20b ;q") == "canary"
    assert variant(None) == variant(b"user.plan=gold") == variant(b"User.plan=free") == "stable-outside"
    assert variant(b"user.plan=free,staff=yes") == "stable-outside"


TESTERS = [RequestMatch(header="X-Team", values=["qa"]), RequestMatch(baggage="synthetic", values=["true"])]


@pytest.mark.parametrize(
    ("headers", "loaded", "found"),
    [
        ({"x-team": b"qa", "x-promptrollout-variant": b"canary"}, True, ("canary-outside", True)),
        ({"x-team": b"qa", "x-promptrollout-variant": b"stable"}, True, ("stable-outside", True)),
        ({"baggage": b"synthetic=true", "x-promptrollout-variant": b"canary"}, True, ("canary-outside", True)),
        ({"x-team": b"qa", "x-promptrollout-variant": b"canary"}, False, ("stable-outside", True)),
        ({"x-team": b"qa", "x-promptrollout-variant": b"other"}, True, ("stable", False)),
        ({"x-team": b"qa"}, True, ("stable", False)),
        ({"x-team": b"ops", "x-promptrollout-variant": b"canary"}, True, ("stable", False)),
        ({"x-promptrollout-variant": b"canary"}, True, ("stable", False)),
    ],
)
def test_a_tester_names_the_variant_and_nobody_else_does(
    headers: dict[str, bytes], loaded: bool, found: tuple[str, bool]
) -> None:
    made = Routing.of(0, "salt", Stickiness(), None, TESTERS, canary_loaded=loaded)
    assignment = assign(made, headers, {"user": "u"}, never)
    assert (assignment.variant, assignment.forced) == found
    nobody = Routing.of(0, "salt", Stickiness(), canary_loaded=loaded)
    assert assign(nobody, headers, {"user": "u"}, never).variant == "stable"


def test_a_tester_may_be_outside_of_the_audience_and_without_a_key() -> None:
    audience = Audience(include=[RequestMatch(header="x-plan", values=["free"])])
    made = Routing.of(0, "salt", Stickiness(), audience, TESTERS)
    headers = {"x-team": b"qa", "x-promptrollout-variant": b"canary"}
    assert assign(made, headers, {}, never) == Assignment("canary-outside", forced=True)
