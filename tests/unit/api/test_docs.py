"""The manifests in docs/reference/objects.md are sound: known fields only, and the models and checks take them."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from promptrollout.api.crds import KINDS, PRESERVE, kind_schema
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.slo import Objective
from promptrollout.api.template import prompt_problems
from promptrollout.cli.lint_references import content_problems
from promptrollout.cli.lint_schema import schema_problems
from promptrollout.engine.objectives.signals import SIGNALS, signal_of

DOCS = Path(__file__).parents[3] / "docs"
KIND_OF = {kind.kind_name: kind for kind in KINDS}


def manifests(page: str) -> list[dict[str, Any]]:
    blocks = (DOCS / page).read_text("utf-8").split("```yaml\n")[1:]
    return [body for block in blocks for body in yaml.safe_load_all(block.split("```")[0])]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as `kubectl apply` validates it: an unknown field is an error."""
    out = dict(schema)
    if "properties" in out:
        out["properties"] = {name: strict(child) for name, child in out["properties"].items()}
        if not out.get(PRESERVE):
            out["additionalProperties"] = False
    if "items" in out:
        out["items"] = strict(out["items"])
    return out


MANIFESTS = manifests("reference/objects.md")


def test_every_kind_that_people_write_has_an_example() -> None:
    assert {body["kind"] for body in MANIFESTS} == {kind.kind_name for kind in KINDS if not kind.written_by_operator}


def test_lint_finds_nothing_wrong_with_the_examples_and_they_can_be_measured() -> None:
    assert [problem for body in MANIFESTS for problem in content_problems(body["kind"], body.get("spec") or {})] == []


def test_own_queries_of_the_docs_are_sound() -> None:
    pages = ("reference/signals.md", "how-to/own-promql.md")
    objectives = [objective for page in pages for block in manifests(page) for objective in block]
    assert len(objectives) == 4
    slo = {"kind": "PromptSLO", "metadata": {"name": "own"}, "spec": {"objectives": objectives}}
    assert schema_problems("PromptSLO", slo) == []
    for objective in objectives:
        assert signal_of(Objective.model_validate(objective)).kind in ("rate", "mean")


def test_the_signals_page_names_every_signal_and_every_series() -> None:
    page = (DOCS / "reference" / "signals.md").read_text("utf-8")
    for name, signal in SIGNALS.items():
        assert (f"| `{name}` ✓ |" if signal.exported else f"| `{name}` |") in page
        for _, counter in signal.counters:
            metric = counter.metric.removeprefix("promptrollout_")
            assert metric in page or metric.rsplit("_", 1)[0] in page, metric
        for _, counter in signal.shard_counters:
            assert f"`{counter.metric.removeprefix('promptrollout_')}`" in page, counter.metric


@pytest.mark.parametrize("body", MANIFESTS, ids=[f"{body['kind']} {body['metadata']['name']}" for body in MANIFESTS])
def test_example_is_sound(body: dict[str, Any]) -> None:
    kind = KIND_OF[body["kind"]]
    jsonschema_rs.validate(strict(kind_schema(kind)["properties"]["spec"]), body["spec"])
    kind.model_validate(body)
    prompt = body["spec"] if body["kind"] == "PromptVersion" else body["spec"].get("template")
    if prompt is not None:
        assert prompt_problems(PromptSpec.model_validate(prompt)) == []
