"""The signed response id: nothing is lost in it, nothing can be changed in it, nothing else of an answer is."""

from __future__ import annotations

import dataclasses
import re
import string
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.gateway.assignment.answer_id import AnswerId
from promptrollout.gateway.assignment.response_id import MAX_CHARACTERS, ResponseId, ResponseIds, parse, provider_tag
from promptrollout.gateway.process import Gateway
from promptrollout.llm.protocols.chat import CHAT
from tests.unit.gateway.kit import (
    DONE,
    KEY,
    USAGE_CHUNK,
    Caller,
    Provider,
    arm,
    chunk,
    completion,
    delivery,
    request,
    says,
    streams,
)

IDS = ResponseIds("uid-1", bytes.fromhex(KEY))
NOW = 1_700_000_000
LATER = 2.0**33
SAFE = string.ascii_letters + string.digits + "-_.~"

upstream_ids = st.one_of(
    st.sampled_from(["chatcmpl-", "resp_", "msg_", "gen-", ""]).flatmap(
        lambda prefix: st.text(SAFE, max_size=80).map(lambda rest: prefix + rest)
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
TAG = provider_tag("http://model/v1")
answers = st.builds(
    lambda *of, at, earlier: ResponseId(*of, at_seconds=at, provider=TAG, began_seconds=at - earlier),
    upstream_ids,
    st.text("0123456789abcdef", min_size=10, max_size=10),
    st.sampled_from(["stable", "canary", "stable-outside", "canary-outside", None]),
    st.integers(0, 31),
    at=st.integers(2**17, 2**32 - 1),
    earlier=st.integers(0, 2**16 - 1),
)


def an_answer(upstream: str = "chatcmpl-1") -> ResponseId:
    return ResponseId(upstream, "a" * 10, "canary", 7, NOW, TAG, NOW)


@given(answers)
def test_it_says_what_was_put_in(answer: ResponseId) -> None:
    token = IDS.wrap(answer)
    assert IDS.unwrap(token, LATER) == answer
    assert re.fullmatch(r"[A-Za-z0-9._~-]{40,}", token), "safe in a URL"
    assert len(token) <= MAX_CHARACTERS


@given(answers)
def test_a_token_in_a_token_is_one_too(answer: ResponseId) -> None:
    inner = IDS.wrap(answer)
    outer = ResponseIds("uid-2", bytes(32)).wrap(an_answer(inner))
    found = ResponseIds("uid-2", bytes(32)).unwrap(outer, LATER)
    assert found is not None
    assert found.upstream == inner
    assert IDS.unwrap(outer, LATER) is None


@given(answers, st.data())
@settings(max_examples=500)
def test_no_changed_one_is_taken(answer: ResponseId, data: st.DataObject) -> None:
    token = IDS.wrap(answer)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(SAFE + "+/=é\n ").filter(lambda c: c != token[at]))
    assert IDS.unwrap(token[:at] + other + token[at + 1 :], LATER) is None, "one character is another"
    assert IDS.unwrap(token[:at], LATER) is None, "cut"
    assert IDS.unwrap(token + other, LATER) is None, "longer"
    assert IDS.unwrap(token[:at] + token[at + 1 :], LATER) is None, "one character is missing"


def test_a_conversation_began_at_most_eighteen_hours_before() -> None:
    for began, said in ((NOW + 5, NOW), (NOW - 65_535, NOW - 65_535), (NOW - 100_000, NOW - 65_535)):
        answer = dataclasses.replace(an_answer(), began_seconds=began)
        found = IDS.unwrap(IDS.wrap(answer), LATER)
        assert found is not None
        assert found.began_seconds == said


@given(st.text(max_size=600))
def test_whatever_is_asked_gets_an_answer(text: str) -> None:
    assert IDS.unwrap(text, LATER) is None


def test_the_rest_cannot_become_the_prefix() -> None:
    """Text before and behind the signed part is signed for its place."""
    token = IDS.wrap(an_answer("ab-c"))
    signed = token.removeprefix("ab-").removesuffix("c")
    assert IDS.unwrap(f"{signed}ab-c", LATER) is None
    assert IDS.unwrap(f"c{signed}ab-", LATER) is None


def test_it_is_short_and_keeps_the_prefix() -> None:
    token = IDS.wrap(an_answer("chatcmpl-AbCdEf0123456789"))
    assert token.startswith("chatcmpl-P")
    assert token.endswith("AbCdEf0123456789")
    assert len(token) == len("chatcmpl-AbCdEf0123456789") + 40


def test_an_id_that_is_too_long_stays_as_it_is() -> None:
    upstream = "chatcmpl-" + "x" * 257
    assert IDS.wrap(an_answer(upstream)) == upstream


def test_another_key_or_rollout_takes_none() -> None:
    token = IDS.wrap(an_answer())
    assert ResponseIds("uid-1", bytes(32)).unwrap(token, LATER) is None
    found = parse(token)
    assert found is not None
    assert found.tag == IDS.tag != ResponseIds("uid-2", bytes(32)).tag


@given(answers, st.integers(0, 3), st.booleans(), st.booleans())
def test_nothing_but_the_id_is_changed(answer: ResponseId, also: int, indented: bool, again: bool) -> None:
    """Also where the id stands elsewhere in the answer, as text or as another object's."""
    upstream = answer.upstream or "x"
    text = ["Hello", upstream, f'"id":"{upstream}"', f'{{"id": "{upstream}"}}'][also]
    parsed = completion(text, id=upstream)
    if again:
        parsed["choices"][0]["id"] = upstream
    payload = orjson.dumps(parsed, option=orjson.OPT_INDENT_2 if indented else None)
    answer_id = AnswerId(IDS, answer.version, answer.variant, answer.shard, TAG, None, lambda: NOW + 0.5)
    found: dict[str, Any] = orjson.loads(payload)
    assert answer_id.replace_in(found, ("id",))
    replaced = orjson.loads(answer_id.replaced(payload) or orjson.dumps(found))
    made = IDS.unwrap(replaced["id"], LATER)
    assert made == ResponseId(upstream, answer.version, answer.variant, answer.shard, NOW, TAG, NOW)
    assert {**replaced, "id": upstream} == parsed


@pytest.mark.parametrize("parsed", [{}, {"id": None}, {"id": ""}, {"id": 5}, {"id": ["x"]}])
def test_an_answer_without_an_id_gets_none(parsed: dict[str, Any]) -> None:
    before = dict(parsed)
    assert not AnswerId(IDS, "a" * 10, "stable", 0, TAG, None, lambda: NOW).replace_in(parsed, ("id",))
    assert parsed == before


def test_an_id_further_down_is_found_there() -> None:
    parsed: dict[str, Any] = {"type": "message_start", "message": {"id": "msg_1"}}
    assert AnswerId(IDS, "a" * 10, "stable", 0, TAG, None, lambda: NOW).replace_in(parsed, ("message", "id"))
    assert parsed["message"]["id"].startswith("msg_P")
    answer_id = AnswerId(IDS, "a" * 10, "stable", 0, TAG, None, lambda: NOW)
    assert not answer_id.replace_in({"message": "x"}, ("message", "id"))


async def test_every_chunk_of_a_stream_has_it(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url), responseKey=KEY))
    odd = b'event: x\r\ndata: {"id" :"chatcmpl-1",\r\ndata: "choices":[{"index":0,"delta":{"content":"!"}}]}\r\n\r\n'
    pieces = chunk("Hel", id="chatcmpl-1"), odd, chunk("lo", "stop", id="chatcmpl-1")
    provider.script.append(streams(*pieces, USAGE_CHUNK, DONE))
    answered = await caller.post(request(stream=True))
    events = [event for event in answered.body.split(b"\n\n") if event]
    assert events[-1] == b"data: [DONE]"
    assert events[1].startswith(b"event: x\ndata: {"), "an event's other fields stay"
    found = [orjson.loads(event[event.index(b"data: ") + 6 :]) for event in events[:-1]]
    assert len({event["id"] for event in found}) == 1
    made = IDS.unwrap(found[0]["id"], LATER)
    assert made is not None
    assert (made.upstream, made.version, made.variant) == ("chatcmpl-1", "a" * 10, "stable")
    assert [event["choices"][0]["delta"].get("content") for event in found] == ["Hel", "!", "lo"]


