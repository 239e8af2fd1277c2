"""Errors come in the shape that their callers read, wherever in the gateway they come from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import orjson
import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.gateway.server.app import Limits, ServingApp
from tests.unit.gateway.kit import Caller
from tests.unit.gateway.live import listening, say

ANTHROPIC = {"anthropic-version": "2023-06-01"}
Shape = Literal["OpenAI", "Anthropic", "OpenFeature"]
CASES: list[tuple[str, dict[str, str], Shape]] = [
    ("/v1/chat/completions", {}, "OpenAI"),
    ("/v1/chat/completions", ANTHROPIC, "OpenAI"),
    ("/v1/messages", {}, "Anthropic"),
    ("/v1/messages/count_tokens", {}, "Anthropic"),
    ("/v1/messages/batches/b_1/results", {}, "Anthropic"),
    ("/v1/messagesx", {}, "OpenAI"),
    ("/v1/models", {}, "OpenAI"),
    ("/v1/models", ANTHROPIC, "Anthropic"),
    ("/v1/models/nobody", ANTHROPIC, "Anthropic"),
    ("/v1/files", {}, "OpenAI"),
    ("/v1/files", ANTHROPIC, "Anthropic"),
    ("/v1/feedback", ANTHROPIC, "OpenAI"),
    ("/v1/scores", ANTHROPIC, "OpenAI"),
    ("/v1/usage", ANTHROPIC, "OpenAI"),
    ("/v1/prompts/nobody/render", ANTHROPIC, "OpenAI"),
    ("/ofrep/v1/evaluate/flags", {}, "OpenFeature"),
    ("/ofrep/v1/evaluate/flags/support", ANTHROPIC, "OpenFeature"),
    ("/ofrep/v1/configuration", {}, "OpenFeature"),
]


def shape_of(body: bytes) -> Shape:
    found = orjson.loads(body)
    if "errorDetails" in found:
        return "OpenFeature"
    if found.get("type") == "error":
        assert found["error"].keys() == {"type", "message"}
        return "Anthropic"
    assert found["error"].keys() == {"message", "type", "param", "code"}
    return "OpenAI"


@pytest.fixture
async def port(gateway: Gateway) -> AsyncIterator[int]:
    """Of a pod that takes no requests."""
    full = ServingApp(gateway.registry, gateway.counters, Limits(max_concurrent_requests=1, max_queued_requests=0))
    gateway.counters.in_flight = 1
    async with listening(full) as number:
        yield number


@pytest.mark.parametrize(("path", "headers", "shape"), CASES)
async def test_of_a_request_that_cannot_be_answered(
    caller: Caller, path: str, headers: dict[str, str], shape: Shape
) -> None:
    answered = await caller.post(b"{", path, headers)
    assert 400 <= answered.status < 500
    assert shape_of(answered.body) == shape


@pytest.mark.parametrize(("path", "headers", "shape"), CASES)
async def test_of_one_that_breaks_http_or_that_a_full_pod_refuses_unread(
    port: int, path: str, headers: dict[str, str], shape: Shape
) -> None:
    lines = [f"POST {path}?a=b HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join(lines).encode() + b"\r\n"
    broken, _ = await say(port, head + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert broken.startswith(b"HTTP/1.1 400 ")
    full, _ = await say(port, head + b"Content-Length: 2\r\n\r\n{}")
    assert full.startswith(b"HTTP/1.1 503 ")
    for answer in (broken, full):
        assert shape_of(answer.partition(b"\r\n\r\n")[2]) == shape


async def test_of_what_is_no_http_at_all(port: int) -> None:
    answer, closed = await say(port, b"\x16\x03\x01\r\n\r\n")
    assert closed
    assert shape_of(answer.partition(b"\r\n\r\n")[2]) == "OpenAI"
