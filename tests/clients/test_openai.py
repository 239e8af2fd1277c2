"""The `openai` package as it is, pointed at the gateway: what it sends arrives, what it is told it understands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.clients.kit import ABSENT, World
from tests.unit.gateway.kit import DONE, arm, chunk, completion, counted, says, streams

openai = pytest.importorskip("openai", reason=ABSENT)

OPTIONS: Any = {"api_key": "unused", "timeout": 10, "default_headers": {"x-user-id": "u1"}}
COMPANY = {"prompt_variables": {"company": "ACME"}}
HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "parcel",
        "parameters": {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]},
    },
}


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    with openai.OpenAI(base_url=world.url, max_retries=0, **OPTIONS) as client:
        yield client


@pytest.fixture
async def async_client(world: World) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=world.url, max_retries=0, **OPTIONS) as client:
        yield client


def text_of(chunks: list[Any]) -> str:
    return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)


# ---------------------------------------------------------------------------------------------- answers


def test_an_answer_and_the_headers_that_say_what_answered(world: World, client: Any) -> None:
    world.serve({"answer": "In Ulm."})
    raw = client.chat.completions.with_raw_response.create(model="support", user="u1", messages=HELLO)
    assert raw.headers["x-promptrollout-rollout"] == "support"
    assert raw.headers["x-promptrollout-variant"] == "stable"
    assert raw.headers["x-promptrollout-version"] == "a" * 10
    answer = raw.parse()
    assert answer.choices[0].message.content == "In Ulm."
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id == raw.headers["x-request-id"]


async def test_an_answer_to_the_async_client(world: World, async_client: Any) -> None:
    world.serve({"answer": "In Ulm."})
    answer = await async_client.chat.completions.create(model="support", messages=HELLO)
    assert answer.choices[0].message.content == "In Ulm."


def test_the_canary_is_named_and_variables_reach_its_prompt(world: World, client: Any) -> None:
    world.serve({"match": {"promptContains": "of ACME"}, "answer": "ACME's"})
    world.canary(messages=[{"role": "system", "content": "You are of {{ company }}."}])
    raw = client.chat.completions.with_raw_response.create(
        model="support", user="u1", messages=HELLO, extra_body=COMPANY
    )
    assert raw.headers["x-promptrollout-variant"] == "canary"
    assert raw.parse().choices[0].message.content == "ACME's"


def test_a_stream(world: World, client: Any) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    chunks = list(client.chat.completions.create(model="support", messages=HELLO, stream=True))
    assert text_of(chunks) == "The parcel is in Ulm."
    assert len(chunks) > 3
    assert all(one.usage is None for one in chunks), "the usage that only the gateway asked for"


async def test_a_stream_to_the_async_client_with_usage_at_its_end(world: World, async_client: Any) -> None:
    world.serve({"answer": "The parcel is in Ulm."})
    stream = await async_client.chat.completions.create(
        model="support", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [one async for one in stream]
    assert text_of(chunks) == "The parcel is in Ulm."
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens > 0


def test_tools_go_up_and_calls_of_them_come_down(world: World, client: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "parcel", "arguments": '{"number":"47"}'}}
    asked: Any = {"role": "assistant", "content": None, "tool_calls": [call]}
    world.script(says(body=completion(choices=[{"index": 0, "message": asked, "finish_reason": "tool_calls"}])), says())
    first = client.chat.completions.create(model="support", messages=HELLO, tools=[TOOL], tool_choice="auto")
    message = first.choices[0].message
    assert message.tool_calls[0].function.name == "parcel"
    result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "Ulm"}
    second = client.chat.completions.create(model="support", messages=[*HELLO, message, result], tools=[TOOL])
    assert second.choices[0].message.content == "Hello"
    sent = world.provider.requests
    assert sent[0]["tools"] == [TOOL]
    assert sent[1]["messages"][-2]["tool_calls"] == [call]
    assert sent[1]["messages"][-1] == result
    assert counted(world.gateway) == {"stable": (2, 0)}


def test_calls_of_tools_are_put_together_from_a_stream(world: World, client: Any) -> None:
    def delta(finish_reason: str | None = None, **call: Any) -> bytes:
        found = {"tool_calls": [{"index": 0, **call}]} if call else {}
        event = {"index": 0, "delta": found, "finish_reason": finish_reason}
        return chunk(id="1", object="chat.completion.chunk", created=1, model="gpt", choices=[event])

    begin = delta(id="call_1", type="function", function={"name": "parcel", "arguments": ""})
    parts = [delta(function={"arguments": piece}) for piece in ('{"num', 'ber":"', '47"}')]
    world.script(streams(begin, *parts, delta("tool_calls"), DONE))
    with client.chat.completions.stream(model="support", messages=HELLO, tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"number":"47"}'
    assert final.choices[0].finish_reason == "tool_calls"


class Place(BaseModel):
    city: str
    days: int


def test_an_answer_of_a_format_that_the_caller_asks_for(world: World, client: Any) -> None:
    world.serve({})
    parsed = client.chat.completions.parse(model="support", messages=HELLO, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)


def test_images_pass_through_untouched(world: World, client: Any) -> None:
    world.script(says())
    content: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 20_000, "detail": "low"}},
    ]
    client.chat.completions.create(
        model="support", messages=[{"role": "user", "content": content}], extra_body={"never_seen": [1, {"a": None}]}
    )
    assert world.provider.requests[0]["messages"][-1]["content"] == content
    assert world.provider.requests[0]["never_seen"] == [1, {"a": None}]


def test_rollouts_are_the_models(world: World, client: Any) -> None:
    world.serve({})
    assert [model.id for model in client.models.list()] == ["support"]
    assert client.models.retrieve("support").owned_by == "promptrollout"
    with pytest.raises(openai.NotFoundError) as failed:
        client.models.retrieve("absent")
    assert failed.value.code == "model_not_found"


# ----------------------------------------------------------------------------------------------- errors


def ask(client: Any, **changes: Any) -> Any:
    return client.chat.completions.create(**{"model": "support", "messages": HELLO, **changes})


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"model": "absent"}, "NotFoundError", "model_not_found", "model"),
        ({"model": ""}, "BadRequestError", "model_missing", "model"),
        (
            {"messages": "Hello", "extra_body": {"prompt_variables": {"company": "x"}}},
            "BadRequestError",
            "invalid_type",
            "messages",
        ),
        ({}, "BadRequestError", "prompt_variable_missing", "prompt_variables.company"),
        ({"extra_body": {"prompt_variables": 1}}, "BadRequestError", "invalid_type", "prompt_variables"),
        ({"extra_body": {"filler": "x" * 5_000_000}}, "APIStatusError", "request_too_large", None),
    ],
)
def test_what_is_wrong_with_a_request_is_the_sdks_own_exception(
    world: World, client: Any, changes: dict[str, Any], kind: str, code: str, param: str | None
) -> None:
    world.serve({}, messages=[{"role": "system", "content": "You are of {{ company }}."}])
    with pytest.raises(getattr(openai, kind)) as failed:
        ask(client, **changes)
    assert (failed.value.code, failed.value.param) == (code, param)
    assert str(failed.value.message)


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (400, "BadRequestError", 400),
        (401, "InternalServerError", 502),
        (403, "InternalServerError", 502),
        (422, "UnprocessableEntityError", 422),
        (429, "RateLimitError", 429),
        (500, "InternalServerError", 502),
        (503, "InternalServerError", 503),
    ],
)
def test_what_a_provider_says_is_the_sdks_own_exception_with_retry_after(
    world: World, client: Any, status: int, kind: str, shown: int
) -> None:
    error = {"error": {"message": "told so", "type": "t", "code": "their_code", "param": "their_param"}}
    world.script(says(status, error, **{"retry-after": "7", "x-request-id": "req_1"}), provider_maxRetries=0)
    with pytest.raises(getattr(openai, kind)) as failed:
        ask(client)
    assert failed.value.status_code == shown
    # what the provider says of our key is nothing that the caller could act on
    code = "provider_auth" if status in (401, 403) else "their_code"
    assert (failed.value.code, failed.value.param) == (code, "their_param")
    assert "told so" in failed.value.message
    assert failed.value.response.headers["retry-after"] == "7"
    assert failed.value.request_id == "req_1"
    assert counted(world.gateway) == {"stable": (1, 1)}


def test_the_sdk_waits_as_it_is_told_and_tries_again(world: World) -> None:
    limited = says(429, {"error": {"message": "slow down"}}, **{"retry-after-ms": "1", "retry-after": "0.001"})
    world.script(limited, says(), provider_maxRetries=0)
    with openai.OpenAI(base_url=world.url, max_retries=1, **OPTIONS) as client:
        assert ask(client).choices[0].message.content == "Hello"
    assert counted(world.gateway) == {"stable": (2, 1)}


def test_a_provider_that_answers_something_else_is_a_bad_gateway(world: World, client: Any) -> None:
    world.serve({"garbageRate": 1.0})
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client)
    assert (failed.value.status_code, failed.value.code) == (502, "provider_bad_response")


def test_a_provider_that_is_not_there_is_a_bad_gateway(world: World, client: Any) -> None:
    world.deliver(stable=arm(url="http://127.0.0.1:1/v1", provider_maxRetries=0))
    with pytest.raises(openai.InternalServerError) as failed:
        ask(client)
    assert (failed.value.status_code, failed.value.code) == (502, "provider_connection")
    assert "127.0.0.1" not in failed.value.message


@pytest.mark.parametrize("cut", [True, False])
def test_a_stream_that_breaks_is_an_error_of_the_sdk_after_what_came(world: World, client: Any, cut: bool) -> None:
    world.script(streams(chunk("half"), cut=cut))
    got: list[Any] = []
    with pytest.raises(openai.APIError) as failed:
        got.extend(ask(client, stream=True))
    assert failed.value.code == "stream_broken"
    assert counted(world.gateway) == {"stable": (1, 1)}


async def test_a_stream_that_breaks_in_the_middle_for_the_async_client(world: World, async_client: Any) -> None:
    world.script(streams(chunk("half "), chunk("way"), cut=True))
    got: list[Any] = []

    async def read() -> None:
        async for one in await ask(async_client, stream=True):
            got.append(one)

    with pytest.raises(openai.APIError):
        await read()
    assert text_of(got) == "half way"
