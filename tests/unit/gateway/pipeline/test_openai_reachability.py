"""When a provider counts as unreachable, so that no version on it is served or judged. Real HTTP on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from promptrollout.api.delivery import ProviderConfig
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.rollouts.configuration import Target
from promptrollout.llm.errors import ProviderError
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.openai import OpenAIProvider
from tests.unit.gateway.kit import (
    CANARY,
    DONE,
    LOOPBACK,
    Caller,
    Provider,
    Script,
    arm,
    chunk,
    counted,
    delivery,
    request,
    says,
    series,
    streams,
)


@pytest.fixture
async def other() -> Any:
    """The canary's own provider."""
    async with Provider() as running:
        yield running


async def canary_on(
    other: Provider, gateway: Gateway, provider: Provider, max_retries: int = 2, first_byte_seconds: float = 10.0
) -> Target:
    canary = arm(CANARY, other.url, provider_name="other", provider_maxRetries=max_retries)
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    serving = gateway.registry.find("support")
    assert serving is not None
    assert serving.canary is not None
    config = serving.canary.own.config
    # a copy: the default is one object for all
    object.__setattr__(
        config, "timeouts", config.timeouts.model_copy(update={"first_byte_seconds": first_byte_seconds})
    )
    return serving.canary.own


def silent() -> Script:
    return streams(asyncio.Event())


def cut() -> Script:
    return streams(cut=True)


@pytest.mark.parametrize(
    "down",
    [lambda: says(502, b""), lambda: says(503, b""), lambda: says(504, b"<html>"), cut],
    ids=["502", "503", "504", "cut"],
)
async def test_a_canarys_provider_that_is_down_behind_a_proxy_decides_nothing(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider, down: Callable[[], Script]
) -> None:
    other.script.extend(down() for _ in range(100))
    await canary_on(other, gateway, provider)
    for n in range(9):
        answered = await caller.post(request(user=f"u{n}"))
        assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
    assert counted(gateway) == {}
    assert gateway.counters.diverted == {("uid-1", "support"): 9}
    assert gateway.reporter.report().rollouts[0].canary_provider_unreachable
    assert len(other.requests) == 3, "not asked once it is known"


@pytest.mark.parametrize(("down", "patience"), [(lambda: says(503, b""), 10.0), (silent, 0.05)], ids=["503", "silence"])
async def test_without_retries_the_first_two_failures_may_still_be_the_requests_own(
    gateway: Gateway,
    caller: Caller,
    provider: Provider,
    other: Provider,
    down: Callable[[], Script],
    patience: float,
) -> None:
    other.script.extend(down() for _ in range(100))
    await canary_on(other, gateway, provider, max_retries=0, first_byte_seconds=patience)
    statuses = [(await caller.post(request(user=f"u{n}"))).status for n in range(6)]
    assert statuses[2:] == [200] * 4
    assert counted(gateway) == {"canary": (2, 2)}
    assert gateway.counters.diverted == {("uid-1", "support"): 4}