@pytest.mark.parametrize("place", ["response", "message"])
def test_it_stands_where_other_protocols_have_it(place: str) -> None:
    reader = CHAT.reader({"stream": True}, collect_content=False)
    reader.answer_id = AnswerId(IDS, "a" * 10, "stable", 0, TAG, None, lambda: NOW)
    event = {"type": "created", place: {"id": "x_1", "output": [{"id": "item_1"}]}}
    delta = {"type": "delta", "item_id": "item_1", "delta": "x_1"}
    sent = b"".join(b"event: e\ndata: " + orjson.dumps(each) + b"\n\n" for each in (event, delta))
    first, second, _ = reader.feed(sent).split(b"\n\n")
    found = orjson.loads(first.removeprefix(b"event: e\ndata: "))
    made = IDS.unwrap(found[place]["id"], LATER)
    assert made is not None
    assert made.upstream == "x_1"
    assert found[place]["output"] == [{"id": "item_1"}]
    assert orjson.loads(second.removeprefix(b"event: e\ndata: ")) == delta


async def test_without_a_key_answers_keep_the_provider_s_id(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    assert (await caller.post(request())).json["id"] == "chatcmpl-1"


async def test_the_provider_gets_its_own_id_back(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url), responseKey=KEY))
    provider.script.append(says(body=completion(id="resp_1")))
    first = (await caller.post(request())).json["id"]
    assert first.startswith("resp_P")
    for previous, sent in [(first, "resp_1"), (f"{first}x", f"{first}x"), ("resp_other", "resp_other"), (7, 7)]:
        await caller.post(request(previous_response_id=previous))
        assert provider.requests[-1]["previous_response_id"] == sent
