"""From manifests to the rules that the operator would use: resolved by its own code, without a cluster."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from promptrollout.api.invalid import first_problem
from promptrollout.api.rollout import RolloutSpec, Snapshot
from promptrollout.engine.lifecycle.messages import problem_text
from promptrollout.engine.lifecycle.reasons import MissingObject, SpecProblem
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.rollouts.resolve import resolve

Body = Mapping[str, Any]

KINDS = ("PromptRollout", "PromptVersion", "PromptSLO", "PromptGateway", "ModelProvider")
"""The kinds that matter here."""
NAMESPACE = "simulated"
"""All given objects count as of this one."""


def rollouts_in(bodies: Sequence[Body]) -> list[str]:
    """Names of the rollouts among the manifests."""
    return [_name(body) for body in bodies if body.get("kind") == "PromptRollout"]


def rules_of(bodies: Sequence[Body], name: str | None = None) -> tuple[str, Snapshot]:
    """Name and rules of the rollout `name`, or of the only one. ValueError says what is missing or wrong.

    Gateway and provider decide nothing here, so that they may be left out; SLOs and a named version must be given.
    """
    for body in bodies:
        for field in ("metadata", "spec"):
            if body.get("kind") in KINDS and not isinstance(body.get(field), Mapping | None):
                raise ValueError(f"{field} of a {body['kind']} is not a mapping; run `promptrollout lint`")
    names = rollouts_in(bodies)
    if not names:
        raise ValueError("the given files have no PromptRollout: add one with -f")
    if name is None and len(names) > 1:
        raise ValueError(f"{len(names)} rollouts in the given files ({', '.join(names)}): choose one with --name")
    if name is not None and name not in names:
        raise ValueError(f"the given files have no PromptRollout {name} (they have {', '.join(names)})")
    body = next(b for b in bodies if b.get("kind") == "PromptRollout" and name in (None, _name(b)))
    try:
        spec = RolloutSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        raise ValueError(f"spec.{first_problem(error)}; run `promptrollout lint`") from error
    store = _store(bodies, spec)
    sources = {str((item.get("spec") or {}).get("metricsSource", "default")) for item in store.all("PromptGateway")}
    desired = resolve(NAMESPACE, _name(body), spec, None, store, sources).desired
    if desired.problems or desired.snapshot is None:
        reasons = "; ".join(_problem(each) for each in desired.problems)
        raise ValueError(f"PromptRollout {_name(body)}: {reasons}")
    return _name(body), desired.snapshot


def _problem(problem: SpecProblem) -> str:
    """There is no namespace here: a missing object must be among the files."""
    if isinstance(problem, MissingObject):
        return f"{problem.path}: there is no {problem.kind} {problem.name} in the given files: add it"
    return problem_text(problem)


def _store(bodies: Sequence[Body], spec: RolloutSpec) -> Store:
    store = Store()
    for body in bodies:
        metadata = {"name": _name(body), "namespace": NAMESPACE, "uid": "", "resourceVersion": ""}
        store.put(str(body.get("kind")), {**body, "metadata": metadata}, even_older=True)
    if store.get("PromptGateway", NAMESPACE, spec.gateway_ref.name) is None:
        store.put("PromptGateway", _stand_in(spec.gateway_ref.name, {}))
    prompts = [dict(item.get("spec") or {}) for item in store.all("PromptVersion")]
    prompts += [spec.template.dump()] if spec.template is not None else []
    for prompt in prompts:
        provider = str((prompt.get("providerRef") or {}).get("name", ""))
        if store.get("ModelProvider", NAMESPACE, provider) is None:
            store.put("ModelProvider", _stand_in(provider, {"prices": [{"model": prompt.get("model")}]}))
    return store


def _stand_in(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": NAMESPACE, "uid": "", "resourceVersion": ""}, "spec": spec}


def _name(body: Body) -> str:
    return str((body.get("metadata") or {}).get("name") or "(no name)")