async def test_a_provider_that_is_there_and_too_slow_is_an_error_of_the_arm(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    """A canary that is diverted is never judged: one whose model cannot keep its time would never be rolled back."""
    other.script.extend(silent() for _ in range(100))
    target = await canary_on(other, gateway, provider, max_retries=0, first_byte_seconds=0.05)
    for n in range(3):
        await caller.post(request(user=f"a{n}"))
    assert gateway.reporter.report().rollouts[0].canary_provider_unreachable
    await gateway.providers.probe([target], now=1e6)
    assert not gateway.reporter.report().rollouts[0].canary_provider_unreachable
    for n in range(4):
        answered = await caller.post(request(user=f"b{n}"))
        assert (answered.status, answered.headers["x-promptrollout-variant"]) == (504, "canary")
        await gateway.providers.probe([target], now=1e6 + 10 * n)
    assert counted(gateway) == {"canary": (2 + 4, 2 + 4)}
    # and now nobody is there at all
    target.provider.base_url = "http://127.0.0.1:1/v1"
    await gateway.providers.probe([target], now=2e6)
    assert (await caller.post(request(user="c"))).headers["x-promptrollout-variant"] == "stable"
    assert counted(gateway) == {"canary": (6, 6)}


async def test_while_stable_answers_in_a_canarys_place_its_connections_are_kept(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    """Nobody's connections are closed as unused while one is read from."""
    target = await canary_on(other, gateway, provider, max_retries=0)
    target.provider.base_url = "http://127.0.0.1:1/v1"
    go_on = asyncio.Event()
    provider.script.append(streams(chunk("a"), go_on, chunk("b", "stop"), DONE))
    under_way = asyncio.create_task(caller.post(request(stream=True)))
    while not provider.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await gateway.providers.close_unused(set(), now=1e6)
    await gateway.providers.close_unused(set(), now=2e6)
    go_on.set()
    answered = await under_way
    assert answered.headers["x-promptrollout-variant"] == "stable"
    assert answered.body.endswith(DONE)


async def test_silence_and_no_answer_to_a_probe_is_an_outage(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    other.script.extend([says(503, b""), silent(), silent()])
    target = await canary_on(other, gateway, provider, max_retries=0, first_byte_seconds=0.05)
    for n in range(3):
        await caller.post(request(user=f"a{n}"))
    await gateway.providers.probe([target], now=1e6)
    assert target.circuit.unreachable, "not all of the three were silent: perhaps nobody but a proxy is there"
    other.script.extend(silent() for _ in range(3))
    assert (await caller.post(request(user="b"))).headers["x-promptrollout-variant"] == "stable"


async def test_who_had_only_what_others_left_of_the_time_is_not_down(provider: Provider) -> None:
    provider.script.extend(silent() for _ in range(5))
    endpoint, circuit = OpenAIProvider("openai", provider.url, networks=LOOPBACK), Circuit()
    timeouts = {"firstByteSeconds": 10, "totalSeconds": 20}
    config = ProviderConfig.model_validate(
        {"name": "openai", "baseURL": provider.url, "maxRetries": 0, "timeouts": timeouts}
    )
    try:
        for _ in range(4):
            since = time.perf_counter() - 19.4
            with pytest.raises(ProviderError) as caught:
                await endpoint.call(b"{}", config, {}, circuit, path="/chat/completions", since=since)
            assert caught.value.error_type == "timeout"
        assert len(provider.requests) == 4
        assert not circuit.unreachable
    finally:
        await endpoint.close()


async def test_failures_of_different_kinds_add_up(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    other.script.extend([says(503, b""), cut(), says(502, b"")])
    await canary_on(other, gateway, provider)
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "stable"
    assert gateway.reporter.report().rollouts[0].canary_provider_unreachable


@pytest.mark.parametrize("between", [says(), says(500, b""), says(429, b"", **{"retry-after": "3600"}), says(400, b"")])
async def test_flakiness_with_answers_in_between_is_an_error_of_the_arm(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider, between: Script
) -> None:
    await canary_on(other, gateway, provider, max_retries=0)
    for _ in range(3):
        other.script.extend([says(503, b""), says(502, b""), between])
    for n in range(9):
        assert (await caller.post(request(user=f"u{n}"))).headers["x-promptrollout-variant"] == "canary"
    errors = series(gateway, "canary").errors
    assert errors["provider_5xx"] >= 6
    assert not gateway.counters.diverted.total()


async def test_when_stables_provider_is_down_too_it_is_an_error_of_the_assigned_arm(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    other.script.extend(says(503, b"") for _ in range(100))
    provider.script.extend(says(503, b"") for _ in range(100))
    await canary_on(other, gateway, provider)
    assert (await caller.post(request())).status == 503
    assert counted(gateway) == {"canary": (1, 1)}
    assert not gateway.counters.diverted.total()


# ------------------------------------------------------------------------------------------- the way back


async def unreachable(endpoint: OpenAIProvider, config: ProviderConfig, circuit: Circuit) -> None:
    for _ in range(3):
        with pytest.raises(ProviderError):
            await endpoint.call(b"{}", config, {}, circuit, path="/chat/completions")
    assert circuit.unreachable


def config_of(url: str) -> ProviderConfig:
    return ProviderConfig.model_validate({"name": "other", "baseURL": url, "maxRetries": 0})


@pytest.mark.parametrize(
    ("status", "back"),
    [(200, True), (401, True), (404, True), (302, True), (500, True), (502, False), (503, False), (504, False)],
)
async def test_a_probe_needs_an_answer_of_the_provider_itself(status: int, back: bool) -> None:
    seen: list[str | None] = []

    async def models(incoming: web.Request) -> web.Response:
        seen.append(incoming.headers.get("authorization"))
        # nobody is there: following it would be a failure
        return web.Response(status=status, headers={"location": "http://127.0.0.1:1/"})

    async def completions(_: web.Request) -> web.Response:
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = config_of(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    endpoint, circuit = OpenAIProvider(config.name, config.base_url, networks=LOOPBACK), Circuit()
    endpoint.keys.replace(["k"])
    try:
        await unreachable(endpoint, config, circuit)
        circuit.record_probe(await endpoint.probe(config))
        assert seen == ["Bearer k"]
        assert circuit.unreachable, "a list of models says little of completions"
        assert circuit.trial_due is back
        with pytest.raises(ProviderError) as caught:
            await endpoint.call(b"{}", config, {}, circuit, path="/chat/completions")
        assert not circuit.trial_due, "one is enough to find out"
        assert caught.value.unreachable
        assert circuit.unreachable
    finally:
        await endpoint.close()
        await runner.cleanup()


async def test_a_connection_that_is_taken_and_never_answered_does_not_clear() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    config = config_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    endpoint, circuit = OpenAIProvider(config.name, config.base_url, networks=LOOPBACK), Circuit()
    try:
        await unreachable(endpoint, config, circuit)
        circuit.record_probe(await endpoint.probe(config))
        assert circuit.unreachable
        assert not circuit.trial_due
    finally:
        await endpoint.close()
        server.close()
        await server.wait_closed()


async def test_while_models_are_listed_and_completions_are_down_it_stays_unreachable(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    """Or the operator, who asks for this every few seconds, would count its fifteen minutes anew each time."""
    other.script.extend(says(503, b"") for _ in range(3 + 4))
    target = await canary_on(other, gateway, provider)
    await caller.post(request())
    reported = []
    for n in range(4):
        target.circuit.record_probe(await target.provider.probe(target.config))
        reported.append(gateway.reporter.report().rollouts[0].canary_provider_unreachable)
        for user in "abc":
            answered = await caller.post(request(user=f"{user}{n}"))
            assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
        reported.append(gateway.reporter.report().rollouts[0].canary_provider_unreachable)
    assert reported == [True] * 8
    assert counted(gateway) == {}
    assert len(other.requests) == 3 + 4, "one try after each probe"
    # and now they are back
    target.circuit.record_probe(await target.provider.probe(target.config))
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"
    assert not gateway.reporter.report().rollouts[0].canary_provider_unreachable


async def test_where_no_completion_is_tried_the_list_of_models_is_believed_after_a_while(provider: Provider) -> None:
    """A canary at weight 0 has no users who could find out, and its rollout waits for the provider."""
    now = 0.0
    config = config_of(provider.url)
    endpoint, circuit = OpenAIProvider(config.name, config.base_url, networks=LOOPBACK), Circuit(clock=lambda: now)

    async def seconds_until_believed() -> float:
        nonlocal now
        began = now
        while circuit.unreachable and now - began < 600:
            circuit.record_probe(await endpoint.probe(config))
            now += 2.5
        return now - began - 2.5

    try:
        provider.script.extend([says(503, b"")] * 3)
        await unreachable(endpoint, config, circuit)
        assert await seconds_until_believed() == 10
        # believed wrongly: the next time it takes longer, so that rare requests do not make it come and go for ever
        for expected in (20, 40):
            provider.script.append(says(503, b""))
            with pytest.raises(ProviderError):
                await endpoint.call(b"{}", config, {}, circuit, path="/chat/completions")
            assert circuit.unreachable
            assert await seconds_until_believed() == expected
        await (await endpoint.call(b"{}", config, {}, circuit, path="/chat/completions")).close()
        provider.script.extend([says(503, b"")] * 3)
        await unreachable(endpoint, config, circuit)
        assert await seconds_until_believed() == 10
    finally:
        await endpoint.close()


async def test_while_one_request_waits_to_find_out_no_other_does(provider: Provider) -> None:
    config = config_of(provider.url)
    endpoint, circuit = OpenAIProvider(config.name, config.base_url, networks=LOOPBACK), Circuit()
    arrived = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        arrived.set()
        await asyncio.Event().wait()
        return web.Response()

    provider.script.extend([says(503, b"")] * 3 + [hang])
    try:
        await unreachable(endpoint, config, circuit)
        circuit.record_probe(await endpoint.probe(config))
        assert circuit.trial_due
        waiting = asyncio.create_task(endpoint.call(b"{}", config, {}, circuit, path="/chat/completions"))
        await arrived.wait()
        circuit.record_probe(await endpoint.probe(config))
        assert not circuit.trial_due
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        circuit.record_probe(await endpoint.probe(config))
        assert circuit.trial_due
    finally:
        await endpoint.close()


async def test_one_success_clears(provider: Provider) -> None:
    config = config_of(provider.url)
    endpoint, circuit = OpenAIProvider(config.name, config.base_url, networks=LOOPBACK), Circuit()
    provider.script.extend([says(503, b"")] * 3)
    try:
        await unreachable(endpoint, config, circuit)
        await (await endpoint.call(b"{}", config, {}, circuit, path="/chat/completions")).close()
        assert not circuit.unreachable
    finally:
        await endpoint.close()
