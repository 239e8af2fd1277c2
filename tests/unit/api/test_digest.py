"""The digest: pinned, so that an upgrade never starts a canary; equal for equal prompts however they were written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from promptrollout.api.digest import canonical_bytes, copy_name, digest_of
from promptrollout.api.prompt import PromptSpec

GOLDEN = Path(__file__).parents[2] / "golden" / "digests.json"
CASES = json.loads(GOLDEN.read_text("utf-8"))
MINIMAL: dict[str, Any] = {
    "providerRef": {"name": "p"},
    "model": "m",
    "messages": [{"role": "system", "content": "Hi."}],
}


def spec(**fields: Any) -> PromptSpec:
    return PromptSpec.model_validate(MINIMAL | fields)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_pinned(case: dict[str, Any]) -> None:
    """A change here makes every rollout in every cluster start a canary on upgrade. Do not repin: undo the change."""
    prompt = PromptSpec.model_validate(case["prompt"])
    assert canonical_bytes(prompt).decode() == case["canonical"]
    assert digest_of(prompt) == case["digest"]


def test_key_order_does_not_matter() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"b": {}, "a": {}}}
    reordered = json.loads(json.dumps(schema, sort_keys=True))
    assert list(reordered) != list(schema)
    assert digest_of(spec(outputSchema=schema)) == digest_of(spec(outputSchema=reordered))


def test_dumping_and_reading_back_keeps_it() -> None:
    prompt = spec(parameters={"temperature": "0.20", "extra": {"n": None}}, tools=[{"type": "x"}])
    assert digest_of(PromptSpec.model_validate(prompt.dump())) == digest_of(prompt)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m2"},
        {"providerRef": {"name": "q"}},
        {"messages": [{"role": "user", "content": "Hi."}]},
        {"messages": [{"role": "system", "content": "Hi. "}]},
        {"messages": [{"role": "system", "content": "Hi."}, {"placeholder": "history"}]},
        {"parameters": {"temperature": "0.2"}},
        {"parameters": {"extra": {"a": None}}},
        {"outputSchema": {"type": "object"}},
        {"tools": [{"type": "function"}]},
        {"callerSystemMessage": "Refuse"},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_whatever_reaches_the_model_changes_it(fields: dict[str, Any]) -> None:
    assert digest_of(spec(**fields)) != digest_of(spec())


def test_fields_of_a_later_release_are_not_in_it() -> None:
    assert digest_of(spec(owner="me")) == digest_of(spec())


# RFC 8785, sections 3.2.2 and 3.2.3
@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        (1.0, "1"),
        (-0.0, "0"),
        (1e21, "1e+21"),
        (1e-7, "1e-7"),
        (333333333.33333329, "333333333.3333333"),
        (4.50, "4.5"),
        (2e-3, "0.002"),
        (True, "true"),
        (None, "null"),
        ('\u20ac$\u000f\nA\'B"\\\\"/', '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'),
        ({"\u20ac": 1, "\r": 2, "1": 3, "\U0001f600": 4, "\ufb33": 5}, '{"\\r":2,"1":3,"€":1,"😀":4,"\ufb33":5}'),
        ([], "[]"),
    ],
)
def test_canonical_json(value: Any, canonical: str) -> None:
    assert f'"outputSchema":{{"const":{canonical}}}'.encode() in canonical_bytes(spec(outputSchema={"const": value}))


@pytest.mark.parametrize("value", [2**53 + 1, -(2**60), float("nan"), float("inf")])
def test_numbers_without_an_exact_form_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="canonical JSON"):
        canonical_bytes(spec(outputSchema={"const": value}))


def test_names() -> None:
    digest = digest_of(spec())
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    assert copy_name("support", digest) == f"support-{digest.removeprefix('sha256:')[:10]}"
