"""The simulated model over HTTP: OpenAI's shapes, failures on the wire, and the control endpoints."""

import asyncio
import json

import aiohttp
import pytest

from tests.unit.sandbox_model.running_model import RunningModel


async def test_an_answer_has_openais_shape(model: RunningModel) -> None:
    async with model.chat() as answer:
        body = await answer.json()
    assert answer.status == 200
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert json.loads(body["choices"][0]["message"]["content"]).keys() == {"answer"}
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert 0 <= float(answer.headers["x-simulated-quality"]) <= 5


async def test_a_stream_carries_the_same_answer_and_a_usage_chunk(model: RunningModel) -> None:
    await model.behave({"name": "a", "answer": "A rather long answer, in several pieces."})
    async with model.chat(stream=True, stream_options={"include_usage": True}) as answer:
        lines = [line for line in (await answer.text()).split("\n\n") if line]
    assert answer.content_type == "text/event-stream"
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "A rather long answer, in several pieces."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"


async def test_the_answer_fits_the_requested_schema(model: RunningModel) -> None:
    schema = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer", "minimum": 3}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    async with model.chat(response_format=wanted) as answer:
        body = await answer.json()
    assert json.loads(body["choices"][0]["message"]["content"]) == {"score": 3}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_breaks_the_body(model: RunningModel, stream: bool) -> None:
    await model.behave({"name": "a", "disconnectRate": 1})
    with pytest.raises(aiohttp.ClientPayloadError):
        async with model.chat(stream=stream) as answer:
            await answer.read()


async def test_a_timeout_never_answers(model: RunningModel) -> None:
    await model.behave({"name": "a", "timeoutRate": 1})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.chat(), 0.05)


async def test_garbage_is_a_200_without_json(model: RunningModel) -> None:
    await model.behave({"name": "a", "garbageRate": 1})
    async with model.chat() as answer:
        text = await answer.text()
    assert answer.status == 200
    assert text.startswith("<html>")


async def test_an_error_has_its_status_and_retry_after(model: RunningModel) -> None:
    await model.behave({"name": "a", "errorKinds": [{"status": 429, "share": 1, "retryAfterSeconds": 2}]})
    async with model.chat() as answer:
        body = await answer.json()
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")
    assert body["error"]["type"] == "rate_limit_error"


async def test_a_wrong_key_is_refused_as_openai_does(model: RunningModel) -> None:
    url = f"{model.url}/v1/chat/completions"
    async with model.client.post(url, json={}, headers={"authorization": "Bearer nonsense"}) as answer:
        body = await answer.json()
    assert (answer.status, body["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0].role"),
        ({"n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
    ],
)
async def test_a_bad_request_names_the_field(model: RunningModel, changes: dict[str, object], param: str) -> None:
    async with model.chat(**changes) as answer:
        body = await answer.json()
    assert (answer.status, body["error"]["param"]) == (400, param)


async def test_rules_are_replaced_at_run_time_and_a_bad_list_changes_nothing(model: RunningModel) -> None:
    await model.behave({"name": "a", "match": {"promptContains": "v1"}, "answer": "one"})
    url = f"{model.url}/control/behaviours"
    async with model.client.put(url, json=[{"name": "b", "errorRate": 7}]) as refused:
        error = (await refused.json())["error"]
    assert (refused.status, error["param"]) == (400, "behaviours[0].errorRate")
    async with model.client.put(url, data="[") as not_json:
        assert not_json.status == 400
    async with model.chat() as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == "one"
    async with model.client.delete(url) as cleared:
        assert await cleared.json() == []
    async with model.chat() as answer:
        assert answer.headers["x-simulated-rule"] == "default"


async def test_requests_and_stats_say_what_came_in(model: RunningModel) -> None:
    await model.behave({"name": "a", "refusalRate": 1})
    async with model.chat(user="u1", unknown_field=[1]) as answer:
        await answer.read()
    [kept] = await model.get("/control/requests?last=5")  # type: ignore[misc]
    assert kept["body"]["unknown_field"] == [1]
    assert kept["headers"]["authorization"] == "...1234"
    assert (kept["rule"], kept["outcome"]) == ("a", "refusal")
    stats = await model.get("/control/stats")
    assert stats["rules"] == {"a": {"refusal": 1}}  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/audio/speech", 404),
        ("GET", "/control/nothing", 404),
        ("POST", "/control/stats", 405),
        ("GET", "/control/requests?last=0", 400),
    ],
)
async def test_paths_and_methods(model: RunningModel, method: str, path: str, status: int) -> None:
    async with model.client.request(method, model.url + path) as answer:
        assert answer.status == status
