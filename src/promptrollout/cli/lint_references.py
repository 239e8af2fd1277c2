"""What a manifest says beyond its schema: prompts that cannot be served, and references between the given objects."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from promptrollout.api.base_url import base_url_doubt
from promptrollout.api.networks import Networks
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.provider_support import unsupported
from promptrollout.api.rollout import Analysis
from promptrollout.api.slo import Objective
from promptrollout.api.template import prompt_problems
from promptrollout.cli.lint_queries import query_problems
from promptrollout.cli.lint_schema import Path, Problem
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.signals import not_measured
from promptrollout.gateway.auth.caller_keys import EntryError, parse_entry
from promptrollout.llm.providers.key_hosts import parse_hosts


@dataclass(frozen=True, slots=True)
class Reference:
    """One object naming another of its own namespace."""

    path: Path
    kind: str
    name: str
    key: str = ""
    """Of a Secret."""


def content_problems(kind: str, spec: dict[str, Any]) -> Iterator[Problem]:
    """Of a spec that its schema accepts: prompts that do not compile, objectives that nothing can judge or measure."""
    for path, prompt in _prompts(kind, spec):
        try:
            parsed = PromptSpec.model_validate(prompt)
        except ValidationError as error:
            first = error.errors()[0]
            yield Problem((*path, *first["loc"]), f"{first['msg']}; see docs/reference/objects.md")
            continue
        for where, reason in prompt_problems(parsed):
            yield Problem((*path, where) if where else path, reason)
    for path, objective in _objectives(kind, spec):
        try:
            parsed_objective = Objective.model_validate(objective)
            if parsed_objective.custom and (wrong := list(query_problems(parsed_objective.custom))):
                yield from (Problem((*path, *each.path), each.reason) for each in wrong)
                continue
            make_test(parsed_objective)
        except ValueError as error:
            yield Problem(path, str(error))
            continue
        if reason := not_measured(parsed_objective):
            yield Problem((*path, "signal"), reason)


def references(kind: str, spec: dict[str, Any]) -> Iterator[Reference]:
    """The objects that this one needs."""
    for path, prompt in _prompts(kind, spec):
        yield Reference((*path, "providerRef", "name"), "ModelProvider", prompt["providerRef"]["name"])
        for index, fallback in enumerate(prompt.get("fallbacks") or ()):
            where = (*path, "fallbacks", index, "providerRef", "name")
            yield Reference(where, "ModelProvider", fallback["providerRef"]["name"])
    if kind == "PromptRollout":
        yield Reference(("spec", "gatewayRef", "name"), "PromptGateway", spec["gatewayRef"]["name"])
        for field in ("versionRef", "baselineRef"):
            if field in spec:
                yield Reference(("spec", field, "name"), "PromptVersion", spec[field]["name"])
        for index, ref in enumerate(spec["analysis"].get("sloRefs", ())):
            yield Reference(("spec", "analysis", "sloRefs", index, "name"), "PromptSLO", ref["name"])
    if kind == "PromptGateway" and (secret := _keys_secret(spec)):
        yield Reference(("spec", "auth", "keysSecretRef", "name"), "Secret", secret)
    if kind == "ModelProvider" and (key := spec.get("apiKeySecretRef")):
        yield Reference(("spec", "apiKeySecretRef", "name"), "Secret", key["name"], key["key"])
    if kind == "ModelProvider":
        for field, of in (("caConfigMapRef", "ConfigMap"), ("caSecretRef", "Secret")):
            if ca := (spec.get("tls") or {}).get(field):
                yield Reference(("spec", "tls", field, "name"), of, ca["name"], ca["key"])


def reference_problems(manifest: dict[str, Any], ours: Sequence[dict[str, Any]]) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings. An object that is not among `ours` may well be in the cluster: that is a warning."""
    errors: list[Problem] = []
    warnings: list[Problem] = []
    kind, spec = manifest["kind"], manifest["spec"]
    for ref in references(kind, spec):
        named = [each for each in ours if each.get("kind") == ref.kind and metadata_of(each).get("name") == ref.name]
        near = [each for each in named if _same_namespace(manifest, each)]
        if near:
            if ref.key and not any(
                ref.key in _mapping(each.get(part)) for each in near for part in ("data", "stringData")
            ):
                path = (*ref.path[:-1], "key")
                errors.append(
                    Problem(path, f"{ref.kind} {ref.name} has no key {ref.key}; add it there or correct the name")
                )
        elif named:
            other = metadata_of(named[0]).get("namespace")
            errors.append(
                Problem(
                    ref.path,
                    f"{ref.kind} {ref.name} is in namespace {other}, and references stay inside a namespace; put both "
                    "into one, or correct the name",
                )
            )
        else:
            warnings.append(
                Problem(
                    ref.path,
                    f"{ref.kind} {ref.name} is not in the given files; give its file too, or see that the "
                    "cluster has it",
                )
            )
    errors += _unsupported(manifest, ours)
    if kind == "PromptGateway":
        errors += _callers(manifest, ours)
    if kind == "ModelProvider" and (doubt := base_url_doubt(spec["baseURL"])):
        warnings.append(Problem(("spec", "baseURL"), doubt))
    if kind == "ModelProvider":
        wrong, doubtful = _key_hosts(manifest, ours)
        errors, warnings = errors + wrong, warnings + doubtful
    if kind == "ModelProvider" and (why := Networks().refusal_of_host(urlsplit(spec["baseURL"]).hostname or "")):
        refused = f"is {why}, which gateways refuse unless the chart's gateway.allowedProviderNetworks allows it"
        warnings.append(Problem(("spec", "baseURL"), refused))
    if kind == "PromptRollout":
        errors += _objectives_twice(manifest, ours)
        errors += _unpriced(manifest, ours)
        warnings += _objectives_left_out(manifest, ours)
        warnings += _everybody_exposed(spec)
        warnings += _steps_below_an_interval(spec)
    return errors, warnings


