"""Addresses that gateways do not connect to: found right before each connection, and never a version's fault."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from promptrollout.api.networks import Networks
from promptrollout.gateway.process import Gateway, Settings
from tests.unit.gateway.kit import CANARY, Caller, Provider, arm, counted, delivery, request, says


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway as it is by default."""
    made = Gateway(Settings("default", "ns", "pod-1", tmp_path / "state", tmp_path / "keys"))
    yield made
    await made.serving_app.close()
    await made.providers.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the name server says, which may be another thing each time."""
    found: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def answer(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if (addresses := found.get(host)) is None:
            return real(host, port, *args, **kwargs)
        return [entry for each in addresses for entry in real(each, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return found


def told(gateway: Gateway) -> list[tuple[str, str]]:
    gateway.problems.update(gateway.registry.all(), gateway.registry.not_loaded())
    return [(each.reason, each.message) for each in gateway.reporter.report().problems]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_literal_address_is_not_put_in_service(strict: Gateway, provider: Provider, host: str) -> None:
    url = provider.url.replace("127.0.0.1", host)
    await strict.registry.apply("support", delivery(stable=arm(url=url)))
    (report,) = strict.reporter.report().rollouts
    assert "ModelProvider openai: baseURL is loopback, which is not allowed" in (report.problem or "")
    assert told(strict) == [("ProviderAddressRefused", "openai")]
    assert provider.requests == []


async def test_a_canary_at_one_takes_nobody_down(strict: Gateway, names: dict[str, list[str]]) -> None:
    """Stable is at a name, which is asked when it is called."""
    canary = arm(CANARY, "http://169.254.169.254/v1", provider_name="other")
    stable = arm(url="http://model.test/v1")
    await strict.registry.apply("support", delivery(2, weight=50, stable=stable, canary=canary))
    (report,) = strict.reporter.report().rollouts
    assert (report.sequence, report.canary) == (0, None), "served by stable alone, and not confirmed"
    assert "canary not loaded, stable serves alone: ModelProvider other: baseURL is link-local" in (
        report.problem or ""
    )


async def test_a_name_is_looked_at_when_it_is_called_and_again_for_each_connection(
    strict: Gateway, provider: Provider, names: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller(strict.serving_app)
    names["model.test"] = ["127.0.0.1"]
    url = provider.url.replace("127.0.0.1", "model.test")
    await strict.registry.apply("support", delivery(stable=arm(url=url, provider_maxRetries=2)))
    answer = await caller.post(request())
    assert (answer.status, answer.error["code"]) == (502, "provider_address_refused")
    assert "gateways may not connect to its address" in answer.error["message"]
    assert "127.0.0.1" not in answer.body.decode(), "where it points to is nobody's business outside"
    assert provider.requests == []
    assert told(strict) == [("ProviderAddressRefused", "openai")]
    serving = strict.registry.find("support")
    assert serving is not None
    assert (serving.stable.circuit.failure or "").endswith("127.0.0.1 is not allowed: loopback")


async def test_of_several_addresses_the_allowed_one_is_asked(
    tmp_path: Path, provider: Provider, names: dict[str, list[str]]
) -> None:
    networks = Networks.of(["127.0.0.1/32"])
    gateway = Gateway(Settings("default", "ns", "pod-1", tmp_path / "state", tmp_path / "keys", networks=networks))
    caller = Caller(gateway.serving_app)
    names["model.test"] = ["127.0.0.9", "127.0.0.1"]
    await gateway.registry.apply(
        "support", delivery(stable=arm(url=provider.url.replace("127.0.0.1", "model.test"), provider_maxRetries=0))
    )
    assert (await caller.post(request())).status == 200
    assert told(gateway) == []
    # the connection that is there goes on; a new one asks the name server, which says something else by now
    names["model.test"] = ["127.0.0.9", "::1"]
    provider.script.append(says(headers_close := 200, connection="close"))
    assert (await caller.post(request())).status == headers_close
    (target,) = [target for each in gateway.registry.all() for target in each.stable.targets]
    connector = target.provider._sessions().connector
    assert connector is not None
    connector.clear_dns_cache()  # type: ignore[attr-defined]
    answer = await caller.post(request())
    assert answer.error["code"] == "provider_address_refused"
    assert len(provider.requests) == 2
    await gateway.serving_app.close()
    await gateway.providers.close()


async def test_a_canary_whose_name_points_there_is_answered_by_stable_and_decides_nothing(
    tmp_path: Path, provider: Provider, names: dict[str, list[str]]
) -> None:
    networks = Networks.of(["127.0.0.1/32"])
    gateway = Gateway(Settings("default", "ns", "pod-1", tmp_path / "state", tmp_path / "keys", networks=networks))
    names["other.test"] = ["169.254.169.254"]
    canary = arm(CANARY, "http://other.test/v1", provider_name="other")
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    caller = Caller(gateway.serving_app)
    for _ in range(5):
        assert (await caller.post(request())).status == 200
    assert counted(gateway) == {}, "neither arm has errors, nor requests"
    assert sum(gateway.counters.diverted.values()) == 5
    (report,) = gateway.reporter.report().rollouts
    assert report.canary_provider_unreachable
    assert told(gateway) == [("ProviderAddressRefused", "other")]
    await gateway.serving_app.close()
    await gateway.providers.close()


async def test_a_redirect_is_not_followed(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    async with Provider() as elsewhere:
        provider.script.append(says(307, b"", location=f"{elsewhere.url}/chat/completions"))
        await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
        assert (await caller.post(request())).status == 502
        assert elsewhere.requests == []


async def test_through_a_proxy_literal_addresses_are_refused_and_the_proxy_may_be_anywhere(
    strict: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        writer.write(b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    async with server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await strict.registry.apply("support", delivery(stable=arm(url="http://10.1.2.3/v1", provider_maxRetries=0)))
        assert (await Caller(strict.serving_app).post(request())).status == 503
        for n, host in enumerate(
            ("169.254.169.254", "169.254.169.254.", "①⑥⑨.254.169.254", "169。254。169。254", "%31%36%39.254.169.254")
        ):
            stable = arm(url=f"http://{host}/v1", provider_maxRetries=0)
            await strict.registry.apply("meta", delivery(n + 1, rolloutUID="2", stable=stable))
            assert (await Caller(strict.serving_app).post(request(model="meta"))).status in (502, 503), host
    assert [line.split()[1] for line in asked] == [b"http://10.1.2.3/v1/chat/completions"]
    assert ("ProviderAddressRefused", "openai") in told(strict)
