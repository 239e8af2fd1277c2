"""Objects as the API server would give them, for tests without one."""

from typing import Any

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.rollout import RolloutSpec
from promptrollout.engine.lifecycle.facts import Desired
from promptrollout.engine.lifecycle.messages import problem_text
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.copies import copy_of

Object = dict[str, Any]
PROMPT: Object = {"providerRef": {"name": "model"}, "model": "small", "messages": [{"role": "system", "content": "Hi"}]}
ANALYSIS: Object = {"objectives": [{"name": "errors", "signal": "ErrorRate", "max": "0.02"}]}


def an_object(kind: str, name: str, spec: Object, **metadata: Any) -> Object:
    base = {"namespace": "ns", "name": name, "uid": f"{kind}-{name}", "resourceVersion": "7", "generation": 1}
    return {"kind": kind, "metadata": base | metadata, "spec": spec}


def store_with(*items: Object) -> Store:
    """A provider, a gateway and what is given."""
    store = Store()
    provider = {"baseURL": "http://model/v1", "prices": [price("small"), price("large")]}
    for item in (an_object("ModelProvider", "model", provider), an_object("PromptGateway", "default", {}), *items):
        store.put(item["kind"], item)
    return store


def price(model: str) -> Object:
    return {"model": model, "inputPerMillionUsd": "1", "outputPerMillionUsd": "4"}


def prompt(**changes: Any) -> PromptSpec:
    return PromptSpec.model_validate(PROMPT | changes)


def a_copy(rollout: str = "app", **changes: Any) -> Object:
    body = copy_of("ns", rollout, prompt(**changes))
    body["metadata"] |= {"uid": body["metadata"]["name"], "resourceVersion": "7"}
    return body


def rollout_spec(**changes: Any) -> RolloutSpec:
    base: Object = {
        "gatewayRef": {"name": "default"},
        "template": PROMPT,
        "strategy": {"canary": {"steps": [{"weight": 10}]}},
        "analysis": ANALYSIS,
    }
    merged = base | changes
    return RolloutSpec.model_validate({name: value for name, value in merged.items() if value is not None})


def texts(desired: Desired) -> tuple[str, ...]:
    """Its problems as people read them."""
    return tuple(problem_text(problem) for problem in desired.problems)
