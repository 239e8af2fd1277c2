"""Who is charged when a prompt cannot be filled, or the gateway itself fails: nothing after the assignment is lost."""

from __future__ import annotations

from typing import Any

import pytest

from promptrollout.api.prompt import PromptSpec
from promptrollout.gateway.pipeline import respond
from promptrollout.gateway.process import Gateway
from promptrollout.llm.prompts.prompt import compile_prompt
from tests.unit.gateway.kit import CANARY, SCHEMA, Caller, Provider, arm, counted, delivery, request, series


async def canary(gateway: Gateway, provider: Provider, **changes: Any) -> None:
    stable, other = arm(url=provider.url), arm(CANARY, provider.url, **changes)
    await gateway.registry.apply("support", delivery(weight=100, stable=stable, canary=other))


@pytest.mark.parametrize(
    "text", ["{{ 'hello world'|truncate(2) }}", "{{ '\\ud800' }}", "{{ 1|round(999999999) }}", "{{ n|sort }}"]
)
async def test_a_canary_whose_template_always_fails_is_charged_and_its_users_are_served(
    gateway: Gateway, caller: Caller, provider: Provider, text: str
) -> None:
    await canary(gateway, provider, messages=[{"role": "system", "content": text}])
    for n in range(5):
        answered = await caller.post(request(user=f"u{n}", prompt_variables={"n": 1}))
        assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
    assert counted(gateway) == {"canary": (5, 5)}
    assert series(gateway, "canary").errors["render"] == 5


async def test_a_fault_of_the_gateway_itself_counts_under_the_arm_and_is_a_500_in_openais_shape(
    gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> bool:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(respond, "check_contract", fails)
    await canary(gateway, provider, outputSchema=SCHEMA)
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"], answered.error["type"]) == (500, "internal", "server_error")
    assert "a fault of ours" not in answered.body.decode()
    assert series(gateway, "canary").errors["internal"] == 1
    assert counted(gateway) == {"canary": (1, 1)}


async def test_a_fault_while_the_request_is_put_together_is_the_versions_too(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await canary(gateway, provider)
    serving = gateway.registry.find("support")
    assert serving is not None
    assert serving.canary is not None
    object.__setattr__(serving.canary.prompt, "overlays", None)
    answered = await caller.post(request())
    assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
    assert series(gateway, "canary").errors["render"] == 1


def test_what_no_request_could_carry_is_refused_when_it_is_loaded() -> None:
    nested: dict[str, Any] = {}
    for _ in range(300):
        nested = {"a": nested}
    message = {"role": "system", "content": "Hi."}
    spec = {"providerRef": {"name": "p"}, "model": "m", "messages": [message], "tools": [{"type": "x", "x": nested}]}
    with pytest.raises(ValueError, match="cannot be sent as JSON"):
        compile_prompt(PromptSpec.model_validate(spec))
