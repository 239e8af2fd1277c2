"""What tests with schemathesis share: a gateway whose document it reads, and a provider that answers everything."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web

from promptrollout.gateway.http.exchange import Reply
from tests.clients.kit import World
from tests.unit.gateway.kit import CANARY, DONE, KEY, arm, chunk, streams

COUNTS = "/v1/messages/count_tokens"
OF_ANTHROPIC = ("/v1/messages", COUNTS)
ASKS_A_MODEL = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings")
USERS = [f"user-{n}" for n in range(5)]


STREAMS: dict[str, tuple[bytes, ...]] = {
    "/v1/chat/completions": (chunk("Hello"), chunk(finish_reason="stop"), DONE),
    "/v1/responses": (
        b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_1","output":[]}}\n\n',
    ),
    "/v1/messages": (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","content":[]}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ),
}
"""What a provider answers where it is asked for a stream, by its path."""


class Anything:
    """A script without end: whatever is asked is answered, so that refusals are the gateway's own."""

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Any:
        return self._answer

    async def _answer(self, asked: web.Request) -> web.StreamResponse:
        pieces = STREAMS.get(asked.path)
        if pieces and orjson.loads(await asked.read()).get("stream") is True:
            return await streams(*pieces)(asked)
        parts: dict[str, Any] = {"choices": [], "output": [], "content": [], "data": [], "input_tokens": 1}
        return web.json_response({"id": "chatcmpl-1", **parts})


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """What the gateway answers with, counted where it does."""
    found: Counter[int] = Counter()
    begin = Reply.begin

    async def counted(reply: Reply, status: int, headers: Mapping[str, str]) -> None:
        found[status] += 1
        await begin(reply, status, headers)

    monkeypatch.setattr(Reply, "begin", counted)
    return found


def run(world: World, served: dict[str, Any], folder: Path, *arguments: str) -> str:
    """What schemathesis says of a gateway that should be as this document has it."""
    here = folder / "openapi.json"
    here.write_bytes(orjson.dumps(served))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(here), "--url", world.root, "--seed", "1"]
    ran = subprocess.run(
        [*command, *arguments],
        cwd=folder,  # it keeps notes there
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert world.gateway.counters.rejected["internal"] == 0
    return ran.stdout


def everything_of(world: World, key: Mapping[str, str] | None = None, **provider: str) -> dict[str, Any]:
    """A rollout in service, and the gateway's document with names and ids in it that this gateway knows: nearly all
    others would be refused."""
    world.provider.script = Anything()  # type: ignore[assignment]
    stable, canary = arm(url=world.provider.url, **provider), arm(CANARY, world.provider.url, **provider)
    reporting = {"cacheSeconds": 30, "settleSeconds": 120}
    world.deliver(weight=50, responseKey=KEY, reporting=reporting, stable=stable, canary=canary)
    with httpx.Client(base_url=world.root, headers=key) as client:
        served: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
        answers, tokens = [], []
        for user in USERS:
            body = {"model": "support", "user": user}
            answers.append(client.post("/v1/chat/completions", json=body).raise_for_status().json()["id"])
            rendered = client.post("/v1/prompts/support/render", json={"user": user}).raise_for_status()
            tokens.append(rendered.json()["usage_token"])
    schemas = served["components"]["schemas"]
    schemas["Rollout"]["enum"] = ["support"]
    for schema, field, values in (
        ("Feedback", "response_id", answers),
        ("Score", "response_id", answers),
        ("Score", "conversation_id", answers),
        ("Score", "name", ["helpful", "polite"]),  # their number is bounded
        ("Report", "token", tokens),
    ):
        described = schemas[schema]["properties"][field]
        described.get("anyOf", [described])[0]["enum"] = values
    return served


def effect(world: World, path: str) -> bool:
    """Whether the gateway's counters say that the operation did what it is for."""
    live = list(world.gateway.counters.live())
    if path in ASKS_A_MODEL:
        return sum(one.total.requests for one in live) > 20
    if path == COUNTS:
        return sum(one.total.requests for one in live) == len(USERS)  # of `everything_of`
    if path == "/v1/feedback":
        return sum(sum(map(sum, one.votes.feedback.values())) for one in live) == len(USERS)
    if path == "/v1/scores":
        return {name for one in live for name in one.votes.scores} == {"helpful", "polite"}
    if path == "/v1/usage":
        return len(world.gateway.registry.renders) == 0
    if path.endswith(("/render", "/flags/{rollout}")):
        return len(world.gateway.registry.renders) > 20
    return True


def check(world: World, statuses: Counter[int], folder: Path, path: str) -> None:
    """Fails if the gateway answers on this path what its document does not allow, or does nothing of use."""
    served = everything_of(world, **{"provider_type": "Anthropic"} if path in OF_ANTHROPIC else {})
    statuses.clear()
    phases = "examples,coverage,fuzzing"
    arguments = f"--include-path {path} --checks all --max-examples 50 --phases {phases}".split()
    assert "Operations:       1 selected" in run(world, served, folder, *arguments)
    assert statuses[200] > (20 if "post" in served["paths"][path] else 0), statuses
    assert effect(world, path), "it was answered and nothing came of it"
