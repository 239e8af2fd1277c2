"""schemathesis reads the gateway's OpenAPI document and looks for answers that it does not allow."""

from __future__ import annotations

import hashlib
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

from promptrollout.gateway.auth.authenticate import Auth
from promptrollout.gateway.http.exchange import Reply
from promptrollout.gateway.openapi.document import document
from tests.clients.kit import ABSENT, World
from tests.unit.gateway.kit import CANARY, DONE, KEY, arm, chunk, streams

pytest.importorskip("schemathesis", reason=ABSENT)

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


@pytest.mark.parametrize("path", sorted(document()["paths"]))
def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(
    world: World, statuses: Counter[int], tmp_path: Path, path: str
) -> None:
    served = everything_of(world, **{"provider_type": "Anthropic"} if path in OF_ANTHROPIC else {})
    statuses.clear()
    phases = "examples,coverage,fuzzing"
    arguments = f"--include-path {path} --checks all --max-examples 50 --phases {phases}".split()
    assert "Operations:       1 selected" in run(world, served, tmp_path, *arguments)
    assert statuses[200] > (20 if "post" in served["paths"][path] else 0), statuses
    assert effect(world, path), "it was answered and nothing came of it"


def test_schemathesis_gets_nothing_without_a_key_where_keys_are_asked_for(
    statuses: Counter[int], tmp_path: Path
) -> None:
    callers = tmp_path / "callers"
    callers.mkdir()
    (callers / "shop").write_text(f"sha256:{hashlib.sha256(b'a-key').hexdigest()}")
    key = {"Authorization": "Bearer a-key"}
    with World(tmp_path / "state", caller_keys_dir=callers, auth=Auth("Keys")) as world:
        served = everything_of(world, key)
        served["security"].remove({})  # or a request without a key would be as good as one with it
        statuses.clear()
        # its acceptance of fields is for the test above: what a provider's protocol cannot say is refused by name
        arguments = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--phases", "fuzzing"]
        arguments += ["--max-examples", "5", *(f"-H{name}: {value}" for name, value in key.items())]
        said = run(world, served, tmp_path, *arguments)
        assert f"Tested: {len(served['paths'])}" in said
    assert statuses[401] > len(served["paths"])
    assert statuses[200] > len(served["paths"])


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
