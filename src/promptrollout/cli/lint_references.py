"""What a manifest says beyond its schema: prompts that cannot be served, and references between the given objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.slo import Objective
from promptrollout.api.template import prompt_problems
from promptrollout.cli.lint_schema import Path, Problem
from promptrollout.engine.objectives import make_test


@dataclass(frozen=True, slots=True)
class Reference:
    """One object naming another of its own namespace."""

    path: Path
    kind: str
    name: str
    key: str = ""
    """Of a Secret."""


def content_problems(kind: str, spec: dict[str, Any]) -> Iterator[Problem]:
    """Of a spec that its schema accepts: prompts that do not compile, objectives that no test can judge."""
    for path, prompt in _prompts(kind, spec):
        try:
            parsed = PromptSpec.model_validate(prompt)
        except ValidationError as error:
            first = error.errors()[0]
            yield Problem((*path, *first["loc"]), f"{first['msg']}; see docs/objects.md")
            continue
        for where, reason in prompt_problems(parsed):
            yield Problem((*path, where) if where else path, reason)
    for path, objective in _objectives(kind, spec):
        try:
            make_test(Objective.model_validate(objective))
        except ValueError as error:
            yield Problem(path, str(error))


def references(kind: str, spec: dict[str, Any]) -> Iterator[Reference]:
    """Every object that this one cannot do without."""
    for path, prompt in _prompts(kind, spec):
        yield Reference((*path, "providerRef", "name"), "ModelProvider", prompt["providerRef"]["name"])
    if kind == "PromptRollout":
        yield Reference(("spec", "gatewayRef", "name"), "PromptGateway", spec["gatewayRef"]["name"])
        for field in ("versionRef", "baselineRef"):
            if field in spec:
                yield Reference(("spec", field, "name"), "PromptVersion", spec[field]["name"])
        for index, ref in enumerate(spec["analysis"].get("sloRefs", ())):
            yield Reference(("spec", "analysis", "sloRefs", index, "name"), "PromptSLO", ref["name"])
    if kind == "ModelProvider" and (key := spec.get("apiKeySecretRef")):
        yield Reference(("spec", "apiKeySecretRef", "name"), "Secret", key["name"], key["key"])


def reference_problems(manifest: dict[str, Any], ours: Sequence[dict[str, Any]]) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings. An object that is not among `ours` may well be in the cluster: that is a warning."""
    errors: list[Problem] = []
    warnings: list[Problem] = []
    kind, spec = manifest["kind"], manifest["spec"]
    for ref in references(kind, spec):
        named = [each for each in ours if each.get("kind") == ref.kind and _metadata(each).get("name") == ref.name]
        near = [each for each in named if _same_namespace(manifest, each)]
        if near:
            if ref.key and not any(
                ref.key in (each.get(part) or {}) for each in near for part in ("data", "stringData")
            ):
                path = (*ref.path[:-1], "key")
                errors.append(
                    Problem(path, f"Secret {ref.name} has no key {ref.key}; add it there or correct the name")
                )
        elif named:
            other = _metadata(named[0]).get("namespace")
            errors.append(
                Problem(ref.path, f"{ref.kind} {ref.name} is in namespace {other}; references stay inside a namespace")
            )
        else:
            warnings.append(
                Problem(ref.path, f"{ref.kind} {ref.name} is not in the given files; it must be in the cluster")
            )
    if kind == "PromptRollout":
        errors += _objectives_twice(manifest, ours)
    return errors, warnings


def _objectives_twice(rollout: dict[str, Any], ours: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """Names must be unique over the rollout's own objectives and those of its SLOs."""
    analysis = rollout["spec"]["analysis"]
    seen = {objective["name"]: "spec.analysis.objectives" for objective in analysis.get("objectives", ())}
    for index, ref in enumerate(analysis.get("sloRefs", ())):
        for slo in ours:
            if slo.get("kind") != "PromptSLO" or _metadata(slo).get("name") != ref["name"]:
                continue
            if not _same_namespace(rollout, slo):
                continue
            for objective in (slo.get("spec") or {}).get("objectives") or ():
                name = objective.get("name")
                if name in seen:
                    path = ("spec", "analysis", "sloRefs", index)
                    reason = f"objective {name} of PromptSLO {ref['name']} is declared in {seen[name]} too"
                    yield Problem(path, f"{reason}; rename one of them")
                seen[name] = f"PromptSLO {ref['name']}"


def _prompts(kind: str, spec: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    if kind == "PromptVersion":
        yield ("spec",), spec
    elif kind == "PromptRollout" and "template" in spec:
        yield ("spec", "template"), spec["template"]


def _objectives(kind: str, spec: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    within = spec.get("analysis", {}) if kind == "PromptRollout" else spec if kind == "PromptSLO" else {}
    prefix: Path = ("spec", "analysis") if kind == "PromptRollout" else ("spec",)
    for index, objective in enumerate(within.get("objectives", ())):
        yield (*prefix, "objectives", index), objective


def _secret_keys(secret: dict[str, Any]) -> set[str]:
    return {key for part in ("data", "stringData") for key in secret.get(part) or {}}


def _metadata(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest.get("metadata") or {}


def _same_namespace(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """An absent namespace is whatever `kubectl apply -n` will say: it matches any."""
    spaces = [_metadata(each).get("namespace") for each in (one, other)]
    return None in spaces or spaces[0] == spaces[1]
