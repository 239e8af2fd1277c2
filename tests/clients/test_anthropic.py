"""The `anthropic` package as it is, pointed at the gateway: its messages answered by providers of OpenAI's API."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.kit import ABSENT, World
from tests.unit.gateway.kit import DONE, USAGE_CHUNK, arm, chunk, completion, counted, says, streams

anthropic = pytest.importorskip("anthropic", reason=ABSENT)

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "name": "parcel",
    "description": "Where a parcel is.",
    "input_schema": {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]},
}


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    options: Any = {"api_key": "unused", "timeout": 10, "max_retries": 0, "default_headers": {"x-user-id": "u1"}}
    with anthropic.Anthropic(base_url=world.root, **options) as client:
        yield client


def ask(client: Any, **changes: Any) -> Any:
    return client.messages.create(**{"model": "support", "max_tokens": 100, "messages": HELLO, **changes})


def test_an_answer_and_the_headers_that_say_what_answered(world: World, client: Any) -> None:
    world.serve({"answer": "In Ulm."})
    raw = client.messages.with_raw_response.create(model="support", max_tokens=100, messages=HELLO, system="Be short.")
    assert raw.headers["x-promptrollout-variant"] == "stable"
    answer = raw.parse()
    assert [block.text for block in answer.content] == ["In Ulm."]
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert counted(world.gateway) == {"stable": (1, 0)}


def test_a_stream_is_put_together(world: World, client: Any) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    with client.messages.stream(model="support", max_tokens=100, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "The parcel is in Ulm."
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0
    assert counted(world.gateway) == {"stable": (1, 0)}


def test_calls_that_a_provider_interleaves_are_put_together(world: World, client: Any) -> None:
    rng = random.Random(7)
    for _ in range(30):
        wanted = [{"number": str(rng.randrange(10**6)), "note": "}{"} for _ in range(rng.randint(2, 4))]
        rest = []
        for index, arguments in enumerate(wanted):
            text = json.dumps(arguments)
            cut = rng.randrange(len(text))
            first = {"index": index, "id": f"c{index}", "type": "function"}
            rest.append(
                [
                    {**first, "function": {"name": "parcel", "arguments": text[:cut]}},
                    {"index": index, "function": {"arguments": text[cut:]}},
                ]
            )
        order = []
        pieces = []
        while any(rest):
            at = rng.choice([number for number, left in enumerate(rest) if left])
            order.append(at)
            delta = {"tool_calls": [rest[at].pop(0)]}
            pieces.append(b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n")
        world.script(streams(*pieces, chunk(None, "tool_calls"), USAGE_CHUNK, DONE))
        with client.messages.stream(model="support", max_tokens=100, messages=HELLO, tools=[TOOL]) as stream:
            final = stream.get_final_message()
        assert [block.input for block in final.content] == [wanted[number] for number in dict.fromkeys(order)]


def test_tokens_are_counted(world: World, client: Any) -> None:
    world.script(says(200, {"input_tokens": 42}), provider_type="Anthropic")
    assert client.messages.count_tokens(model="support", messages=HELLO, system="Be short.").input_tokens == 42
    assert world.provider.requests[-1]["system"] == "You are a.\n\nBe short."
    world.script()
    with pytest.raises(anthropic.NotFoundError, match="OpenAI's API"):
        client.messages.count_tokens(model="support", messages=HELLO)
    assert counted(world.gateway) == {}


async def test_the_async_client_asks_and_streams(world: World) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    async with anthropic.AsyncAnthropic(base_url=world.root, api_key="unused", timeout=10, max_retries=0) as client:
        answer = await client.messages.create(model="support", max_tokens=100, messages=HELLO)
        assert answer.content[0].text == "The parcel is in Ulm."
        async with client.messages.stream(model="support", max_tokens=100, messages=HELLO) as stream:
            assert "".join([text async for text in stream.text_stream]) == "The parcel is in Ulm."


CALL = {"id": "call_1", "type": "function", "function": {"name": "parcel", "arguments": '{"number":"47"}'}}


def test_tools_go_up_and_calls_of_them_come_down(world: World, client: Any) -> None:
    asked: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    calls = completion(choices=[{"index": 0, "message": asked, "finish_reason": "tool_calls"}])
    world.script(says(body=calls), says())
    first = ask(client, tools=[TOOL])
    assert first.stop_reason == "tool_use"
    (used,) = [block for block in first.content if block.type == "tool_use"]
    assert (used.name, used.input) == ("parcel", {"number": "47"})
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "Ulm"}]}
    second = ask(client, tools=[TOOL], messages=[*HELLO, {"role": "assistant", "content": first.content}, result])
    assert second.content[0].text == "Hello"
    sent = world.provider.requests
    assert sent[0]["tools"][0]["function"]["name"] == "parcel"
    assert sent[1]["messages"][-2]["tool_calls"][0]["id"] == used.id
    assert (sent[1]["messages"][-1]["role"], sent[1]["messages"][-1]["content"]) == ("tool", "Ulm")


def test_a_call_of_a_tool_is_put_together_from_a_stream(world: World, client: Any) -> None:
    def delta(finish_reason: str | None = None, **call: Any) -> bytes:
        found = {"tool_calls": [{"index": 0, **call}]} if call else {}
        return chunk(id="1", choices=[{"index": 0, "delta": found, "finish_reason": finish_reason}])

    begin = delta(id="call_1", type="function", function={"name": "parcel", "arguments": ""})
    parts = [delta(function={"arguments": piece}) for piece in ('{"num', 'ber":"', '47"}')]
    world.script(streams(begin, *parts, delta("tool_calls"), USAGE_CHUNK, DONE))
    with client.messages.stream(model="support", max_tokens=100, messages=HELLO, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert final.content[-1].input == {"number": "47"}


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (400, "BadRequestError", 400),
        (401, "InternalServerError", 502),
        (403, "InternalServerError", 502),
        (429, "RateLimitError", 429),
        (500, "InternalServerError", 502),
    ],
)
def test_what_a_provider_says_is_the_sdks_own_exception_with_retry_after(
    world: World, client: Any, status: int, kind: str, shown: int
) -> None:
    error = {"error": {"message": "told so", "type": "t", "code": "c", "param": "p"}}
    world.script(says(status, error, **{"retry-after": "7"}), provider_maxRetries=0)
    with pytest.raises(getattr(anthropic, kind)) as failed:
        ask(client)
    assert failed.value.status_code == shown
    assert "told so" in str(failed.value)
    assert failed.value.body["type"] == "error"
    assert failed.value.response.headers["retry-after"] == "7"
    assert counted(world.gateway) == {"stable": (1, 1)}


def test_what_is_wrong_with_a_request_is_the_sdks_own_exception(world: World, client: Any) -> None:
    world.serve({}, messages=[{"role": "system", "content": "You are of {{ company }}."}])
    with pytest.raises(anthropic.NotFoundError):
        ask(client, model="absent")
    with pytest.raises(anthropic.BadRequestError, match="company"):
        ask(client)
    assert ask(client, extra_body={"prompt_variables": {"company": "ACME"}}).content


def test_a_provider_that_is_not_there_is_a_bad_gateway(world: World, client: Any) -> None:
    world.deliver(stable=arm(url="http://127.0.0.1:1/v1", provider_maxRetries=0))
    with pytest.raises(anthropic.InternalServerError) as failed:
        ask(client)
    assert failed.value.status_code == 502


def test_a_stream_that_breaks_is_an_error_of_the_sdk_after_what_came(world: World, client: Any) -> None:
    world.script(streams(chunk("half "), chunk("way"), cut=True))
    got: list[str] = []

    def read() -> None:
        with client.messages.stream(model="support", max_tokens=100, messages=HELLO) as stream:
            got.extend(stream.text_stream)

    with pytest.raises(anthropic.APIError):
        read()
    assert "".join(got) == "half way"
    assert counted(world.gateway) == {"stable": (1, 1)}
