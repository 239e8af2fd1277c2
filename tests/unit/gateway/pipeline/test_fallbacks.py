"""Who answers where a version's own provider cannot, and what that counts. Real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from promptrollout.api import names
from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import (
    CANARY,
    DONE,
    SCHEMA,
    USAGE_CHUNK,
    Caller,
    Provider,
    Script,
    arm,
    chunk,
    completion,
    counted,
    delivery,
    request,
    samples,
    says,
    series,
    streams,
    value,
)


@pytest.fixture
async def second() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running


@pytest.fixture
async def third() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running


def fallback(provider: Provider, name: str = "second", model: str = "big", **changes: Any) -> dict[str, Any]:
    price = {"model": model, "inputPerMillionUsd": "10", "outputPerMillionUsd": "40"}
    return {"model": model, "provider": {"name": name, "baseURL": provider.url, "price": price, **changes}}


async def serve(gateway: Gateway, provider: Provider, *fallbacks: dict[str, Any], **changes: Any) -> None:
    stable = arm(url=provider.url, **{"provider_maxRetries": 0, **changes}) | {"fallbacks": list(fallbacks)}
    await gateway.registry.apply("support", delivery(stable=stable))


FAILURES: dict[str, tuple[Callable[[], Script], str]] = {
    "500": (lambda: says(500, b""), "provider_5xx"),
    "503": (lambda: says(503, b""), "provider_5xx"),
    "429": (lambda: says(429, b"", **{"retry-after": "30"}), "rate_limited"),
    "cut": (lambda: streams(cut=True), "connection"),
    "redirect": (lambda: says(302, b""), "bad_response"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", FAILURES)
async def test_a_fallback_answers_and_the_failure_is_counted(
    kind: str, stream: bool, gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    failure, error_type = FAILURES[kind]
    await serve(gateway, provider, fallback(second))
    provider.script.append(failure())
    if stream:
        second.script.append(streams(chunk("Hello"), chunk(finish_reason="stop"), USAGE_CHUNK, DONE))
    answered = await caller.post(request(stream=stream))
    assert answered.status == 200
    assert b"Hello" in answered.body
    assert (answered.headers[names.HEADER_PROVIDER], answered.headers[names.HEADER_MODEL]) == ("second", "big")
    assert answered.headers[names.HEADER_VARIANT] == "stable"
    (sent,) = second.requests
    assert sent["model"] == "big"
    assert sent["messages"] == provider.requests[0]["messages"]
    found = await samples(gateway)
    assert value(found, names.METRIC_FALLBACKS, variant="stable") == 1
    assert value(found, names.METRIC_REQUESTS, variant="stable") == 1
    assert value(found, names.METRIC_ERRORS, variant="stable", error_type=error_type) == 1
    # 100 tokens in and 10 out, at the fallback's own price
    assert value(found, names.METRIC_COST_SUM, variant="stable") == pytest.approx(100 * 10e-6 + 10 * 40e-6)


async def test_without_a_failure_nobody_else_is_asked(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second))
    answered = await caller.post(request())
    assert (answered.headers[names.HEADER_PROVIDER], answered.headers[names.HEADER_MODEL]) == ("openai", "gpt")
    assert second.requests == []
    found = await samples(gateway)
    assert value(found, names.METRIC_FALLBACKS, variant="stable") == 0
    assert value(found, names.METRIC_COST_SUM, variant="stable") == pytest.approx(100 * 1e-6 + 10 * 4e-6)


async def test_silence_before_the_first_byte_is_a_failure(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second), provider_timeouts={"firstByteSeconds": 1})
    provider.script.append(streams(asyncio.Event()))
    answered = await caller.post(request())
    assert (answered.status, answered.headers[names.HEADER_PROVIDER]) == (200, "second")
    assert series(gateway, "stable").errors["timeout"] == 1


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_what_the_request_is_to_blame_for_is_no_matter_of_fallbacks(
    status: int, gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second))
    provider.script.append(says(status, {"error": {"message": "no"}}))
    assert (await caller.post(request())).status == status
    assert second.requests == []


async def test_who_is_asked_in_anothers_place_has_what_is_left_of_the_time(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider, third: Provider
) -> None:
    timeouts = {"firstByteSeconds": 1, "totalSeconds": 1}
    others = fallback(second, timeouts=timeouts), fallback(third, "third", timeouts={**timeouts, "totalSeconds": 30})
    await serve(gateway, provider, *others, provider_timeouts=timeouts)
    provider.script.append(streams(asyncio.Event()))
    answered = await caller.post(request())
    assert (answered.status, answered.headers[names.HEADER_PROVIDER]) == (200, "third")
    assert second.requests == [], "its second was over before it was asked"
    serving = gateway.registry.find("support")
    assert serving is not None
    tried = [target.circuit.closed and not target.circuit.unreachable for target in serving.stable.targets]
    assert tried == [True, True, True]


@pytest.mark.parametrize("status", [401, 403])
async def test_where_the_gateways_key_is_refused_a_fallback_answers(
    status: int, gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second))
    provider.script.append(says(status, {"error": {"message": "no"}}))
    answered = await caller.post(request())
    assert (answered.status, answered.headers[names.HEADER_PROVIDER]) == (200, "second")
    assert series(gateway, "stable").errors["provider_4xx"] == 1


async def test_after_the_first_byte_nobody_else_is_asked(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second))
    provider.script.append(streams(chunk("Hel"), cut=True))
    answered = await caller.post(request(stream=True))
    assert b"stream_broken" in answered.body
    assert second.requests == []


async def test_they_are_asked_in_order_and_the_first_failure_is_what_a_caller_hears_of(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider, third: Provider
) -> None:
    await serve(gateway, provider, fallback(second, maxRetries=0), fallback(third, "third", maxRetries=0))
    provider.script.append(says(500, {"error": {"message": "the first"}}))
    second.script.append(says(400, {"error": {"message": "too long"}}))
    assert (await caller.post(request())).headers[names.HEADER_PROVIDER] == "third"
    for each in (provider, second, third):
        each.script.append(says(500, {"error": {"message": f"of {each.url}"}}))
    answered = await caller.post(request())
    assert (answered.status, answered.error["message"]) == (502, f"provider openai answered 500: of {provider.url}")
    assert counted(gateway) == {"stable": (2, 2)}
    assert series(gateway, "stable").total.fallbacks == 1


async def test_a_fallbacks_answer_is_held_against_the_schema(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second), outputSchema=SCHEMA)
    provider.script.append(says(500, b""))
    second.script.append(says(body=completion("no JSON")))
    assert (await caller.post(request())).status == 200
    total = series(gateway, "stable").total
    assert (total.contract_checks, total.contract_failures, total.errors) == (1, 1, 1)


async def test_a_fallback_that_does_not_say_its_usage_does_not_look_free(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second))
    provider.script.append(says(500, b""))
    second.script.append(says(body=completion(usage=None)))
    await caller.post(request())
    counters = series(gateway, "stable")
    assert (counters.usage_missing, counters.total.cost_count) == (1, 0)


async def test_a_bad_canary_is_not_hidden_by_its_fallback(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    """Both arms are on one provider; the canary's model fails there, and its users get the fallback's answers."""
    canary = arm(CANARY, provider.url, model="new", provider_maxRetries=0) | {"fallbacks": [fallback(second)]}
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    provider.script.extend(says(500, b"") for _ in range(100))
    for n in range(40):
        answered = await caller.post(request(user=f"u{n}"))
        assert (answered.status, answered.headers[names.HEADER_PROVIDER]) == (200, "second")
    assert counted(gateway) == {"canary": (40, 40)}
    assert series(gateway, "canary").total.fallbacks == 40
    assert len(provider.requests) == 20, "its circuit is open by now"
    assert series(gateway, "canary").errors["circuit_open"] == 20
    circuits = gateway.reporter.report().rollouts[0].circuits
    assert circuits == {
        "stable/openai/gpt": "Closed",
        "canary/openai/new": "Open",
        "canary/second/big": "Closed",
    }
    found = await samples(gateway)
    assert value(found, names.METRIC_CIRCUIT_OPEN, arm="canary", provider="openai") == 1
    assert value(found, names.METRIC_CIRCUIT_OPENED, arm="canary", provider="openai") == 1
    assert value(found, names.METRIC_CIRCUIT_OPEN, arm="stable", provider="openai") == 0
    # stable, on the same provider, is served as before
    await gateway.registry.apply("support", delivery(2, stable=arm(url=provider.url), canary=canary))
    provider.script.clear()
    answered = await caller.post(request())
    assert (answered.status, answered.headers[names.HEADER_VARIANT]) == (200, "stable")


async def test_without_a_fallback_an_open_circuit_is_a_503_that_says_when(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider)
    provider.script.extend(says(500, b"") for _ in range(20))
    for n in range(20):
        await caller.post(request(user=f"u{n}"))
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (503, "provider_circuit_open")
    assert answered.headers["retry-after"] == "1"
    assert len(provider.requests) == 20
    serving = gateway.registry.find("support")
    assert serving is not None
    target = serving.stable.own
    await gateway.providers.probe([target], now=1e9)
    assert (await caller.post(request())).status == 200, "the endpoint answers again, so one may find out"
    assert (await caller.post(request())).status == 200
    assert target.circuit.opened == 1


async def test_only_the_canarys_provider_is_down_so_stable_answers_not_the_fallback(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    canary = arm(CANARY, "http://127.0.0.1:1/v1", provider_name="other") | {"fallbacks": [fallback(second)]}
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    answered = await caller.post(request())
    assert (answered.status, answered.headers[names.HEADER_VARIANT]) == (200, "stable")
    assert counted(gateway) == {}
    assert second.requests == []


async def test_when_stables_provider_is_down_too_the_canarys_fallback_answers_for_the_canary(
    gateway: Gateway, caller: Caller, second: Provider
) -> None:
    canary = arm(CANARY, "http://127.0.0.1:1/v1", provider_name="other") | {"fallbacks": [fallback(second)]}
    stable = arm(url="http://127.0.0.1:2/v1", provider_maxRetries=0)
    await gateway.registry.apply("support", delivery(weight=100, stable=stable, canary=canary))
    answered = await caller.post(request())
    assert answered.status == 200
    assert (answered.headers[names.HEADER_VARIANT], answered.headers[names.HEADER_PROVIDER]) == ("canary", "second")
    assert counted(gateway) == {"canary": (1, 1)}
    assert not gateway.counters.diverted.total()


async def test_a_fallback_that_answers_garbage_has_answered_nobody(
    gateway: Gateway, caller: Caller, provider: Provider, second: Provider
) -> None:
    await serve(gateway, provider, fallback(second))
    provider.script.append(says(500, b""))
    second.script.append(says(200, b"<html>"))
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (502, "provider_bad_response")
    assert "provider second" in answered.error["message"]
    total = series(gateway, "stable").total
    assert (total.requests, total.errors, total.fallbacks) == (1, 1, 0)
