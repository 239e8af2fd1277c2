"""schemathesis reads the gateway's OpenAPI document and looks for answers that it does not allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web

from promptrollout.gateway import openapi
from promptrollout.gateway.openapi import document
from tests.clients.kit import ABSENT, World

pytest.importorskip("schemathesis", reason=ABSENT)

OF_ANTHROPIC = "/v1/messages"


OF_APPLICATIONS = set(openapi.OF_APPLICATIONS)
"""Votes, reports and OpenFeature: described in outline only, so their tests are those of their modules."""


class Anything:
    """A script without end: whatever is asked is answered, so that refusals are the gateway's own."""

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Any:
        return self._answer

    async def _answer(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": [], "output": [], "content": [], "data": []})


@pytest.mark.parametrize("path", sorted(set(document()["paths"]) - OF_APPLICATIONS))
def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(world: World, tmp_path: Path, path: str) -> None:
    of_anthropic = {"provider_type": "Anthropic"} if path == OF_ANTHROPIC else {}
    world.script(**of_anthropic)
    world.provider.script = Anything()  # type: ignore[assignment]
    served = httpx.get(f"{world.root}/openapi.json").json()
    served["components"]["schemas"]["Rollout"]["enum"] = ["support"]  # or nearly all of its requests were for nobody
    here = tmp_path / "openapi.json"
    here.write_bytes(orjson.dumps(served))
    command = f"-m schemathesis.cli run {here} --url {world.root} --include-path {path} --checks all --max-examples 50"
    ran = subprocess.run(
        [sys.executable, *command.split(), "--phases", "examples,coverage,fuzzing", "--seed", "1"],
        cwd=tmp_path,  # it keeps notes there
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Operations:       1 selected" in ran.stdout
    asked = sum(one.total.requests for one in world.gateway.counters.live())
    assert asked > 20 or "post" not in served["paths"][path], "it did not get through to a model"
    assert world.gateway.counters.rejected["internal"] == 0
