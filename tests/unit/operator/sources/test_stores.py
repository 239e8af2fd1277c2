"""Prometheus-compatible stores and their habits, as recorded answers of real HTTP servers: a store that may not have
given all it has decides nothing."""

import asyncio
import json
import re
import shutil
import socketserver
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp import BasicAuth, web

from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.config import MetricsSource
from promptrollout.operator.sources.access import SourceAccess
from promptrollout.operator.sources.lanes import SourceError
from promptrollout.operator.sources.prometheus import Source
from promptrollout.sandbox.controlplane.pki import Authority

SERIES = {
    "metric": {"rollout_uid": "uid", "variant": "canary", "version": "c", "process": "0123abcd", "namespace": "ns"},
    "values": [[40, "7"], [50, "9"]],
}
Serve = Callable[[], Awaitable[str]]


class Store:
    """Answers every query alike and keeps what was asked."""

    def __init__(self) -> None:
        self.body: dict[str, Any] = {"status": "success", "data": {"resultType": "matrix", "result": [SERIES]}}
        self.requests: list[web.Request] = []
        self.allowed: Callable[[web.Request], bool] = lambda request: True
        self.seconds = 0.0

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        await asyncio.sleep(self.seconds)
        if not self.allowed(request):
            return web.json_response({"status": "error", "error": "no org id"}, status=401)
        return web.json_response(self.body)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def serve(store: Store) -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start() -> str:
        app = web.Application()
        for endpoint in ("query", "query_range"):
            app.router.add_get(f"/api/v1/{endpoint}", store.answer)
        runners.append(web.AppRunner(app, keepalive_timeout=0))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runners[-1].addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def window(source: Source) -> dict[str, Any]:
    try:
        return await source.window("m", {"uid": "ns"}, 60, 30)
    finally:
        source.close()


# ---------------------------------------------------------------- answers that may lack data

THANOS = "No StoreAPIs matched for this query"
THANOS_DOWN = "receive series from Addr: 10.0.0.7:10901: rpc error: code = Unavailable desc = connection refused"


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"warnings": [THANOS_DOWN]}, f"its answer may lack data: {THANOS_DOWN}"),
        ({"warnings": [THANOS]}, f"its answer may lack data: {THANOS}"),
        ({"warnings": ["PromQL warning: x", THANOS]}, f"its answer may lack data: {THANOS}"),
        ({"isPartial": True}, "its answer may lack data: isPartial"),  # VictoriaMetrics' cluster version
    ],
)
async def test_a_partial_answer_is_no_answer(store: Store, serve: Serve, beside: dict[str, Any], says: str) -> None:
    store.body |= beside
    with pytest.raises(SourceError, match=re.escape(says)):
        await window(Source("thanos", await serve(), Metrics()))


@pytest.mark.parametrize(
    "beside",
    [
        {"warnings": [], "infos": []},
        {"warnings": ['PromQL warning: bucket label "le" is missing or has a malformed value of "" (1:2)']},
        {"infos": ['PromQL info: metric might not be a counter: "m"']},
        {"isPartial": False, "stats": {"seriesFetched": "1", "executionTimeMsec": 3}},
    ],
)
async def test_what_is_said_about_the_query_takes_nothing_away(
    store: Store, serve: Serve, beside: dict[str, Any]
) -> None:
    store.body |= beside
    found = await window(Source("prometheus", await serve(), Metrics()))
    assert found["uid"][0].samples == ((40, 7), (50, 9))


async def test_a_store_can_be_told_to_give_no_partial_answers(store: Store, serve: Serve) -> None:
    parameters = {"partial_response": "false", "dedup": "true"}
    await window(Source("thanos", await serve(), Metrics(), timeout=7, parameters=parameters))
    (request,) = store.requests
    assert {**request.query, "query": "…"} == {
        "query": "…",
        "time": "60",
        "timeout": "7",
        "nocache": "1",
        **parameters,
    }


async def test_a_store_that_takes_too_long_is_away(store: Store, serve: Serve) -> None:
    store.seconds = 0.5
    with pytest.raises(SourceError, match=r"no answer within 0\.1 s"):
        await window(Source("slow", await serve(), Metrics(), timeout=0.1))


# ---------------------------------------------------------------- VictoriaMetrics


