"""Fallbacks and a provider's settings on their way from the objects that people apply to the pods."""

from __future__ import annotations

from typing import Any

import pytest

from promptrollout.api.delivery import DeliverySpec, Memory, VersionRef
from promptrollout.api.digest import digest_of
from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.meta import ConfigMapKeyRef, SecretKeyRef
from promptrollout.api.rollout import Stickiness
from promptrollout.api.template import prompt_problems
from promptrollout.engine.lifecycle.facts import DeliveryIntent
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.declarations.reconcile import tls_verdict
from promptrollout.operator.delivery.compile import CannotCompile, compile_delivery
from promptrollout.operator.gateways.objects import gateway_objects, held_template, mounted_files
from promptrollout.operator.gateways.provider_files import source_of
from promptrollout.operator.rollouts.resolve import resolve
from tests.unit.operator.world import PROMPT, a_copy, an_object, price, prompt, rollout_spec, store_with, texts

FALLBACKS = [{"providerRef": {"name": "second"}, "model": "big"}]
VERSION = a_copy(fallbacks=FALLBACKS)
SECOND: dict[str, Any] = {
    "baseURL": "https://second/openai/deployments/big",
    "apiKeySecretRef": {"name": "second", "key": "keys"},
    "auth": {"header": "api-key", "scheme": ""},
    "headers": [{"name": "X-Team", "value": "support"}],
    "query": [{"name": "api-version", "value": "2024-10-21"}],
    "tls": {"caConfigMapRef": {"name": "corporate", "key": "ca.pem"}},
    "retryBudgetPercent": 5,
    "prices": [price("big")],
}


def compiled(store: Store, existing: DeliverySpec | None = None) -> DeliverySpec:
    ref = VersionRef(version=VERSION["metadata"]["name"], digest=digest_of(prompt(fallbacks=FALLBACKS)))
    intent = DeliveryIntent(ref, None, 0, "salt/", Stickiness(), None, Memory())
    spec = rollout_spec(template=PROMPT | {"fallbacks": FALLBACKS})
    snapshot = resolve("ns", "app", spec, None, store, {"default"}).desired.snapshot
    return compile_delivery("ns", "uid", spec, intent, [snapshot], existing, store)


def test_fallbacks_are_of_the_digest() -> None:
    plain, one = digest_of(prompt()), digest_of(prompt(fallbacks=FALLBACKS))
    other = digest_of(prompt(fallbacks=[FALLBACKS[0] | {"model": "small"}]))
    assert len({plain, one, other}) == 3


def test_an_arm_carries_its_fallbacks_with_all_that_calls_need() -> None:
    found = compiled(store_with(VERSION, an_object("ModelProvider", "second", SECOND)))
    (fallback,) = found.stable.fallbacks
    assert fallback.model == "big"
    assert fallback.provider.dump() == {
        "name": "second",
        "type": "OpenAI",
        "baseURL": "https://second/openai/deployments/big",
        "needsKey": True,
        "keySource": source_of(SecretKeyRef(name="second", key="keys")),
        "auth": {"header": "api-key", "scheme": ""},
        "headers": [{"name": "X-Team", "value": "support"}],
        "query": [{"name": "api-version", "value": "2024-10-21"}],
        "tls": {
            "hasCa": True,
            "caSource": source_of(ConfigMapKeyRef(name="corporate", key="ca.pem")),
            "insecureSkipVerify": False,
        },
        "timeouts": {
            "connectSeconds": 5,
            "firstByteSeconds": 60,
            "totalSeconds": 300,
            "idleSeconds": 120,
            "coldStartSeconds": 0,
        },
        "maxRetries": 2,
        "retryBudgetPercent": 5,
        "price": price("big"),
    }
    assert found.stable.provider.name == "model"


def test_a_fallback_that_is_gone_is_served_as_it_was_but_none_begins_without() -> None:
    there = compiled(store_with(VERSION, an_object("ModelProvider", "second", SECOND)))
    assert compiled(store_with(VERSION), existing=there) == there
    with pytest.raises(CannotCompile, match="ModelProvider second"):
        compiled(store_with(VERSION))


def test_a_fallback_that_does_not_exist_is_said() -> None:
    spec = rollout_spec(template=PROMPT | {"fallbacks": FALLBACKS})
    assert texts(resolve("ns", "app", spec, None, store_with(), {"default"}).desired) == (
        "spec.template.fallbacks[0].providerRef.name: there is no ModelProvider second in ns: create it",
    )


def test_a_cost_objective_needs_the_fallbacks_price_too() -> None:
    cost = {"objectives": [{"name": "cost", "signal": "CostPerRequest", "max": "1"}]}
    spec = rollout_spec(template=PROMPT | {"fallbacks": FALLBACKS}, analysis=cost)
    unpriced = store_with(an_object("ModelProvider", "second", SECOND | {"prices": []}))
    (problem,) = texts(resolve("ns", "app", spec, None, unpriced, {"default"}).desired)
    assert "needs a price for the model big: add it to spec.prices of ModelProvider second" in problem
    priced = store_with(an_object("ModelProvider", "second", SECOND))
    assert resolve("ns", "app", spec, None, priced, {"default"}).desired.problems == ()


def test_nobody_is_asked_twice() -> None:
    own = {"providerRef": {"name": "model"}, "model": "small"}
    for fallbacks in ([own], [*FALLBACKS, *FALLBACKS]):
        ((path, reason),) = prompt_problems(prompt(fallbacks=fallbacks))
        assert path == f"fallbacks[{len(fallbacks) - 1}]"
        assert reason == "this provider and model are already asked before: remove it"


def test_a_ca_is_a_file_beside_the_key() -> None:
    files = {
        "second/api-key": SecretKeyRef(name="second", key="keys"),
        "second/ca.crt": ConfigMapKeyRef(name="corporate", key="ca.pem"),
    }
    gateway = an_object("PromptGateway", "default", {})
    deployment = dict(gateway_objects(gateway, GatewaySpec(), "image:1", files, "role"))["Deployment"]
    volume = deployment["spec"]["template"]["spec"]["volumes"][2]
    assert volume["projected"]["sources"] == [
        {"secret": {"name": "second", "items": [{"key": "keys", "path": "second/api-key"}], "optional": True}},
        {"configMap": {"name": "corporate", "items": [{"key": "ca.pem", "path": "second/ca.crt"}], "optional": True}},
    ]
    assert mounted_files(deployment) == files
    assert held_template(deployment, files) == deployment["spec"]["template"]


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"baseURL": "http://m/v1"}, None),
        ({"baseURL": "https://m/v1"}, True),
        ({"baseURL": "https://m/v1", "tls": {"insecureSkipVerify": True}}, False),
    ],
)
def test_a_provider_that_trusts_anybody_says_so(spec: dict[str, Any], status: bool | None) -> None:
    found = tls_verdict(an_object("ModelProvider", "m", spec))
    assert {kind: truth for kind, (truth, _, _) in found.items()} == ({} if status is None else {"TLSVerified": status})
