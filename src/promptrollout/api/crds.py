"""Writes the CustomResourceDefinitions from the pydantic models: crds/ and the chart's copy of them.

`python -m promptrollout.api.crds [--check] [ROOT]`, ROOT being the repository (default: the current directory).
The models are the source, what this writes is committed, and the output is the same for the same models.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from promptrollout.api.delivery import PromptDelivery
from promptrollout.api.gateway import PromptGateway
from promptrollout.api.meta import CustomResource, Model
from promptrollout.api.names import GROUP, VERSION
from promptrollout.api.prompt import PromptVersion
from promptrollout.api.provider import ModelProvider
from promptrollout.api.rollout import PromptRollout
from promptrollout.api.signing_key import PromptSigningKey
from promptrollout.api.slo import PromptSLO

KINDS: tuple[type[CustomResource], ...] = (
    ModelProvider,
    PromptDelivery,
    PromptGateway,
    PromptRollout,
    PromptSLO,
    PromptSigningKey,
    PromptVersion,
)
# `kubectl get prompts`. No kind's name: kubectl expands a category first, and `get promptrollout NAME` would fail
CATEGORY = "prompts"
CRD_DIR = Path("crds")
CHART_DIR = Path("charts/promptrollout/templates/crds")

RULES = "x-kubernetes-validations"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
# an attribute of a model's field: its value may be set once and never changed; the text is what the refusal says
IMMUTABLE = "x-immutable"

# what pydantic writes and a structural schema must not have, or need not
_DROPPED = ("title", "propertyNames", "const", IMMUTABLE, "$defs")
Schema = dict[str, Any]


class _WithRules(GenerateJsonSchema):
    """Puts the CEL rules of each `Model` on its own definition, and no titles."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        cls = schema["cls"]
        if issubclass(cls, Model) and cls.rules:
            result = {**result, RULES: [{"rule": rule, "message": message} for rule, message in cls.rules]}
        return result


def crd(kind: type[CustomResource]) -> Schema:
    """The CustomResourceDefinition of one kind, as an object ready to be written as YAML."""
    singular = kind.kind_name.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind_name,
                "listKind": f"{kind.kind_name}List",
                "plural": kind.plural,
                "singular": singular,
                "shortNames": list(kind.short_names),
                **({"categories": [CATEGORY]} if kind.in_category else {}),
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    **({"subresources": {"status": {}}} if "status" in kind.model_fields else {}),
                    "additionalPrinterColumns": [
                        {"name": name, "type": type_, "jsonPath": path} | ({"priority": priority} if priority else {})
                        for name, type_, path, priority in kind.columns
                    ],
                    **(
                        {"selectableFields": [{"jsonPath": path} for path in kind.selectable_fields]}
                        if kind.selectable_fields
                        else {}
                    ),
                    "schema": {"openAPIV3Schema": kind_schema(kind)},
                }
            ],
        },
    }


def kind_schema(kind: type[CustomResource]) -> Schema:
    """The structural schema of a kind: spec with its defaults and rules, status with bounds only.

    Status and the kinds that only the operator writes have neither defaults nor rules: the operator writes them whole,
    and a rule there could refuse the very write that reports a problem.
    """
    raw = kind.model_json_schema(by_alias=True, schema_generator=_WithRules)
    definitions: Schema = raw.get("$defs", {})
    parts = [name for name in ("spec", "status") if name in raw["properties"]]
    properties: Schema = {name: structural(raw["properties"][name], definitions) for name in parts}
    if "status" in properties:
        properties["status"] = _without(properties["status"], "default", RULES)
    if kind.written_by_operator:
        properties["spec"] = _without(properties["spec"], "default", RULES)
    properties["spec"] = _list_defaults_told(properties["spec"])
    return {
        "description": _one_line(kind.__doc__ or kind.kind_name),
        "type": "object",
        **({"required": ["spec"]} if "spec" in raw.get("required", ()) else {}),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {
                    "name": {
                        "type": "string",
                        "maxLength": kind.max_name_length,
                        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
                    }
                },
            },
            **properties,
        },
    }


def structural(node: Schema, definitions: Schema) -> Schema:
    """A pydantic JSON schema in the subset that Kubernetes calls structural. `$ref` inlined, null and titles gone."""
    node = _resolved(node, definitions)
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    immutable = node.get(IMMUTABLE)
    out: Schema = {key: value for key, value in node.items() if key not in _DROPPED}
    if "description" in out:
        out["description"] = _one_line(out["description"])
    if "properties" in out:
        out["properties"] = {name: structural(child, definitions) for name, child in out["properties"].items()}
    if "items" in out:
        out["items"] = structural(out["items"], definitions)
    if out.get(PRESERVE) or not isinstance(out.get("additionalProperties"), dict):
        out.pop("additionalProperties", None)
    else:
        out["additionalProperties"] = structural(out["additionalProperties"], definitions)
    if "default" in out:
        default = _default(out["default"], out)
        out = {key: value for key, value in out.items() if key != "default"}
        if default is not None:
            out["default"] = default
    if immutable:
        out[RULES] = [*out.get(RULES, []), {"rule": "self == oldSelf", "message": immutable}]
    return _ordered(out)