@pytest.mark.parametrize("result", [[1_800_000_000, "1800000000"], [{"metric": {}, "value": [0, "1800000000"]}]])
async def test_its_clock_is_a_scalar_or_a_vector(store: Store, serve: Serve, result: Any) -> None:
    store.body["data"] = {"resultType": "scalar", "result": result}
    source = Source("victoria", await serve(), Metrics(), wall=lambda: 1_800_000_100.0)
    await source.read_clock()
    assert source.now() == 1_800_000_000
    source.close()
    assert store.requests[0].query["nocache"] == "1"  # or it tells of a time 30 s ago


async def test_staleness_markers_and_samples_at_the_left_end_are_no_samples(store: Store, serve: Serve) -> None:
    """A raw range of VictoriaMetrics has markers of series that ended; Prometheus 2 includes the left end."""
    store.body["data"]["result"] = [SERIES | {"values": [[30, "5"], [40, "7"], [50, "NaN"]]}]
    found = await window(Source("victoria", await serve(), Metrics()))
    assert found["uid"][0].samples == ((40, 7),)


async def test_edges_are_asked_for_in_every_spelling(store: Store, serve: Serve) -> None:
    """Prometheus 3 stores 5.0 where VictoriaMetrics and Prometheus 2 keep what was exposed."""
    source = Source("victoria", await serve(), Metrics())
    await source.window("m_bucket", {"uid": "ns"}, 60, 30, {"le": {"5"}, "dimension": {"a.b", "c"}})
    source.close()
    query = store.requests[0].query["query"]
    assert 'le=~"5|5[.]0"' in query
    assert 'dimension=~"a[.]b|c"' in query


# ---------------------------------------------------------------- queries of one's own


async def test_a_selector_counts_only_what_was_scraped_in_the_rollouts_namespace(store: Store, serve: Serve) -> None:
    store.body["data"]["result"] = [
        {"metric": {"namespace": space, "pod": pod, "why": "x"}, "values": [[40, "7"]]}
        for space, pod in (("ns", "a"), ("other", "b"))
    ]
    source = Source("default", await serve(), Metrics())
    (series,) = await source.selected('failed_total{v="1"}', "ns", 60, 30)
    source.close()
    assert (series.process, series.part) == ("namespace=ns,pod=a", "why=x")
    assert store.requests[0].query["query"] == 'failed_total{v="1"}[30s]'


async def test_a_value_is_asked_for_at_the_ends_of_intervals(store: Store, serve: Serve) -> None:
    store.body["data"]["result"] = [{"metric": {}, "values": [[30, "7"], [60, "NaN"], [90, "2.5"]]}]
    source = Source("default", await serve(), Metrics())
    (series,) = await source.values("sum(x)", "ns", 30, 90, 30)
    assert series.samples == ((30, 7), (90, 2.5))
    (request,) = store.requests
    assert request.path == "/api/v1/query_range"
    assert [request.query[name] for name in ("query", "start", "end", "step")] == ["sum(x)", "30", "90", "30"]
    store.body["data"]["result"] *= 2
    with pytest.raises(SourceError, match=r"2 values for sum\(x\): aggregate them to one"):
        await source.values("sum(x)", "ns", 30, 90, 30)
    source.close()


# ---------------------------------------------------------------- connections


