"""Status of PromptVersions, ModelProviders and PromptSLOs: valid or not, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from promptrollout.api.base_url import base_url_doubt
from promptrollout.api.conditions import ConditionReason, ConditionType
from promptrollout.api.digest import digest_of
from promptrollout.api.invalid import first_problem
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.provider import ProviderSpec
from promptrollout.api.slo import SLOSpec
from promptrollout.api.template import prompt_problems
from promptrollout.api.text import first_few
from promptrollout.cluster import ApiException
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.signals import not_measured
from promptrollout.operator.cluster.api import Api
from promptrollout.operator.cluster.conditions import conditions, same_status
from promptrollout.operator.cluster.events import announce
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.declarations.addresses import elsewhere

Object = dict[str, Any]
Verdict = tuple[bool, str, str]


@dataclass(frozen=True, slots=True)
class Declared:
    """What an object's status is to say."""

    verdicts: Mapping[ConditionType, Verdict]
    digest: str | None = None


class DeclarationReconciler:
    """Writes the status of PromptVersions, ModelProviders and PromptSLOs."""

    def __init__(self, api: Api, store: Store, instance: str) -> None:
        self._api = api
        self._store = store
        self._instance = instance

    async def reconcile(self, key: Key, item: Object, declare: Callable[[Object, Store], Declared]) -> None:
        """Write the status if it has changed."""
        declared = declare(item, self._store)
        status: Object = {
            "observedGeneration": item["metadata"].get("generation", 0),
            "conditions": conditions(item, declared.verdicts, time.time()),
        }
        if declared.digest is not None:
            status["digest"] = declared.digest
        if same_status(item, status):
            return
        try:
            answer = await self._api.apply_status(key.kind, item, status)
        except ApiException as error:
            if error.status == 404:
                return  # deleted meanwhile
            raise
        self._store.put(key.kind, answer, quiet=True)
        await announce(self._api, key.kind, item, status["conditions"], self._instance)


def version(item: Object, _: Store) -> Declared:
    verdict, digest = version_verdict(item)
    return Declared({ConditionType.READY: verdict}, digest)


def provider(item: Object, store: Store) -> Declared:
    return Declared({ConditionType.READY: provider_verdict(item, store), **tls_verdict(item)})


def slo(item: Object, _: Store) -> Declared:
    return Declared({ConditionType.READY: slo_verdict(item)})


def version_verdict(item: Object) -> tuple[Verdict, str | None]:
    try:
        prompt = PromptSpec.model_validate(item.get("spec") or {})
    except ValidationError as error:
        return _invalid(error), None
    problems = prompt_problems(prompt)
    try:
        digest = digest_of(prompt)
    except ValueError:
        digest = None  # among the problems
    if problems:
        text = "; ".join(f"spec{'.' + path if path else ''}: {reason}" for path, reason in problems)
        return (False, ConditionReason.INVALID_SPEC, text), digest
    return (True, ConditionReason.VALID, "the prompt can be served"), digest


def provider_verdict(item: Object, store: Store) -> Verdict:
    try:
        spec = ProviderSpec.model_validate(item.get("spec") or {})
    except ValidationError as error:
        return _invalid(error)
    metadata = item["metadata"]
    if others := elsewhere(metadata["namespace"], metadata["name"], (spec.type, spec.base_url), store):
        rollouts = first_few(others, 5)
        urls = ", ".join(sorted(set().union(*others.values())))
        text = (
            f"spec.baseURL: {rollouts} still use {urls} until their next version. "
            "Give another endpoint a ModelProvider of its own"
        )
        return False, ConditionReason.SERVED_ELSEWHERE, text
    prices = "no prices: the cost of its requests is unknown"
    if spec.prices:
        prices = f"{len(spec.prices)} model price{'s' if len(spec.prices) > 1 else ''}"
    doubt = base_url_doubt(spec.base_url)
    return True, ConditionReason.VALID, f"{spec.base_url}, {prices}" + (f"; spec.baseURL {doubt}" if doubt else "")


def tls_verdict(item: Object) -> dict[ConditionType, Verdict]:
    """Shows in the status that an endpoint's certificate is not verified."""
    spec = item.get("spec") or {}
    if not str(spec.get("baseURL", "")).startswith("https:"):
        return {}
    if (spec.get("tls") or {}).get("insecureSkipVerify"):
        text = "spec.tls.insecureSkipVerify: prompts and keys can be intercepted. Set the endpoint's CA instead"
        return {ConditionType.TLS_VERIFIED: (False, ConditionReason.INSECURE_SKIP_VERIFY, text)}
    return {ConditionType.TLS_VERIFIED: (True, ConditionReason.VERIFIED, "the endpoint's certificate is verified")}


def slo_verdict(item: Object) -> Verdict:
    try:
        objectives = SLOSpec.model_validate(item.get("spec") or {}).objectives
    except ValidationError as error:
        return _invalid(error)
    for index, objective in enumerate(objectives):
        try:
            make_test(objective)
        except ValueError as error:
            return False, ConditionReason.INVALID_SPEC, f"spec.objectives[{index}]: {error}"
        if reason := not_measured(objective):
            return False, ConditionReason.INVALID_SPEC, f"spec.objectives[{index}].signal: {reason}"
    return True, ConditionReason.VALID, f"{len(objectives)} objectives"


def _invalid(error: ValidationError) -> Verdict:
    return False, ConditionReason.INVALID_SPEC, f"spec.{first_problem(error)}"
