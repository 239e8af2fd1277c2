"""What a ModelProvider says of keys, headers, certificates, patience and budget, as its endpoint meets it."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from promptrollout.gateway.process import Gateway
from promptrollout.llm.providers import endpoint
from promptrollout.proxy import proxy_of
from promptrollout.sandbox.controlplane.pki import Authority
from tests.unit.gateway.kit import (
    Caller,
    Provider,
    arm,
    chunk,
    completion,
    counted,
    delivery,
    request,
    says,
    series,
    serve,
    streams,
)

KEYS = ("sk-first-1111111111", "sk-second-2222222222", "sk-third-3333333333")


def write_keys(gateway: Gateway, *keys: str) -> None:
    path = gateway.settings.provider_keys_dir / "openai" / "api-key"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a Secret's volume is swapped, not written to
    path.write_text("\n".join(keys))


def authorizations(provider: Provider) -> list[str | None]:
    return [headers.get("authorization") for headers in provider.headers]


# ------------------------------------------------------------ keys


async def test_a_key_that_is_no_text_is_named_in_words(gateway: Gateway) -> None:
    write_keys(gateway, "k")
    (gateway.settings.provider_keys_dir / "openai" / "api-key").write_bytes(b"\xff\xfe")
    await serve(gateway, "http://127.0.0.1:1/v1", provider_needsKey=True)
    problem = gateway.reporter.report().rollouts[0].problem
    assert problem is not None
    assert problem.endswith("api-key: it is not UTF-8 text")


async def test_keys_take_turns(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    write_keys(gateway, *KEYS)
    await serve(gateway, provider.url, provider_needsKey=True)
    for _ in range(6):
        assert (await caller.post(request())).status == 200
    assert sorted(map(str, authorizations(provider))) == sorted([f"Bearer {key}" for key in KEYS] * 2)


@pytest.mark.parametrize("status", [401, 429])
async def test_a_key_that_is_refused_rests_and_another_answers_at_once(
    status: int, gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    write_keys(gateway, *KEYS)
    await serve(gateway, provider.url, provider_needsKey=True, provider_maxRetries=0)
    provider.script.append(says(status, b"", **{"retry-after": "50"}))
    began = time.monotonic()
    for _ in range(7):
        assert (await caller.post(request())).status == 200
    assert time.monotonic() - began < 45, "nobody waits for the 50 s of the key that was refused"
    refused, *others = authorizations(provider)
    assert refused not in others
    assert set(others) == {f"Bearer {key}" for key in KEYS} - {refused}
    assert counted(gateway) == {"stable": (7, 0)}


async def test_where_every_key_is_refused_the_caller_hears_it(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    write_keys(gateway, *KEYS)
    await serve(gateway, provider.url, provider_needsKey=True)
    provider.script.extend(says(401, b"") for _ in range(10))
    assert (await caller.post(request())).status == 502
    assert len(provider.requests) == 3


async def test_keys_rotate_without_a_restart(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    write_keys(gateway, KEYS[0])
    await serve(gateway, provider.url, provider_needsKey=True)
    await caller.post(request())
    write_keys(gateway, KEYS[1], KEYS[2])
    assert gateway.providers.refresh_files() == []
    for _ in range(2):
        await caller.post(request())
    first, *later = authorizations(provider)
    assert (first, set(later)) == (f"Bearer {KEYS[0]}", {f"Bearer {KEYS[1]}", f"Bearer {KEYS[2]}"})


async def test_no_key_shows_anywhere(
    gateway: Gateway,
    caller: Caller,
    provider: Provider,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever goes wrong: in answers, headers, logs, metrics, reports and files."""
    caplog.set_level(logging.DEBUG)
    write_keys(gateway, *KEYS)
    await serve(
        gateway, provider.url, provider_needsKey=True, provider_maxRetries=1, provider_timeouts={"firstByteSeconds": 1}
    )
    tells = {"error": {"message": f"wrong key {' '.join(KEYS)}", "code": KEYS[0], "param": KEYS[1]}}
    provider.script.extend(
        [
            *(says(status, tells) for status in (400, 401, 401, 401, 403, 429, 500, 503) for _ in range(2)),
            says(302, b"", location="http://127.0.0.1:1/"),
            says(200, tells),
            says(200, b"garbage"),
            streams(cut=True),
            streams(chunk("a"), cut=True),
            streams(asyncio.Event()),
        ]
    )
    seen = []
    for n in range(30):
        answered = await caller.post(request(user=f"u{n}", stream=n % 2 == 0))
        seen.append(f"{answered.headers} {answered.body!r}")
    assert provider.script == type(provider.script)()
    write_keys(gateway, f"{KEYS[0]}\x07")
    seen += gateway.providers.refresh_files()
    await serve(gateway, "http://127.0.0.1:1/v1", 2, provider_needsKey=True, provider_name="other")
    for page in ("/metrics", "/rollouts"):
        seen.append((await Caller(gateway.admin_app).get(page)).body.decode())
    seen += [repr(endpoint.__dict__) for endpoint in gateway.providers._known.values()]
    seen += [caplog.text, *capfd.readouterr()]
    seen += [path.read_text() for path in gateway.settings.state_dir.rglob("*") if path.is_file()]
    assert len(seen) > 35
    assert any("[key]" in text for text in seen), "the provider's words came through"
    for text in seen:
        for key in KEYS:
            assert key not in text


