"""Rules that every CRD schema keeps: structural, bounded, no floats, no defaults where they would do harm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from promptrollout.api import names
from promptrollout.api.crds import CATEGORY, KINDS, PRESERVE, RULES, chart_file, crd, files, kind_schema, main
from promptrollout.api.delivery import (
    ArmConfig,
    Attempt,
    Audience,
    DeliverySpec,
    DeliveryStatus,
    Laggard,
    Memory,
    PromptDelivery,
    ProviderConfig,
    RejectedVersion,
    RequestMatch,
    VersionRef,
)
from promptrollout.api.gateway import GatewayStatus, PromptGateway
from promptrollout.api.meta import Condition, CustomResource, LocalRef, Model
from promptrollout.api.prompt import Message, PromptSpec, PromptVersion, VersionStatus
from promptrollout.api.provider import ModelProvider, ProviderStatus
from promptrollout.api.rollout import Decision, DeliveryState, ObjectiveStatus, PromptRollout, RolloutStatus, Snapshot
from promptrollout.api.signing_key import PromptSigningKey
from promptrollout.api.slo import Objective, PromptSLO, SLOStatus
from promptrollout.api.strategy import Pause, Step

Schema = dict[str, Any]
ROOT = Path(__file__).parents[3]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_name)


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema below (and with) this one, with its path as `kubectl explain` would write it."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


def spec_and_status(kind: type[CustomResource]) -> Iterator[tuple[str, Schema]]:
    properties = kind_schema(kind)["properties"]
    for part in ("spec", "status") if "status" in properties else ("spec",):
        yield from nodes(properties[part], part)


def at(kind: type[CustomResource], path: str) -> Schema:
    return dict(spec_and_status(kind))[path]


@EVERY_KIND
def test_structural(kind: type[CustomResource]) -> None:
    for path, schema in spec_and_status(kind):
        assert "type" in schema, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "const", "title", "$defs", "nullable"} & schema.keys(), path
        assert schema.get("default", "") is not None, path


@EVERY_KIND
def test_everything_is_bounded(kind: type[CustomResource]) -> None:
    for path, schema in spec_and_status(kind):
        if schema["type"] == "string":
            assert "maxLength" in schema or "enum" in schema, f"{path}: a string needs max_length"
        elif schema["type"] == "array":
            assert "maxItems" in schema, f"{path}: a list needs max_length"
        elif "additionalProperties" in schema:
            assert "maxProperties" in schema, f"{path}: a map needs max_length"


@EVERY_KIND
def test_no_floats_and_maps_say_what_they_hold(kind: type[CustomResource]) -> None:
    for path, schema in spec_and_status(kind):
        assert schema["type"] in ("string", "integer", "boolean", "object", "array"), f"{path}: {schema['type']}"
        if schema["type"] == "object":
            assert schema.keys() & {"properties", "additionalProperties", PRESERVE}, f"{path}: would be pruned to {{}}"


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "status" in kind.model_fields], ids=lambda kind: kind.kind_name
)
def test_conditions_are_a_map_by_type(kind: type[CustomResource]) -> None:
    conditions = at(kind, "status.conditions")
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


@EVERY_KIND
def test_no_defaults_in_prompts_lists_and_status(kind: type[CustomResource]) -> None:
    """In a prompt they would reach the digest; in a list item they look like drift to whoever applies it."""
    for path, schema in spec_and_status(kind):
        if "default" in schema:
            assert path.startswith("spec"), path
            assert "[]" not in path, path
            assert not path.startswith("spec.template"), path
            assert kind.kind_name not in ("PromptVersion", "PromptDelivery"), path


@EVERY_KIND
def test_status_and_operator_written_kinds_have_no_rules(kind: type[CustomResource]) -> None:
    for path, schema in spec_and_status(kind):
        if path.startswith("status") or kind.written_by_operator:
            assert RULES not in schema, path


@EVERY_KIND
def test_rules_say_what_to_do(kind: type[CustomResource]) -> None:
    for path, schema in spec_and_status(kind):
        for rule in schema.get(RULES, ()):
            assert rule["rule"], path
            assert rule["message"], path


@EVERY_KIND
def test_around_the_schema(kind: type[CustomResource]) -> None:
    spec = crd(kind)["spec"]
    assert spec["scope"] == "Namespaced"
    assert spec["names"].get("categories", []) == ([] if kind is PromptSigningKey else ["prompts"])
    (version,) = spec["versions"]
    assert version.get("subresources", {}) == ({} if kind is PromptSigningKey else {"status": {}})
    paths = dict(spec_and_status(kind))
    for selectable in version.get("selectableFields", ()):
        assert paths[selectable["jsonPath"].removeprefix(".")]["type"] in ("string", "integer", "boolean")
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].removeprefix(".")
        if not path.startswith("metadata.") and "[" not in path:
            assert paths[path]["type"] == column["type"], f"column {column['name']} shows {path}"


def test_short_names_are_unique() -> None:
    names = [name for kind in KINDS for name in (*kind.short_names, kind.plural, kind.kind_name.lower())]
    assert len(set(names)) == len(names)
    assert CATEGORY not in names


def test_field_docs_reach_the_schema() -> None:
    kinds = {kind.kind_name: kind for kind in KINDS}
    assert (
        "waits for a person"
        in at(kinds["PromptRollout"], "spec.strategy.canary.steps[].pause.durationSeconds")["description"]
    )


@EVERY_KIND
def test_kubectl_explain_says_something_on_every_field_that_people_write(kind: type[CustomResource]) -> None:
    if kind.written_by_operator:
        return
    for path, schema in spec_and_status(kind):
        if path.startswith("spec.") and not path.endswith(("[]", ".*")):
            assert schema.get("description"), f"{path}: give the model's field a docstring"


def test_committed_files_are_the_generated_ones() -> None:
    assert main([str(ROOT), "--check"]) == 0


def test_written_once_and_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    stale = tmp_path / "crds" / "gone.promptrollout.dev.yaml"
    stale.parent.mkdir()
    stale.touch()
    assert main([str(tmp_path), "--check"]) == 1
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    assert not stale.exists()
    assert set(tmp_path.rglob("*.yaml")) == {tmp_path / path for path in files()}


@EVERY_KIND
def test_chart_copy_escapes_braces_of_descriptions(kind: type[CustomResource]) -> None:
    """Replacing the two escapes gives the plain file's spec back, and no other braces are left in it."""
    text = chart_file(crd(kind))
    body = text[text.index("\nspec:") :].removesuffix("{{- end }}\n")
    assert "{{" not in body.replace('{{ "{{" }}', "").replace('{{ "}}" }}', "")
    plain = body.replace('{{ "{{" }}', "{{").replace('{{ "}}" }}', "}}")
    assert yaml.safe_load(plain)["spec"] == crd(kind)["spec"]


