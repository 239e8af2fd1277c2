"""Answers that are made to cost more than any answer may: many choices, endless text, calls that never end."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.llm.answers.choices import MAX_CHOICES, MAX_COLLECTED
from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.protocols.chat import ChatReader
from promptrollout.llm.providers import http_answer
from promptrollout.llm.translations import blocks, messages_response
from promptrollout.llm.translations.messages_response import ResponseStream
from tests.unit.gateway.kit import SCHEMA, Caller, Provider, arm, completion, delivery, request, says, series, streams


def choice(index: int, content: str, finish_reason: str | None = None) -> bytes:
    found = {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({"id": "a", "choices": [found]}) + b"\n\n"


async def test_a_stream_of_more_choices_than_can_be_asked_for_is_broken_off(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    provider.script.append(streams(*(choice(n, "x") for n in range(MAX_CHOICES + 50))))
    answered = await caller.post(request(stream=True))
    assert b"the answer has more than 128 choices" in answered.body
    assert series(gateway, "stable").errors["stream_broken"] == 1


async def test_of_many_choices_the_first_are_held_against_the_schema(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, outputSchema=SCHEMA)))
    good, number = '{"answer": "a"}', MAX_COLLECTED + 3
    pieces = [choice(n, good if n < MAX_COLLECTED else "no JSON", "stop") for n in range(number)]
    provider.script.append(streams(*pieces, b"data: [DONE]\n\n"))
    assert (await caller.post(request(stream=True))).status == 200
    assert series(gateway, "stable").total.contract_failures == 0


async def test_an_answer_as_a_whole_goes_on_with_all_its_choices(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, outputSchema=SCHEMA)))
    one = completion('{"answer": "a"}')["choices"][0]
    provider.script.append(
        says(200, completion() | {"choices": [one] * MAX_CHOICES + [completion()["choices"][0]] * 9})
    )
    answered = await caller.post(request())
    assert len(orjson.loads(answered.body)["choices"]) == MAX_CHOICES + 9
    assert series(gateway, "stable").total.contract_failures == 0


def test_what_the_last_event_repeats_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_response, "MAX_CHARACTERS", 5_000)
    stream = ResponseStream({})
    stream.event({"type": "message_start", "message": {"id": "msg_1", "model": "m"}})
    text: dict[str, Any] = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 1_000}}
    for _ in range(4):
        stream.event(text)
    with pytest.raises(StreamError, match="longer than 5000 characters"):
        stream.event(text)


def test_calls_that_look_whole_again_and_again_are_tried_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt parses all that came before: of many small pieces that would be quadratic."""

    def told(budget: int) -> list[Any]:
        monkeypatch.setattr(blocks, "MAX_TRIED_CHARACTERS", budget)
        found, out = blocks.Blocks(), list[bytes]()
        for index, arguments in ((0, '{"a": '), (1, "{"), (0, "{}"), (0, "}"), (1, "}")):
            found.call({"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": arguments}}, out)
        found.close(out)
        events = [orjson.loads(each.split(b"data: ")[1]) for each in out]
        return [
            "".join(
                event["delta"]["partial_json"] for event in events if event.get("delta") and event["index"] == index
            )
            for index in (0, 1)
        ]

    assert told(10_000) == told(0) == ['{"a": {}}', "{}"]


async def test_an_answer_that_takes_the_parser_seconds_is_not_parsed(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    for values in (b"[]," * 1_000_001, b"1," * 4_000_001):
        provider.script.append(says(200, b'{"id":"a","choices":[],"x":[' + values + b"1]}"))
        answered = await caller.post(request())
        assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert series(gateway, "stable").errors["bad_response"] == 2


DEEP = b"[" * 400 + b"]" * 400


async def test_what_cannot_be_written_again_keeps_the_providers_id(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    """Its id stands there twice, so that ours cannot simply take its place."""
    key = {"responseKey": "0" * 64}
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url), **key))
    said = b'{"index":0,"message":{"content":"x"},"finish_reason":"stop"}'
    whole = b'{"id":"a","id":"a","choices":[' + said + b'],"x":' + DEEP + b"}"
    provider.script.append(says(200, whole))
    answered = await caller.post(request())
    assert (answered.status, answered.body) == (200, whole)
    provider.script.append(streams(b"data: " + whole + b"\n\n"))
    answered = await caller.post(request(stream=True))
    assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert sum(series(gateway, "stable").errors.values()) == 1


@pytest.mark.parametrize("cut", [True, False])
async def test_behind_its_end_marker_a_stream_is_whole_whatever_the_provider_does(
    cut: bool, gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_answer, "REST_SECONDS", 0.05)
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    pieces = [choice(0, "Hello", "stop"), b"data: [DONE]\n\n", *([] if cut else [asyncio.Event()])]
    provider.script.append(streams(*pieces, cut=cut))
    answered = await caller.post(request(stream=True))
    assert answered.body.endswith(b"data: [DONE]\n\n")
    assert b"error" not in answered.body
    stable = series(gateway, "stable")
    assert (stable.total.requests, sum(stable.errors.values()), stable.total.empty_answers) == (1, 0, 0)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_in_single_bytes_is_read_as_in_one_piece(end: bytes) -> None:
    events = [b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": "a" * n}}]}) for n in (1, 500)]
    stream = b"".join(event + end for event in events) + b": nothing" + end + b"data: [DONE]" + end
    whole, dripping = (ChatReader(forward_usage=True, collect_content=True) for _ in range(2))
    expected = whole.feed(stream) + whole.finish()
    found = b"".join(dripping.feed(stream[n : n + 1]) for n in range(len(stream))) + dripping.finish()
    # a line feed behind the very last carriage return ends nothing any more
    assert found.rstrip() == expected.rstrip() == stream.rstrip()
    assert (dripping.choices()[0].content, dripping.done) == ("a" * 501, True)
