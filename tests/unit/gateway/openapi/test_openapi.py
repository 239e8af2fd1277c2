"""The published document is that of the code: its paths, its copy in docs/, and what an answer may be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest

from promptrollout.gateway.applications import ofrep, render, usage
from promptrollout.gateway.applications.feedback import FEEDBACK_PATH, SCORES_PATH
from promptrollout.gateway.openapi import document
from promptrollout.gateway.server.app import MODELS_PATH
from promptrollout.llm.protocols import PROTOCOLS
from tests.unit.gateway.kit import Caller

DOCUMENT = document.document()
PAGE = Path(__file__).parents[4] / "docs" / "reference" / "http-api.md"
COPY = Path(__file__).parents[4] / document.DOCS_COPY


async def test_the_document_is_served_and_its_copy_is_the_same(caller: Caller) -> None:
    answered = await caller.get("/openapi.json")
    assert (answered.status, answered.headers["content-type"]) == (200, "application/json")
    assert answered.json == orjson.loads(COPY.read_bytes()) == DOCUMENT


def test_it_names_every_path_that_is_served() -> None:
    of_applications = {FEEDBACK_PATH, SCORES_PATH, usage.PATH, ofrep.PATH, ofrep.PATH + "/{rollout}"}
    of_applications.add(render.PREFIX + "{rollout}" + render.SUFFIX)
    answered = {*PROTOCOLS, *of_applications, MODELS_PATH, MODELS_PATH + "/{model}", "/openapi.json"}
    assert set(DOCUMENT["paths"]) == answered


def test_it_has_all_that_the_page_on_the_gateway_lists() -> None:
    table = PAGE.read_text("utf-8").partition("| path (port 8080) |")[2].partition("\n\n")[0]
    listed = []
    method = ""
    for named, path in re.findall(r"`(?:(GET|POST) )?(/[^`? ]+)`", table):
        method = named or method
        listed.append((method, path))
    assert ("POST", "/v1/chat/completions") in listed
    described = {(method.upper(), plain(path)) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert {(method, plain(path)) for method, path in listed} == described


def plain(path: str) -> str:
    """Whatever stands for a name in it."""
    return re.sub(r"\{[a-z_]+\}|[A-Z]+|<[a-z]+>", "*", path)


def test_its_schemas_are_schemas_and_its_example_is_one() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        whole = {**schema, "components": DOCUMENT["components"]}
        validator = jsonschema_rs.Draft202012Validator(whole)
        if "example" in schema:
            validator.validate(schema["example"])


VOTE = {"response_id": "x"}
SCORE = {"name": "helpful", "value": 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/feedback", {**VOTE, "rating": "positive"}),
        ("/v1/feedback", {**VOTE, "rating": None, "edited": False, "comment": "nice"}),
        ("/v1/feedback", VOTE),
        ("/v1/feedback", {**VOTE, "rating": None, "edited": None}),
        ("/v1/feedback", {**VOTE, "edited": 1}),
        ("/v1/scores", {**SCORE, "response_id": "x"}),
        ("/v1/scores", {**SCORE, "response_id": None, "conversation_id": "x"}),
        ("/v1/scores", {**SCORE, "response_id": "x", "conversation_id": "x"}),
        ("/v1/scores", {**SCORE, "response_id": None}),
        ("/v1/scores", {**SCORE, "response_id": "x", "value": -1}),
        ("/v1/scores", {**SCORE, "response_id": "x", "name": "a b"}),
        ("/v1/usage", {"token": "x", "usage": {"prompt_tokens": 1}, "latency_seconds": 2}),
        ("/v1/usage", {"token": "x", "latency_seconds": "2"}),
        ("/v1/usage", {"token": "x", "outcome": "fine"}),
        ("/v1/usage", {}),
    ],
)
async def test_it_takes_and_refuses_fields_as_the_gateway_does(caller: Caller, path: str, body: dict[str, Any]) -> None:
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    described = jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).is_valid(body)
    answered = await caller.post(body, path)
    assert answered.status == 400, "there is no such answer or render"
    assert (answered.error["code"] not in ("invalid_vote", "invalid_type")) == described
    codes = DOCUMENT["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    jsonschema_rs.Draft202012Validator({**codes, "components": DOCUMENT["components"]}).validate(answered.json)


async def test_a_wrong_method_is_told_which_is_right(caller: Caller) -> None:
    for path, wanted in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/openapi.json", "GET")):
        answered = await (caller.get(path) if wanted == "POST" else caller.post({}, path))
        assert (answered.status, answered.error["code"]) == (405, "method_not_allowed")
        assert answered.headers["allow"] == wanted