def strict(schema: Schema) -> Schema:
    """As the API server validates a write of the operator: a field that the schema lacks would be lost."""
    out = dict(schema)
    if "properties" in out and not out.get(PRESERVE):
        out["additionalProperties"] = False
    if "properties" in out:
        out["properties"] = {name: strict(child) for name, child in out["properties"].items()}
    if "items" in out:
        out["items"] = strict(out["items"])
    return out


DIGEST = "sha256:" + "0" * 64
AT = "2026-11-21T08:00:00Z"
CONDITION = Condition(type="Ready", status="True", reason="Serving", last_transition_time=AT, observed_generation=1)
VERSION = VersionRef(version="support-0000000000", digest=DIGEST)
ROW = ObjectiveStatus(name="cost", signal="CostPerRequest", verdict="Pass", canary="0.001", difference="[-1, 1]")
OBJECTIVE = Objective(name="slow", signal="Latency", max="0.1", threshold_seconds="2.5")
SNAPSHOT = Snapshot(
    steps=[Step(weight=5), Step(pause=Pause())],
    objectives=[OBJECTIVE],
    interval_seconds=30,
    bake_seconds=60,
    max_duration_seconds=60,
    on_timeout="Hold",
    on_insufficient_traffic="Hold",
    analyse=True,
)
STATUS = RolloutStatus(
    observed_generation=1,
    phase="Progressing",
    stable=VERSION,
    canary=VERSION,
    rejected=[RejectedVersion(digest=DIGEST, reason="ContractFailureRate", at=AT)],
    attempts=[Attempt(digest=DIGEST, attempt=2)],
    snapshot=SNAPSHOT,
    analysis=[ROW],
    delivery=DeliveryState(sequence=1, laggards=[Laggard(pod="gateway-0", reason="not ready")]),
    history=[Decision(id="1", at=AT, reason="Promoted", revision=1, weight=5, message="m", evidence=[ROW])],
    conditions=[CONDITION],
)
ARM = ArmConfig(
    version="support-0000000000",
    digest=DIGEST,
    prompt=PromptSpec(provider_ref=LocalRef(name="p"), model="m", messages=[Message(role="user", content="Hi.")]),
    provider=ProviderConfig(name="p", base_url="http://p/v1", price=None),
)
DELIVERY = DeliverySpec(
    gateway="default",
    rollout_uid="u",
    sequence=1,
    weight=5,
    salt="s",
    stable=ARM,
    canary=ARM,
    audience=Audience(include=[RequestMatch(header="x-plan", values=["free"])]),
    latency_edges_seconds=["2.5"],
    shard_metrics=[names.shard_metric(names.METRIC_TOKENS_SUM)],
    memory=Memory(stable=VERSION),
)


@pytest.mark.parametrize(
    ("kind", "part", "value"),
    [
        (PromptRollout, "status", STATUS),
        (PromptRollout, "status", RolloutStatus()),
        (PromptDelivery, "spec", DELIVERY),
        (PromptDelivery, "status", DeliveryStatus(conditions=[CONDITION])),
        (PromptGateway, "status", GatewayStatus(conditions=[CONDITION])),
        (PromptVersion, "status", VersionStatus(digest=DIGEST)),
        (ModelProvider, "status", ProviderStatus(observed_generation=1)),
        (PromptSLO, "status", SLOStatus(observed_generation=1)),
    ],
    ids=lambda value: getattr(value, "kind_name", None),
)
def test_what_the_operator_writes_fits_the_schema(kind: type[CustomResource], part: str, value: Model) -> None:
    written = value.dump()
    jsonschema_rs.validate(strict(kind_schema(kind)["properties"][part]), written)
    assert type(value).model_validate(written) == value
