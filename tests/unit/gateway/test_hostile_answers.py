"""Answers that are made to cost more than any answer may: many choices, endless text, calls that never end."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from promptrollout.gateway.choices import MAX_CHOICES, MAX_COLLECTED
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.sse import StreamError
from promptrollout.gateway.translations import blocks, messages_response
from promptrollout.gateway.translations.messages_response import ResponseStream
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
    assert b"it has more than 128 choices" in answered.body
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
