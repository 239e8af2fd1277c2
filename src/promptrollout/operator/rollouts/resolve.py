"""From the spec and the objects that it names to what the engine may work with; every defect becomes a value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from promptrollout.api.delivery import VersionRef
from promptrollout.api.digest import copy_name
from promptrollout.api.invalid import first_problem
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.provider_support import unsupported
from promptrollout.api.rollout import RolloutSpec, Snapshot
from promptrollout.api.slo import Objective, SLOSpec, VersusStable
from promptrollout.api.template import Problem as PromptProblem
from promptrollout.api.template import prompt_problems
from promptrollout.engine.lifecycle.facts import Desired
from promptrollout.engine.lifecycle.reasons import MissingObject, Problem, SpecProblem
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.signals import not_measured
from promptrollout.operator.cluster.identity import OncePerModel
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.copies import digest_if_any, is_copy, prompt_of

Object = dict[str, Any]

MAX_OBJECTIVES = 20
MAX_QUERIES_LENGTH = 6_000
ALWAYS_ON_INCREASE_PERCENT = 50
CONTRACT_MAX_SHARE = "0.05"
"""Bound of the contract failures where stable has no output schema to compare with."""

_problems: OncePerModel[PromptSpec, list[PromptProblem]] = OncePerModel(prompt_problems)


@dataclass(frozen=True, slots=True)
class Resolved:
    """`missing_copies`: prompts whose owned copy must be created before they are used; `note`: objectives that are
    declared, valid, and left out."""

    desired: Desired
    missing_copies: tuple[PromptSpec, ...] = ()
    metrics_source: str | None = None
    note: str = ""

    def without(self, refused: Mapping[str, SpecProblem]) -> Resolved:
        """The same if the API server refuses these copies: nothing new starts, what runs continues."""
        if not refused:
            return self
        desired = self.desired
        version, baseline = (
            None if ref is None or ref.version in refused else ref for ref in (desired.version, desired.baseline)
        )
        return replace(self, desired=Desired(version, baseline, None, (*desired.problems, *refused.values())))


def resolve(
    namespace: str,
    name: str,
    spec: RolloutSpec,
    stable: VersionRef | None,
    store: Store,
    sources: Collection[str],
    gateway: str = "",
) -> Resolved:
    """`stable`: what is served now; `sources`: names of the metrics sources that the operator knows; `gateway`: the one
    that serves, if that is not yet the one that the spec names."""
    problems: list[SpecProblem] = []
    missing: list[PromptSpec] = []
    source = _metrics_source(namespace, spec, store, sources, problems)
    if gateway:
        source = _named_source(store.get("PromptGateway", namespace, gateway), sources)
    prompt: PromptSpec | None
    if spec.template is not None:
        prompt, path = spec.template, "spec.template"
    else:
        prompt, path = _named_version(namespace, spec, store, problems, "version_ref", "spec.versionRef")
    version = _own_copy(namespace, name, prompt, path, store, problems, missing)
    baseline = None
    if spec.baseline_ref is not None and stable is None:
        other, other_path = _named_version(namespace, spec, store, problems, "baseline_ref", "spec.baselineRef")
        baseline = _own_copy(namespace, name, other, other_path, store, problems, missing)
    snapshot = None
    note = ""
    if prompt is not None:
        served = store.get("PromptVersion", namespace, stable.version) if stable else None
        before = prompt_of(served) if served is not None else None
        snapshot, note = _snapshot(namespace, spec, prompt, before, store, problems)
    desired = Desired(
        version=version,
        baseline=baseline,
        snapshot=None if problems else snapshot,
        problems=tuple(problems),
    )
    return Resolved(desired, tuple(missing), source, note)


# ---------------------------------------------------------------- gateway


def _metrics_source(
    namespace: str, spec: RolloutSpec, store: Store, sources: Collection[str], problems: list[SpecProblem]
) -> str | None:
    name = spec.gateway_ref.name
    gateway = store.get("PromptGateway", namespace, name)
    if gateway is None:
        problems.append(MissingObject("spec.gatewayRef.name", "PromptGateway", name, namespace))
        return None
    if (source := _named_source(gateway, sources)) is not None:
        return source
    source = _source_of(gateway)
    if spec.analysis.mode == "Metrics":
        known = ", ".join(sorted(sources)) or "none"
        reason = (
            f"PromptGateway {name}: the operator has no metrics source {source} (it has: {known}). "
            "Change spec.metricsSource, or the operator's configuration"
        )
        problems.append(Problem("spec.gatewayRef.name", reason))
    return None


def _source_of(gateway: Object) -> str:
    return str((gateway.get("spec") or {}).get("metricsSource", "default"))


def _named_source(gateway: Object | None, sources: Collection[str]) -> str | None:
    """The metrics source that a gateway names, if the operator has it."""
    return _source_of(gateway) if gateway is not None and _source_of(gateway) in sources else None


# ---------------------------------------------------------------- the prompt


def _named_version(
    namespace: str, spec: RolloutSpec, store: Store, problems: list[SpecProblem], field: str, path: str
) -> tuple[PromptSpec | None, str]:
    ref = getattr(spec, field)
    if ref is None:
        problems.append(Problem("spec", "set exactly one of template and versionRef"))
        return None, path
    item = store.get("PromptVersion", namespace, ref.name)
    if item is None:
        problems.append(MissingObject(f"{path}.name", "PromptVersion", ref.name, namespace))
        return None, path
    prompt = prompt_of(item)
    if prompt is None:
        reason = f"PromptVersion {ref.name} cannot be read by this release: apply it again"
        problems.append(Problem(f"{path}.name", reason))
    return prompt, f"{path} (PromptVersion {ref.name})"


def _own_copy(
    namespace: str,
    rollout: str,
    prompt: PromptSpec | None,
    path: str,
    store: Store,
    problems: list[SpecProblem],
    missing: list[PromptSpec],
) -> VersionRef | None:
    """The owned copy of a sound prompt, to be created if need be."""
    if prompt is None:
        return None
    found: list[SpecProblem] = [
        Problem(f"{path}.{where}" if where else path, reason) for where, reason in _problems(prompt)
    ]
    refs = [("providerRef", prompt.provider_ref.name)]
    refs += [(f"fallbacks[{n}].providerRef", each.provider_ref.name) for n, each in enumerate(prompt.fallbacks or ())]
    kinds: set[str] = set()
    for field, provider in refs:
        if (item := store.get("ModelProvider", namespace, provider)) is None:
            found.append(MissingObject(f"{path}.{field}.name", "ModelProvider", provider, namespace))
        else:
            kinds.add((item.get("spec") or {}).get("type", "OpenAI"))
    found += [
        Problem(f"{path}.{where}", reason) for kind in sorted(kinds) for where, reason in unsupported(prompt, kind)
    ]
    problems += found
    digest = digest_if_any(prompt)
    if digest is None:
        return None  # reported by prompt_problems
    name = copy_name(rollout, digest)
    existing = store.get("PromptVersion", namespace, name)
    if existing is None:
        if not found:
            missing.append(prompt)
    else:
        held = prompt_of(existing)
        if not is_copy(existing, rollout) or held is None or digest_if_any(held) != digest:
            reason = (
                f"PromptVersion {name} exists, but is not the operator's copy or differs from it: delete or rename it"
            )
            problems.append(Problem(path, reason))
            return None
    return None if found else VersionRef(version=name, digest=digest)


# ---------------------------------------------------------------- the objectives


def _snapshot(
    namespace: str,
    spec: RolloutSpec,
    prompt: PromptSpec,
    stable: PromptSpec | None,
    store: Store,
    problems: list[SpecProblem],
) -> tuple[Snapshot, str]:
    """With a note on objectives that are left out."""
    canary, analysis = spec.strategy.canary, spec.analysis
    analyse = analysis.mode == "Metrics"
    objectives, note = _objectives(namespace, spec, prompt, stable, store, problems) if analyse else ([], "")
    snapshot = Snapshot(
        steps=canary.steps,
        objectives=objectives,
        interval_seconds=analysis.interval_seconds,
        bake_seconds=canary.bake_seconds,
        holdback_percent=spec.holdback_percent,
        max_duration_seconds=canary.max_duration_seconds,
        on_timeout=canary.on_timeout,
        on_first_breach=canary.on_first_breach,
        on_insufficient_traffic=canary.on_insufficient_traffic,
        on_metrics_loss=canary.on_metrics_loss,
        metrics_loss_seconds=canary.metrics_loss_seconds,
        analyse=analyse,
        stickiness=spec.stickiness,
        audience=canary.audience,
        reporting=spec.reported,
    )
    return snapshot, note


def _objectives(
    namespace: str,
    spec: RolloutSpec,
    prompt: PromptSpec,
    stable: PromptSpec | None,
    store: Store,
    problems: list[SpecProblem],
) -> tuple[list[Objective], str]:
    declared: dict[str, tuple[str, Objective]] = {}

    def declare(origin: str, path: str, objective: Objective) -> None:
        if objective.name in declared:
            first = declared[objective.name][0]
            reason = f"the objective {objective.name} is also declared in {first}: rename one of them"
            problems.append(Problem(origin, reason))
            return
        try:
            make_test(objective)
        except ValueError as error:
            problems.append(Problem(origin, str(error)))
        if reason := not_measured(objective):
            problems.append(Problem(f"{path}.signal", reason))
        declared[objective.name] = (origin, objective)

    for number, objective in enumerate(spec.analysis.objectives):
        declare("spec.analysis.objectives", f"spec.analysis.objectives[{number}]", objective)
    for index, ref in enumerate(spec.analysis.slo_refs):
        path = f"spec.analysis.sloRefs[{index}]"
        item = store.get("PromptSLO", namespace, ref.name)
        if item is None:
            problems.append(MissingObject(f"{path}.name", "PromptSLO", ref.name, namespace))
            continue
        try:
            objectives = SLOSpec.model_validate(item.get("spec") or {}).objectives
        except ValidationError as error:
            problems.append(Problem(f"{path}.name", f"PromptSLO {ref.name}: {first_problem(error)}"))
            continue
        for number, objective in enumerate(objectives):
            origin = f"{path} (PromptSLO {ref.name})"
            declare(origin, f"{origin}: spec.objectives[{number}]", objective)
    _check_price(namespace, prompt, declared, store, problems)
    found = [objective for _, objective in declared.values()]
    note = ""
    if prompt.output_schema is None:
        # without a check nothing is measured: the objective would hold the rollout for ever
        left_out = [objective.name for objective in found if objective.signal == "ContractFailureRate"]
        found = [objective for objective in found if objective.signal != "ContractFailureRate"]
        if left_out:
            note = f"the prompt has no outputSchema, so objectives on ContractFailureRate are left out: {left_out[0]}"
            note += f" and {len(left_out) - 1} more" if left_out[1:] else ""
    found += _always_on(found, prompt, stable)
    queries = sum(len(query) for each in found if each.custom for query in each.custom.queries.values())
    if queries > MAX_QUERIES_LENGTH:
        reason = (
            f"queries of signal Custom have {queries} characters in total, {MAX_QUERIES_LENGTH} are allowed: "
            "shorten or remove some"
        )
        problems.append(Problem("spec.analysis", reason))
    if len(found) > MAX_OBJECTIVES:
        reason = (
            f"{len(found)} objectives, including built-in ones, {MAX_OBJECTIVES} are allowed: remove some, or an SLO"
        )
        problems.append(Problem("spec.analysis", reason))
    return found[:MAX_OBJECTIVES], note


def _check_price(
    namespace: str,
    prompt: PromptSpec,
    declared: dict[str, tuple[str, Objective]],
    store: Store,
    problems: list[SpecProblem],
) -> None:
    """Without a price the cost is unknown: the objective would hold the rollout for ever, or miss part of the cost."""
    costs = ((origin, each.name) for origin, each in declared.values() if each.signal == "CostPerRequest")
    first = next(costs, None)
    if first is None:
        return
    asked = [(prompt.provider_ref.name, prompt.model)]
    asked += [(each.provider_ref.name, each.model) for each in prompt.fallbacks or ()]
    for provider, model in asked:
        item = store.get("ModelProvider", namespace, provider)
        if item is None:
            continue  # reported already
        if model not in {row.get("model") for row in (item.get("spec") or {}).get("prices") or []}:
            reason = (
                f"objective {first[1]} needs a price for the model {model}: "
                f"add it to spec.prices of ModelProvider {provider}, or remove the objective"
            )
            problems.append(Problem(first[0], reason))


def _always_on(found: list[Objective], prompt: PromptSpec, stable: PromptSpec | None) -> list[Objective]:
    """Errors and contract failures are always watched."""
    signals, names = {objective.signal for objective in found}, {objective.name for objective in found}
    versus = VersusStable(max_increase_percent=ALWAYS_ON_INCREASE_PERCENT)
    added = []
    if "ErrorRate" not in signals:
        added.append(Objective(name=_unused("error-rate", names), signal="ErrorRate", versus_stable=versus))
    if "ContractFailureRate" not in signals and prompt.output_schema is not None:
        name = _unused("contract-failure-rate", names)
        if stable is not None and stable.output_schema is None:
            # stable has no schema, so nothing to compare with
            added.append(Objective(name=name, signal="ContractFailureRate", max=CONTRACT_MAX_SHARE))
        else:
            added.append(Objective(name=name, signal="ContractFailureRate", versus_stable=versus))
    return added


def _unused(name: str, used: set[str]) -> str:
    return name if name not in used else f"always-on-{name}"
