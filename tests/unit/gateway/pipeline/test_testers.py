"""Testers and baggage over real HTTP: who names an arm, and that no analysis sees it."""

from __future__ import annotations

import aiohttp
import pytest

from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import CANARY, Provider, arm, counted, delivery, request
from tests.unit.gateway.pipeline.test_end_to_end import serving

QA = {"x-team": "qa", "x-promptrollout-variant": "canary"}


async def test_a_tester_meets_the_canary_at_weight_0_outside_the_analysis(gateway: Gateway, provider: Provider) -> None:
    raw = delivery(
        stable=arm(url=provider.url),
        canary=arm(CANARY, provider.url),
        testers=[{"header": "X-Team", "values": ["qa"]}],
        audience={"include": [{"baggage": "plan", "values": ["free"]}]},
    )
    await gateway.registry.apply("support", raw)
    async with serving(gateway.serving_app) as url, aiohttp.ClientSession() as client:

        async def variant(headers: dict[str, str]) -> str:
            async with client.post(f"{url}/v1/chat/completions", json=request(), headers=headers) as answer:
                assert answer.status == 200
                return answer.headers["x-promptrollout-variant"]

        assert await variant(QA) == "canary"
        assert provider.requests[-1]["messages"][0]["content"] == "You are b."
        assert await variant({**QA, "x-team": "ops"}) == "stable"
        assert await variant({"baggage": "plan=free"}) == "stable"
        assert counted(gateway) == {"canary-outside": (1, 0), "stable-outside": (1, 0), "stable": (1, 0)}
        await gateway.registry.set_overrides({"support"})
        assert await variant(QA) == "stable"
        await gateway.registry.set_overrides(set())
        await gateway.registry.apply("support", {**raw, "sequence": 2, "canary": None})
        assert await variant(QA) == "stable"
        assert counted(gateway)["stable-outside"] == (3, 0)


@pytest.mark.parametrize("rule", [{}, {"header": "a", "baggage": "b"}])
async def test_the_series_of_a_tester_outlive_a_change_of_configuration(
    gateway: Gateway, provider: Provider, rule: dict[str, str]
) -> None:
    testers = [{"header": "x-team", "values": ["qa"]}, {**rule, "values": ["x"]}]
    raw = delivery(stable=arm(url=provider.url), canary=arm(CANARY, provider.url), testers=testers)
    await gateway.registry.apply("support", raw)
    async with serving(gateway.serving_app) as url, aiohttp.ClientSession() as client:
        for sequence in (2, 3):
            async with client.post(f"{url}/v1/chat/completions", json=request(), headers=QA) as answer:
                assert answer.status == 200
            await gateway.registry.apply("support", {**raw, "sequence": sequence, "weight": sequence})
    (outside,) = [one for one in gateway.counters.live() if one.labels[3] == "canary-outside"]
    assert (outside.total.requests, outside.retired_at) == (2, None)