def _keys_secret(spec: dict[str, Any]) -> str:
    auth = spec.get("auth") or {}
    ref = auth.get("keysSecretRef") if auth.get("mode") in ("Keys", "KeysAndServiceAccounts") else None
    return str(ref["name"]) if ref else ""


def _callers(gateway: dict[str, Any], ours: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """Entries of the given Secret of callers' keys that the gateway's pods could not use. Never shows a key."""
    name = _keys_secret(gateway["spec"])
    path = ("spec", "auth", "keysSecretRef", "name")
    for entries, no_texts in _secrets(gateway, ours, name):
        for caller in no_texts:
            yield Problem(path, f"Secret {name}: data.{caller} is not text in base64; put plain text in stringData")
        for caller, text in entries.items():
            try:
                _, hashes = parse_entry(str(caller), str(text))
            except EntryError as error:
                yield Problem(path, f"Secret {name}: {error}")
                continue
            if not hashes:
                yield Problem(path, f"Secret {name}: {caller} has no key; add a line sha256:<the hash of its key>")


def _secrets(
    manifest: dict[str, Any], ours: Sequence[dict[str, Any]], name: str
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Entries of the given Secrets of this name in the manifest's namespace, and which of them are not text."""
    for secret in ours:
        if secret.get("kind") != "Secret" or metadata_of(secret).get("name") != name:
            continue
        if not _same_namespace(manifest, secret):
            continue
        entries: dict[str, str] = {}
        no_texts: list[str] = []
        for key, coded in _mapping(secret.get("data")).items():
            try:
                entries[key] = base64.b64decode(str(coded), validate=True).decode()
            except ValueError:
                no_texts.append(key)
        yield entries | {key: str(text) for key, text in _mapping(secret.get("stringData")).items()}, no_texts


def _key_hosts(provider: dict[str, Any], ours: Sequence[dict[str, Any]]) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings: where the given Secret of its key lets the key go."""
    spec, path = provider["spec"], ("spec", "apiKeySecretRef", "name")
    name = str((spec.get("apiKeySecretRef") or {}).get("name", ""))
    errors, warnings = [], []
    for entries, _ in _secrets(provider, ours, name):
        if "hosts" not in entries:
            text = (
                f"Secret {name} has no data key hosts, which a later release requires; list the hosts of its key there"
            )
            warnings.append(Problem(path, text))
            continue
        try:
            allowed = parse_hosts(entries["hosts"]).allow(spec["baseURL"])
        except ValueError as error:
            errors.append(Problem(path, f"Secret {name}: hosts: {error}"))
            continue
        if not allowed:
            host = urlsplit(spec["baseURL"]).netloc
            errors.append(
                Problem(path, f"Secret {name}: hosts does not name {host}, so the key is not sent there; add it")
            )
    return errors, warnings


def _objectives_twice(rollout: dict[str, Any], ours: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """Names must be unique over the rollout's own objectives and those of its SLOs."""
    own = rollout["spec"]["analysis"].get("objectives", ())
    seen = {objective["name"]: "spec.analysis.objectives" for objective in own}
    for path, slo, objective in _slo_objectives(rollout, ours):
        name = str(objective.get("name"))
        if name in seen:
            reason = f"the objective {name} of PromptSLO {slo} is also declared in {seen[name]}: rename one of them"
            yield Problem(path, reason)
        seen[name] = f"PromptSLO {slo}"


def _unsupported(manifest: dict[str, Any], ours: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """What the provider's API does not support. The operator refuses it with the same message."""
    for path, prompt in _prompts(manifest["kind"], manifest["spec"]):
        try:
            parsed = PromptSpec.model_validate(prompt)
        except ValidationError:
            return  # said by content_problems
        refs = [parsed.provider_ref.name, *(each.provider_ref.name for each in parsed.fallbacks or ())]
        providers = [each for name in refs for each in _named(manifest, ours, "ModelProvider", name)]
        for kind in sorted({str(_mapping(each.get("spec")).get("type")) for each in providers}):
            yield from (Problem((*path, where), reason) for where, reason in unsupported(parsed, kind))


def _unpriced(rollout: dict[str, Any], ours: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """Without a price the cost is unknown: the operator refuses the first objective on it with the same message."""
    prompt = _prompt_of(rollout, ours)
    name = ((prompt or {}).get("providerRef") or {}).get("name")
    providers = list(_named(rollout, ours, "ModelProvider", name)) if prompt and name else []
    if prompt is None or not providers:
        return
    rows = [row for each in providers for row in (each.get("spec") or {}).get("prices") or []]
    model = prompt.get("model")
    if model in {row.get("model") for row in rows if isinstance(row, dict)}:
        return
    own = rollout["spec"]["analysis"].get("objectives", ())
    costs: list[tuple[Path, str]] = [
        (("spec", "analysis", "objectives", index), objective["name"])
        for index, objective in enumerate(own)
        if objective["signal"] == "CostPerRequest"
    ]
    costs += [
        (path, f"{objective.get('name')} of PromptSLO {slo}")
        for path, slo, objective in _slo_objectives(rollout, ours)
        if objective.get("signal") == "CostPerRequest"
    ]
    for path, objective in costs[:1]:
        yield Problem(
            path,
            f"objective {objective} needs a price for the model {model}: "
            f"add it to spec.prices of ModelProvider {name}, or remove the objective",
        )


def _prompt_of(rollout: dict[str, Any], ours: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What a rollout brings or names; None if that is not among the given objects."""
    if "template" in rollout["spec"]:
        template: dict[str, Any] = rollout["spec"]["template"]
        return template
    name = rollout["spec"]["versionRef"]["name"]
    return next((_mapping(each.get("spec")) for each in _named(rollout, ours, "PromptVersion", name)), None)


def _objectives_left_out(rollout: dict[str, Any], ours: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    """Contract failures are failures to keep the prompt's output schema: without one, nothing is measured."""
    prompt, where = _prompt_of(rollout, ours), "spec.template.outputSchema"
    if "template" not in rollout["spec"]:
        where = f"spec.outputSchema of PromptVersion {rollout['spec']['versionRef']['name']}"
    if prompt is None or prompt.get("outputSchema") is not None:
        return
    reason = f"is on ContractFailureRate, but there is no {where}: the operator leaves it out"
    fix = "add the schema, or remove the objective"
    for index, objective in enumerate(rollout["spec"]["analysis"].get("objectives", ())):
        if objective["signal"] == "ContractFailureRate":
            path = ("spec", "analysis", "objectives", index, "signal")
            yield Problem(path, f"objective {objective['name']} {reason}; {fix}")
    for place, slo, objective in _slo_objectives(rollout, ours):
        if objective.get("signal") == "ContractFailureRate":
            yield Problem(place, f"objective {objective.get('name')} of PromptSLO {slo} {reason}; {fix}")


def _everybody_exposed(spec: dict[str, Any]) -> Iterator[Problem]:
    """A step of 100 % is one that no comparison guards."""
    if spec["analysis"].get("mode") == "None":
        return
    for index, step in enumerate(spec["strategy"]["canary"]["steps"]):
        if step.get("weight") == 100:
            yield Problem(
                ("spec", "strategy", "canary", "steps", index, "weight"),
                "100 sends everybody to the canary, so nothing can be compared with stable; remove the step (100 % "
                "follows the last one, after the bake)",
            )


def _steps_below_an_interval(spec: dict[str, Any]) -> Iterator[Problem]:
    """Time passes by whole intervals: such a step takes longer than it says, and passes on a single look."""
    analysis = spec["analysis"]
    interval = analysis.get("intervalSeconds", Analysis.model_fields["interval_seconds"].default)
    if analysis.get("mode") == "None":
        return
    for index, step in enumerate(spec["strategy"]["canary"]["steps"]):
        seconds = step.get("minDurationSeconds", interval)
        if seconds < interval:
            yield Problem(
                ("spec", "strategy", "canary", "steps", index, "minDurationSeconds"),
                f"{seconds} s are less than analysis.intervalSeconds ({interval}), the shortest possible step; write "
                f"{interval} or more, or shorten the interval",
            )


def _slo_objectives(
    rollout: dict[str, Any], ours: Sequence[dict[str, Any]]
) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Of the given SLOs that the rollout names: where it does, the SLO's name, and each objective."""
    for index, ref in enumerate(rollout["spec"]["analysis"].get("sloRefs", ())):
        for slo in _named(rollout, ours, "PromptSLO", ref["name"]):
            objectives = _mapping(slo.get("spec")).get("objectives")
            for objective in filter(None, map(_mapping, objectives if isinstance(objectives, list) else ())):
                yield ("spec", "analysis", "sloRefs", index), ref["name"], objective


def _named(manifest: dict[str, Any], ours: Sequence[dict[str, Any]], kind: str, name: str) -> Iterator[dict[str, Any]]:
    """The given objects that the manifest means by a name."""
    for each in ours:
        if each.get("kind") == kind and metadata_of(each).get("name") == name and _same_namespace(manifest, each):
            yield each


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


def metadata_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Empty if it cannot be parsed: the check of its own object reports that."""
    return _mapping(manifest.get("metadata"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _same_namespace(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Without a namespace it is that of `kubectl apply -n`: it matches any."""
    spaces = [metadata_of(each).get("namespace") for each in (one, other)]
    return None in spaces or spaces[0] == spaces[1]