class OneAnswer(socketserver.StreamRequestHandler):
    """One answer on each connection, which claims to stay open; the next request on it meets its end."""

    def handle(self) -> None:
        body = json.dumps({"status": "success", "data": {"result": [SERIES]}}).encode()
        for answered in (False, True):
            while self.rfile.readline() not in (b"", b"\r\n"):
                pass
            if not answered:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def test_a_connection_that_the_source_closed_is_replaced() -> None:
    """A proxy closes what lay idle for a minute, and may do so at the instant of the next query: no outage."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OneAnswer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        source = Source("a", f"http://127.0.0.1:{server.server_address[1]}", Metrics())
        for _ in range(3):
            assert await source.window("m", {"uid": "ns"}, 60, 30)
        source.close()
        server.shutdown()
        thread.join()


# ---------------------------------------------------------------- access


def access(source: MetricsSource) -> SourceAccess:
    basic = source.basic_auth
    return SourceAccess(
        source.headers, source.bearer_token_file, (basic.username, basic.password_file) if basic else None
    )


async def test_mimir_wants_a_tenant(store: Store, serve: Serve) -> None:
    store.allowed = lambda request: request.headers.get("X-Scope-OrgID") == "team"
    url = await serve()
    with pytest.raises(SourceError, match=r"HTTP 401: .*no org id"):
        await window(Source("mimir", url, Metrics()))
    assert await window(Source("mimir", url, Metrics(), access=SourceAccess({"X-Scope-OrgID": "team"}, None)))


async def test_basic_auth_reads_the_present_password(store: Store, serve: Serve, tmp_path: Path) -> None:
    password = tmp_path / "password"
    config = MetricsSource.model_validate(
        {"name": "a", "url": "http://a", "basicAuth": {"username": "rollouts", "passwordFile": str(password)}}
    )
    source = Source("a", await serve(), Metrics(), access=access(config))
    for secret in ("first", "zweites ü: "):
        password.write_text(secret + "\n", "utf-8")
        await source.window("m", {"uid": "ns"}, 60, 30)
        found = BasicAuth.decode(store.requests[-1].headers["Authorization"], encoding="utf-8")
        assert (found.login, found.password) == ("rollouts", secret)
    password.unlink()
    with pytest.raises(SourceError, match=r"a file for its access cannot be read: .*password"):
        await source.window("m", {"uid": "ns"}, 60, 30)
    source.close()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"bearerTokenFile": "/t", "basicAuth": {"username": "u", "passwordFile": "/p"}},
            "bearerTokenFile or basicAuth",
        ),
        ({"headers": {"authorization": "x"}, "bearerTokenFile": "/t"}, "the header Authorization or bearerTokenFile"),
        ({"clientKeyFile": "/k"}, "go together"),
        ({"queryParameters": {"query": "up"}}, "query is set by the operator"),
        ({"queryTimeoutSeconds": 0}, "greater than 0"),
    ],
)
def test_access_that_makes_no_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MetricsSource.model_validate({"name": "a", "url": "http://a", **fields})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "success", "data": {"result": [SERIES]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Tls:
    """A server that wants to see a certificate of `clients`, and has one of `servers`."""

    def __init__(self, directory: Path) -> None:
        self.servers, self.clients = Authority(directory / "servers"), Authority(directory / "clients")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.clients.ca_file))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(*self.servers.issue("server", common_name="store", addresses=("127.0.0.1",)))
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"

    def ours(self, authority: Authority) -> tuple[str, str]:
        certificate, key = authority.issue("client", common_name="operator")
        return str(certificate), str(key)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Tls]:
    found = Tls(tmp_path)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


async def test_mutual_tls_with_certificates_that_are_replaced(tls: Tls) -> None:
    source = Source("a", tls.url, Metrics(), ca_file=str(tls.servers.ca_file), client_certificate=tls.ours(tls.clients))
    for _ in range(2):
        assert await source.window("m", {"uid": "ns"}, 60, 30)
    # the same files: of an authority that the server does not know, and then of its own again
    tls.ours(tls.servers)
    for name in ("client.crt", "client.key"):
        shutil.copy(tls.servers.directory / name, tls.clients.directory / name)
    with pytest.raises(SourceError, match=r"TLS fails|cannot be reached"):
        await source.window("m", {"uid": "ns"}, 60, 30)
    tls.ours(tls.clients)
    assert await source.window("m", {"uid": "ns"}, 60, 30)
    source.close()


@pytest.mark.parametrize("lacks", ["certificate", "authority", "file"])
async def test_tls_that_fails_is_said(tls: Tls, lacks: str) -> None:
    certificate: tuple[str, str] | None = None if lacks == "certificate" else tls.ours(tls.clients)
    if lacks == "file":
        certificate = ("/nonexistent/tls.crt", "/nonexistent/tls.key")
    ca_file = None if lacks == "authority" else str(tls.servers.ca_file)
    source = Source("a", tls.url, Metrics(), ca_file=ca_file, client_certificate=certificate)
    says = {
        "certificate": r"TLS fails|cannot be reached",
        "authority": "TLS fails: .*CERTIFICATE_VERIFY_FAILED",
        "file": r"a file for its access cannot be read: .*tls\.crt",
    }
    with pytest.raises(SourceError, match=says[lacks]):
        await window(source)


async def test_the_sources_own_ca_wins_over_the_environments(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.clients.ca_file))
    ca_file = str(tls.servers.ca_file)
    assert await window(Source("a", tls.url, Metrics(), ca_file=ca_file, client_certificate=tls.ours(tls.clients)))