# ------------------------------------------------------------ the request's form


async def test_azures_form(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    """A path per deployment, a version in the query, the key alone in a header of its own."""
    seen: list[str] = []

    async def answer(incoming: web.Request) -> web.Response:
        seen.append(incoming.path_qs)
        provider.headers.append({name.lower(): value for name, value in incoming.headers.items()})
        return web.json_response(completion())

    app = web.Application()
    app.router.add_route("*", "/openai/deployments/gpt/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        write_keys(gateway, KEYS[0])
        await serve(
            gateway,
            f"http://127.0.0.1:{runner.addresses[0][1]}/openai/deployments/gpt",
            provider_needsKey=True,
            provider_auth={"header": "api-key", "scheme": ""},
            provider_query=[{"name": "api-version", "value": "2024-10-21"}, {"name": "a", "value": "b c&d"}],
            provider_headers=[{"name": "X-Team", "value": "support"}, {"name": "Host", "value": "evil"}],
        )
        assert (await caller.post(request(), headers={"cookie": "c=1", "x-other": "1"})).status == 200
        serving = gateway.registry.find("support")
        assert serving is not None
        assert await serving.stable.provider.probe(serving.stable.own.config)
    finally:
        await runner.cleanup()
    query = "?api-version=2024-10-21&a=b+c%26d"
    assert seen == [f"/openai/deployments/gpt/chat/completions{query}", f"/openai/deployments/gpt/models{query}"]
    headers = provider.headers[0]
    assert headers["api-key"] == KEYS[0]
    assert headers["x-team"] == "support"
    assert headers["host"].startswith("127.0.0.1")
    assert not {"authorization", "cookie", "x-other"} & headers.keys()


# ------------------------------------------------------------ certificates


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[str, Authority]]:
    """An endpoint with a certificate of a private authority."""
    authority = Authority(tmp_path / "pki")
    certificate, key = authority.issue("server", common_name="model", addresses=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", says())
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}/v1", authority
    await runner.cleanup()


async def test_a_certificate_of_nobody_known_is_refused(
    gateway: Gateway, caller: Caller, secure: tuple[str, Authority]
) -> None:
    await serve(gateway, secure[0])
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (502, "provider_connection")
    assert "has a certificate that is not trusted; see tls of its ModelProvider" in answered.error["message"]
    (why,) = gateway.reporter.report().rollouts[0].circuit_failures.values()
    assert "certificate not trusted: " in why
    assert "self-signed certificate in certificate chain" in why or "unable to get local issuer certificate" in why


async def test_insecure_skip_verify_takes_any(gateway: Gateway, caller: Caller, secure: tuple[str, Authority]) -> None:
    await serve(gateway, secure[0], provider_tls={"insecureSkipVerify": True})
    assert (await caller.post(request())).status == 200
    await serve(gateway, secure[0], 2)
    assert (await caller.post(request())).status == 502, "no connection from before is used"


async def test_a_ca_of_its_own_may_come_late_and_rotate(
    gateway: Gateway, caller: Caller, secure: tuple[str, Authority], tmp_path: Path
) -> None:
    url, authority = secure
    await serve(gateway, url, provider_tls={"hasCa": True})
    (report,) = gateway.reporter.report().rollouts
    assert "ModelProvider openai: its CA is missing" in (report.problem or "")
    path = gateway.settings.provider_keys_dir / "openai" / "ca.crt"
    path.parent.mkdir(parents=True)
    path.write_text("no certificate")
    await gateway.registry.sweep()
    assert "has no PEM certificate" in (gateway.reporter.report().rollouts[0].problem or "")
    path.write_bytes(authority.ca_file.read_bytes())
    await gateway.registry.sweep()
    assert (await caller.post(request())).status == 200
    path.unlink()
    path.write_bytes(Authority(tmp_path / "another").ca_file.read_bytes())
    assert gateway.providers.refresh_files() == []
    assert (await caller.post(request())).status == 502


# ------------------------------------------------------------ patience and budget


async def test_a_stream_that_stops_in_the_middle_is_given_up(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await serve(gateway, provider.url, provider_timeouts={"idleSeconds": 1})
    provider.script.append(streams(chunk("Hel"), asyncio.Event()))
    began = time.monotonic()
    answered = await caller.post(request(stream=True))
    assert 1 <= time.monotonic() - began < 60, "a watchdog: without idleSeconds it takes minutes"
    error = orjson.loads(answered.pieces[-1].removeprefix(b"data: "))["error"]
    assert (error["code"], error["message"]) == (
        "timeout",
        "provider openai took too long for the next piece of its answer",
    )
    assert series(gateway, "stable").errors["timeout"] == 1


async def test_a_cold_start_is_waited_for(
    gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LOADING_PAUSE_SECONDS", 0.02)
    await serve(gateway, provider.url, provider_maxRetries=0, provider_timeouts={"coldStartSeconds": 30})
    provider.script.extend(says(503, {"error": "Model is loading"}) for _ in range(25))
    assert (await caller.post(request())).status == 200
    assert len(provider.requests) == 26
    assert counted(gateway) == {"stable": (1, 0)}
    assert gateway.reporter.report().rollouts[0].circuits == {"stable/openai/gpt": "Closed"}
    # it is warm now: 503 is a failure
    provider.script.append(says(503, b""))
    assert (await caller.post(request())).status == 503


async def test_a_cold_endpoint_may_take_longer_for_its_first_byte(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    wakes = asyncio.Event()
    await serve(gateway, provider.url, provider_timeouts={"firstByteSeconds": 1, "coldStartSeconds": 30})

    async def answer(incoming: web.Request) -> web.StreamResponse:
        await wakes.wait()
        return await says()(incoming)

    provider.script.append(answer)
    asyncio.get_running_loop().call_later(1.5, wakes.set)
    assert (await caller.post(request())).status == 200
    provider.script.append(streams(asyncio.Event()))
    assert (await caller.post(request())).status == 504


async def test_without_patience_a_cold_start_is_a_failure(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url, provider_maxRetries=0)
    provider.script.append(says(503, {"error": "Model is loading"}))
    assert (await caller.post(request())).status == 503


async def test_an_outage_does_not_multiply_the_load(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await serve(gateway, provider.url, provider_maxRetries=5, provider_retryBudgetPercent=20)
    rng = [says(429, b"", **{"retry-after": "0"}) for _ in range(1000)]
    provider.script.extend(rng)
    began = time.monotonic()
    for n in range(100):
        assert (await caller.post(request(user=f"u{n}"))).status == 429
    seconds = time.monotonic() - began
    further = len(provider.requests) - 100
    assert 10 <= further <= 10 + 20 + seconds + 1


# ------------------------------------------------------------------------------------------- proxies


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
async def test_a_proxy_of_the_environment_is_used_and_netrc_is_not(
    variable: str, gateway: Gateway, caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        asked.append((head[0], headers.get("authorization")))
        body = orjson.dumps(completion())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    netrc = tmp_path / "netrc"
    netrc.write_text("machine provider.example login me password secret\n")
    netrc.chmod(0o600)
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,inside.example")
    monkeypatch.setenv("NETRC", str(netrc))
    async with server:
        await serve(gateway, "http://provider.example/v1")
        assert (await caller.post(request())).status == 200
    assert asked == [("POST http://provider.example/v1/chat/completions HTTP/1.1", None)]


async def test_hosts_of_no_proxy_are_asked_directly(
    gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    await serve(gateway, provider.url)
    assert (await caller.post(request())).status == 200


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize(
    ("environment", "base_url", "proxy"),
    [
        ({"http_proxy": "proxy.corp:3128"}, "http://m/v1", "http://proxy.corp:3128"),
        ({"HTTPS_PROXY": "http://u:p@proxy:1"}, "https://m/v1", "http://u:p@proxy:1"),
        ({"HTTPS_PROXY": "http://proxy:1"}, "http://m/v1", None),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "https://m/v1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,.svc"}, "http://10.1.2.3:8000/v1", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.0/8, .svc"}, "http://vllm.ns.svc:8000/v1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "fd00::/8"}, "http://[fd00::1]:8000/v1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,nonsense/x"}, "http://11.1.2.3/v1", "http://p:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "http://m/v1", None),
    ],
)
def test_proxies_are_read_as_other_clients_read_them(
    environment: dict[str, str], base_url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(base_url) == proxy


@pytest.mark.usefixtures("_no_proxies")
async def test_a_proxy_that_finds_no_provider_is_an_outage(
    gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides nothing of the canary behind it."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    canary = arm("b" * 64, "https://provider.example/v1", provider_name="other", provider_maxRetries=0)
    async with server:
        await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
        assert (await caller.post(request())).status == 200
        assert not counted(gateway)
        await gateway.registry.apply("support", delivery(2, stable=canary))
        answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (502, "provider_connection")
    assert answered.error["message"].endswith("cannot be reached: the proxy of the environment answered 503")
