"""The published document is that of the code: its paths, its copy in docs/, and what an answer may be."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema_rs
import orjson

from promptrollout.gateway import ofrep, openapi, prompts, usage
from promptrollout.gateway.app import MODELS_PATH
from promptrollout.gateway.feedback import FEEDBACK_PATH, SCORES_PATH
from promptrollout.gateway.protocols import PROTOCOLS
from tests.unit.gateway.kit import Caller

DOCUMENT = openapi.document()
PAGE = Path(__file__).parents[3] / "docs" / "gateway.md"
COPY = Path(__file__).parents[3] / openapi.DOCS_COPY


async def test_the_document_is_served_and_its_copy_is_the_same(caller: Caller) -> None:
    answered = await caller.get("/openapi.json")
    assert (answered.status, answered.headers["content-type"]) == (200, "application/json")
    assert answered.json == orjson.loads(COPY.read_bytes()) == DOCUMENT


def test_it_names_every_path_that_is_served() -> None:
    of_applications = {FEEDBACK_PATH, SCORES_PATH, usage.PATH, ofrep.PATH, ofrep.PATH + "/{rollout}"}
    of_applications.add(prompts.PREFIX + "{rollout}" + prompts.SUFFIX)
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


async def test_a_wrong_method_is_told_which_is_right(caller: Caller) -> None:
    for path, wanted in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/openapi.json", "GET")):
        answered = await (caller.get(path) if wanted == "POST" else caller.post({}, path))
        assert (answered.status, answered.error["code"]) == (405, "method_not_allowed")
        assert answered.headers["allow"] == wanted