def _resolved(node: Schema, definitions: Schema) -> Schema:
    """`$ref` and `anyOf: [X, null]` replaced by X; what stands beside them (a field's own description) wins."""
    while True:
        if "$ref" in node:
            target = definitions[node["$ref"].removeprefix("#/$defs/")]
        elif "anyOf" in node:
            choices = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
            if len(choices) != 1:
                raise ValueError(f"not structural, a field has one type or null: {node['anyOf']}")
            target = choices[0]
        else:
            return node
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        rules = [*target.get(RULES, []), *beside.get(RULES, [])]
        node = {**target, **beside} | ({RULES: rules} if rules else {})


def _default(value: Any, schema: Schema) -> Any:
    """A default without null, and without what the defaults further down say already."""
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    kept = {}
    for key, item in value.items():
        child = properties.get(key, {})
        item = _default(item, child)
        if item is not None and not ("default" in child and child["default"] == item):
            kept[key] = item
    return kept


def _list_defaults_told(node: Schema, below_list: bool = False) -> Schema:
    """Below a list a default only stands in the description: `kubectl apply` and GitOps tools compare and patch lists
    whole, so an item that the API server completed would look changed for ever. The models fill it in instead."""
    out = dict(node)
    if below_list and (default := out.pop("default", None)):
        out["description"] = f"{out.get('description', '')} Default: {default}.".strip()
    if "properties" in out:
        out["properties"] = {name: _list_defaults_told(child, below_list) for name, child in out["properties"].items()}
    if "items" in out:
        out["items"] = _list_defaults_told(out["items"], below_list=True)
    return _ordered(out)


def _without(node: Schema, *keywords: str) -> Schema:
    """The schema with those keywords removed at every level (never a property that happens to have such a name)."""
    out = {key: value for key, value in node.items() if key not in keywords}
    if "properties" in out:
        out["properties"] = {name: _without(child, *keywords) for name, child in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _without(out[key], *keywords)
    return out


_ORDER = ("description", "type", "format", "enum", "default", "required", "properties", "items", "additionalProperties")


def _ordered(schema: Schema) -> Schema:
    rest = sorted(key for key in schema if key not in _ORDER)
    return {key: schema[key] for key in (*_ORDER, *rest) if key in schema}


def _one_line(text: str) -> str:
    """Docstrings are wrapped for the editor; in `kubectl explain` a paragraph is one line."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


# ---------------------------------------------------------------- files


class _Dumper(yaml.SafeDumper):
    """No anchors: two fields of one type are written out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(value: Schema) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return text


def plain_file(value: Schema) -> str:
    return "# Generated by `make generate` from src/promptrollout/api: edit the models.\n" + to_yaml(value)


def chart_file(value: Schema) -> str:
    """The same as a Helm template: installed and kept by choice; `{{` in descriptions is text, not an action."""
    head = {"apiVersion": value["apiVersion"], "kind": value["kind"]}
    spec = to_yaml({"spec": value["spec"]})
    escaped = "".join(f'{{{{ "{part}" }}}}' if part in ("{{", "}}") else part for part in _split_braces(spec))
    return "\n".join(
        (
            "{{- /* Generated by `make generate` from src/promptrollout/api: edit the models. */ -}}",
            "{{- if .Values.crds.enabled }}",
            to_yaml(head).rstrip(),
            "metadata:",
            f"  name: {value['metadata']['name']}",
            "  labels:",
            '    {{- include "promptrollout.labels" . | nindent 4 }}',
            "  {{- if .Values.crds.keep }}",
            "  annotations:",
            "    helm.sh/resource-policy: keep",
            "  {{- end }}",
            escaped.rstrip(),
            "{{- end }}",
            "",
        )
    )


def _split_braces(text: str) -> Iterator[str]:
    start = 0
    position = 0
    while position < len(text) - 1:
        if text[position : position + 2] in ("{{", "}}"):
            yield text[start:position]
            yield text[position : position + 2]
            position = start = position + 2
        else:
            position += 1
    yield text[start:]


def files() -> dict[Path, str]:
    """Every generated file: its path below the repository and its text."""
    out: dict[Path, str] = {}
    writers: tuple[tuple[Path, Callable[[Schema], str]], ...] = ((CRD_DIR, plain_file), (CHART_DIR, chart_file))
    for kind in KINDS:
        definition = crd(kind)
        for folder, write in writers:
            out[folder / f"{kind.plural}.{GROUP}.yaml"] = write(definition)
    return out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m promptrollout.api.crds", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path())
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    options = parser.parse_args(arguments)
    if not (options.root / "pyproject.toml").is_file():
        parser.error(f"{options.root.resolve()} is not the repository: run it there or name it")
    wanted = {options.root / path: text for path, text in files().items()}
    present = {path for folder in (CRD_DIR, CHART_DIR) for path in (options.root / folder).glob(f"*.{GROUP}.yaml")}
    stale = sorted(present - wanted.keys())
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    if options.check:
        for path in (*changed, *stale):
            print(f"{path} differs: run `make generate` and commit the result", file=sys.stderr)
        return 1 if changed or stale else 0
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], "utf-8")
    for path in stale:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
