"""The `openai` package's Responses API, pointed at the gateway: passed on to a provider that speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.clients.kit import ABSENT, World
from tests.unit.gateway.kit import counted, says, streams

openai = pytest.importorskip("openai", reason=ABSENT)

OPTIONS: Any = {"api_key": "unused", "timeout": 10, "max_retries": 0, "default_headers": {"x-user-id": "u1"}}


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    with openai.OpenAI(base_url=world.url, **OPTIONS) as client:
        yield client


def message(text: str, **changes: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content, **changes}


def response(*output: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt",
        "status": status,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110, **details},
    }


def event(kind: str, number: int, **fields: Any) -> bytes:
    return (
        f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, "sequence_number": number, **fields}) + b"\n\n"
    )


def stream_of(text: str) -> list[bytes]:
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = response(status="in_progress")
    part = {"type": "output_text", "text": "", "annotations": []}
    item = message("", content=[], status="in_progress")
    pieces = [text[:5], text[5:]]
    return [
        event("response.created", 0, response=begun),
        event("response.output_item.added", 1, output_index=0, item=item),
        event("response.content_part.added", 2, part=part, **at),
        *(event("response.output_text.delta", 3 + n, delta=one, logprobs=[], **at) for n, one in enumerate(pieces)),
        event("response.output_text.done", 5, text=text, logprobs=[], **at),
        event("response.content_part.done", 6, part={**part, "text": text}, **at),
        event("response.output_item.done", 7, output_index=0, item=message(text)),
        event("response.completed", 8, response=response(message(text))),
    ]


def test_an_answer_and_the_headers_that_say_what_answered(world: World, client: Any) -> None:
    world.script(says(body=response(message("In Ulm."))))
    raw = client.responses.with_raw_response.create(model="support", input="Where?", extra_body={"never_seen": 1})
    assert raw.headers["x-promptrollout-variant"] == "stable"
    answer = raw.parse()
    assert answer.output_text == "In Ulm."
    assert answer.usage.input_tokens == 100
    assert world.provider.requests[0]["never_seen"] == 1
    assert world.provider.requests[0]["model"] == "gpt"
    assert counted(world.gateway) == {"stable": (1, 0)}


def test_a_stream(world: World, client: Any) -> None:
    world.script(streams(*stream_of("The parcel is in Ulm.")))
    with client.responses.stream(model="support", input="Where?") as stream:
        text = "".join(one.delta for one in stream if one.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "The parcel is in Ulm."
    assert counted(world.gateway) == {"stable": (1, 0)}


def test_a_stream_that_breaks_does_not_look_complete(world: World, client: Any) -> None:
    world.script(streams(*stream_of("The parcel is in Ulm.")[:4], cut=True))
    seen: list[str] = []

    def read() -> None:
        seen.extend(one.type for one in client.responses.create(model="support", input="Where?", stream=True))

    try:
        read()
    except openai.APIError:
        pass
    else:
        assert seen[-1] in ("error", "response.failed")
    assert "response.output_text.delta" in seen
    assert "response.completed" not in seen
    assert counted(world.gateway) == {"stable": (1, 1)}


def test_calls_of_tools_come_down(world: World, client: Any) -> None:
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "parcel",
        "arguments": '{"number":"47"}',
    }
    world.script(says(body=response({**call, "status": "completed"})))
    tool: Any = {"type": "function", "name": "parcel", "parameters": {"type": "object"}, "strict": False}
    answer = client.responses.create(model="support", input="Where is 47?", tools=[tool])
    assert answer.output[0].arguments == '{"number":"47"}'
    assert world.provider.requests[0]["tools"] == [tool]


def test_errors_are_the_sdks_own(world: World, client: Any) -> None:
    error = {"error": {"message": "slow down", "type": "t", "code": "rate_limit_exceeded", "param": None}}
    world.script(says(429, error, **{"retry-after": "7"}), provider_maxRetries=0)
    with pytest.raises(openai.NotFoundError) as absent:
        client.responses.create(model="absent", input="Where?")
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.RateLimitError) as limited:
        client.responses.create(model="support", input="Where?")
    assert limited.value.response.headers["retry-after"] == "7"
