"""Applications that call the model themselves, over real HTTP: what they render, report, and never report."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest
from hypothesis import strategies as st

from promptrollout.api import names
from promptrollout.gateway.applications import usage
from promptrollout.gateway.applications.usage import usage_of
from promptrollout.gateway.assignment.render_id import RenderId
from promptrollout.gateway.assignment.response_id import ResponseId, ResponseIds
from promptrollout.gateway.metrics import unreported_renders
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.series import Series
from promptrollout.gateway.metrics.unreported_renders import UnreportedRenders
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.app import Limits, ServingApp
from promptrollout.llm.answers.usage import Usage
from tests.unit.gateway.kit import (
    CANARY,
    LOOPBACK,
    SCHEMA,
    STABLE,
    Caller,
    arm,
    counted,
    delivery,
    samples,
    series,
    value,
)
from tests.unit.gateway.pipeline.test_end_to_end import serving

ACME = {"prompt_variables": {"company": "ACME"}}
KEY = "ab" * 32
REPORTED: dict[str, Any] = {
    "reporting": {"cacheSeconds": 30, "settleSeconds": 120},
    "responseKey": KEY,
}
MESSAGES = [
    {"role": "system", "content": "You serve {{ company }}."},
    {"placeholder": "history"},
    {"role": "user", "content": "In one line."},
]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Application:
    """Calls the gateway as a real client would."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.url = url
        self._client = client

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        async with self._client.post(f"{self.url}{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def render(self, user: str = "u1", **body: Any) -> dict[str, Any]:
        status, found = await self.post("/v1/prompts/support/render", {"user": user, **body})
        assert status == 200, found
        assert isinstance(found, dict)
        return found

    async def report(self, token: str, **report: Any) -> Any:
        status, found = await self.post("/v1/usage", {"token": token, **report})
        assert status == 200, found
        assert found.keys() - {"reason"} == {"object", "counted"}
        return found["counted"] or found["reason"]


@pytest.fixture
async def app(gateway: Gateway) -> AsyncIterator[Application]:
    async with serving(gateway.serving_app) as url, aiohttp.ClientSession() as client:
        yield Application(url, client)


@pytest.fixture
def clock(gateway: Gateway) -> Clock:
    gateway.registry.renders.clock = found = Clock()
    return found


async def deliver(gateway: Gateway, sequence: int = 1, **changes: Any) -> None:
    await gateway.registry.apply("support", delivery(sequence, **changes))


async def test_the_whole_prompt_of_the_users_arm(gateway: Gateway, app: Application) -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    parameters = {"temperature": "0.2", "maxTokens": 400, "extra": {"reasoning_effort": "low"}}
    canary = arm(CANARY, messages=MESSAGES, tools=tools, parameters=parameters, outputSchema=SCHEMA)
    await deliver(gateway, weight=50, canary=canary)
    history = [{"role": "user", "content": "{{ company }}?"}, {"role": "system", "content": "Be brief."}]
    found = await app.render("0", messages=history, **ACME)
    assert found == {
        "object": "prompt",
        "rollout": "support",
        "version": CANARY[:10],
        "digest": f"sha256:{CANARY}",
        "variant": "canary",
        "provider": "openai",
        "model": "gpt",
        "messages": [
            {"role": "system", "content": "You serve ACME."},
            *history,
            {"role": "user", "content": "In one line."},
        ],
        "tools": tools,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": False, "schema": SCHEMA},
        },
        "parameters": {"reasoning_effort": "low", "temperature": 0.2, "max_tokens": 400},
        "usage_token": None,
        "cache_seconds": None,
    }
    stable = await app.render("user-1")
    assert (stable["variant"], stable["digest"], stable["parameters"]) == ("stable", f"sha256:{STABLE}", {})
    assert stable["messages"] == [{"role": "system", "content": "You are a."}]
    assert counted(gateway) == {}, "the gateway sees nothing of what becomes of it"


@pytest.mark.parametrize(
    ("choice", "roles"),
    [(None, ["system", "system", "user"]), ("Append", ["system", "system", "user"]), ("Replace", ["system", "user"])],
)
async def test_a_callers_own_system_message(
    gateway: Gateway, app: Application, choice: str | None, roles: list[str]
) -> None:
    await deliver(gateway, stable=arm(callerSystemMessage=choice))
    history = [{"role": "system", "content": "mine"}, {"role": "user", "content": "Hello"}]
    assert [message["role"] for message in (await app.render(messages=history))["messages"]] == roles


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/prompts/nobody/render", {}, 404, "rollout_not_found", None),
        ("/v1/prompts/support/render", [], 400, "invalid_json", None),
        (
            "/v1/prompts/support/render",
            {"messages": "x", **ACME},
            400,
            "invalid_type",
            "messages",
        ),
        ("/v1/prompts/support/render", {}, 400, "prompt_variable_missing", "prompt_variables.company"),
        (
            "/v1/prompts/support/render",
            {"messages": [{"role": "system", "content": "mine"}], **ACME},
            400,
            "system_message_refused",
            "messages",
        ),
        ("/v1/usage", {}, 400, "invalid_type", "token"),
        ("/v1/usage", {"token": "made-up"}, 400, "invalid_token", "token"),
        ("/v1/usage", {"token": "x", "outcome": "great"}, 400, "invalid_type", "outcome"),
        ("/v1/usage", {"token": "x", "latency_seconds": -1}, 400, "invalid_type", "latency_seconds"),
        ("/v1/usage", {"token": "x", "latency_seconds": "1"}, 400, "invalid_type", "latency_seconds"),
        ("/v1/usage", {"token": "x", "usage": 7}, 400, "invalid_type", "usage"),
        ("/v1/usage", [], 400, "invalid_json", None),
    ],
)
async def test_what_is_wrong_is_said_with_its_field(
    gateway: Gateway, app: Application, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    stable = arm(messages=MESSAGES, callerSystemMessage="Refuse")
    await deliver(gateway, stable=stable, **REPORTED)
    found_status, found = await app.post(path, body)
    assert (found_status, found["error"]["code"], found["error"]["param"]) == (status, code, param)
    assert counted(gateway) == {}


async def test_reports_count_for_the_arm_and_price_that_was_rendered(gateway: Gateway, app: Application) -> None:
    await deliver(gateway, weight=50, canary=arm(CANARY), **REPORTED)
    canary, stable = await app.render("0"), await app.render("user-1")
    assert (canary["cache_seconds"], canary["variant"], stable["variant"]) == (30, "canary", "stable")
    assert counted(gateway) == {}
    # the canary is promoted meanwhile: what was rendered stays its arm's
    await deliver(gateway, 2, stable=arm(CANARY), **REPORTED)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 60}}
    assert await app.report(canary["usage_token"], usage=usage, latency_seconds=1.5, first_token_seconds=0.5)
    assert await app.report(stable["usage_token"], outcome="error", latency_seconds=3)
    assert counted(gateway) == {"canary": (1, 0), "stable": (1, 1)}
    seen = series(gateway, "canary")
    assert seen.total.cost_sum_usd == pytest.approx((100 * 1 + 10 * 4) / 1e6)
    assert (seen.duration.seconds_sum, seen.first_token[1].seconds_sum) == (1.5, 0.5)
    failed = next(one for one in gateway.counters.live() if one.labels[2:4] == (STABLE[:10], "stable"))
    assert (failed.errors["reported"], failed.usage_missing, failed.total.cost_count) == (1, 1, 0)


@pytest.mark.parametrize(
    ("outcome", "field"), [("refusal", "refusals"), ("truncated", "truncated"), ("empty", "empty_answers")]
)
async def test_what_kind_of_answer_it_was(gateway: Gateway, app: Application, outcome: str, field: str) -> None:
    await deliver(gateway, **REPORTED)
    for name in (outcome, "success"):
        assert await app.report((await app.render())["usage_token"], outcome=name, contract_kept=name == "success")
    total = series(gateway, "stable").total
    assert (getattr(total, field), total.requests, total.errors) == (1, 2, 0)
    assert (total.contract_checks, total.contract_failures) == (2, 1)


async def test_an_abandoned_answer_is_no_error(gateway: Gateway, app: Application) -> None:
    await deliver(gateway, **REPORTED)
    assert await app.report((await app.render())["usage_token"], outcome="abandoned", latency_seconds=9)
    assert (counted(gateway), series(gateway, "stable").total.abandoned) == ({"stable": (1, 0)}, 1)


async def test_silence_is_a_failure_once_it_is_old_enough(gateway: Gateway, app: Application, clock: Clock) -> None:
    await deliver(gateway, weight=50, canary=arm(CANARY), **REPORTED)
    silent = await app.render("0")
    clock.now += 60
    later = await app.render("user-1")
    clock.now += 59
    await gateway.registry.sweep()
    assert counted(gateway) == {}
    found = await samples(gateway)
    assert value(found, "promptrollout_gateway_pending_renders") == 2
    clock.now += 1
    await gateway.registry.sweep()
    assert counted(gateway) == {"canary": (1, 1)}
    found = await samples(gateway)
    assert value(found, "promptrollout_errors_total", variant="canary", error_type="unreported") == 1
    assert value(found, "promptrollout_requests_total", variant="canary") == 1
    seen = series(gateway, "canary")
    assert (seen.duration.seconds_sum, seen.usage_missing) == (120.0, 1)
    assert await app.report(silent["usage_token"]) == "too_late", "counted already"
    assert await app.report(later["usage_token"]) is True
    assert await app.report(later["usage_token"]) == "already_reported"
    assert counted(gateway) == {"canary": (1, 1), "stable": (1, 0)}
    assert len(gateway.registry.renders) == 0
    assert all(one.in_flight == 0 for one in gateway.counters.live())


async def test_the_series_of_a_version_that_went_waits_for_its_reports(
    gateway: Gateway, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deliver(gateway, weight=100, canary=arm(CANARY), **REPORTED)
    token = (await app.render())["usage_token"]
    await deliver(gateway, 2, **REPORTED)
    monkeypatch.setattr("promptrollout.gateway.metrics.counters.SECONDS_KEPT", -1.0)
    gateway.counters.live()
    assert await app.report(token, outcome="error")
    assert counted(gateway) == {}, "dropped when it was counted"
    monkeypatch.undo()
    await deliver(gateway, 3, weight=100, canary=arm(CANARY), **REPORTED)
    token = (await app.render())["usage_token"]
    await deliver(gateway, 4, **REPORTED)
    assert await app.report(token, outcome="error")
    assert counted(gateway) == {"canary": (1, 1)}


async def test_a_canary_that_cannot_be_filled_is_a_failure_at_once(gateway: Gateway, app: Application) -> None:
    await deliver(gateway, weight=100, canary=arm(CANARY, messages=MESSAGES), **REPORTED)
    found = await app.render()
    assert (found["variant"], found["usage_token"]) == ("stable", None)
    assert counted(gateway) == {"canary": (1, 1)}
    await deliver(gateway, 2, weight=100, canary=arm(CANARY, messages=MESSAGES))
    assert (await app.render())["variant"] == "stable"
    assert counted(gateway) == {"canary": (1, 1)}, "only what the gateway sees itself counts"


async def test_memory_is_bounded_whatever_is_never_reported(
    gateway: Gateway, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreported_renders.MAX_UNREPORTED == 50_000
    monkeypatch.setattr(gateway.registry, "renders", UnreportedRenders(limit=3))
    gateway.serving_app = ServingApp(gateway.registry, gateway.counters, Limits())
    caller = Caller(gateway.serving_app)
    await deliver(gateway, **REPORTED)
    tokens = [(await caller.post({"user": "u"}, "/v1/prompts/support/render")).json["usage_token"] for _ in range(5)]
    assert [token is not None for token in tokens] == [True, True, True, False, False]
    assert (len(gateway.registry.renders), gateway.registry.renders.untracked) == (3, 2)
    assert (await caller.post({"token": tokens[0]}, "/v1/usage")).json["counted"] is True
    assert (await caller.post({"user": "u"}, "/v1/prompts/support/render")).json["usage_token"] is not None
    await gateway.serving_app.close()


def test_renders_of_several_settle_times_settle_each_in_its_time() -> None:
    clock = Clock()
    renders = UnreportedRenders(clock)
    counters = Series(("uid", "support", "a", "stable", "gpt"))
    for settle_seconds in (10, 100, 10, 50):
        assert renders.add(counters, Outcome(), settle_seconds)
    seen = []
    for _ in range(11):
        renders.settle()
        seen.append(counters.errors["unreported"])
        clock.now += 10
    assert seen == [0, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4]
    assert (len(renders), counters.in_flight) == (0, 0)


# ---------------------------------------------------------------- several pods


class Pod(Application):
    """One of several, which knows its address."""

    def __init__(self, url: str, client: aiohttp.ClientSession, gateway: Gateway) -> None:
        super().__init__(url, client)
        self.gateway = gateway


@asynccontextmanager
async def a_pod(name: str, state: Path, client: aiohttp.ClientSession) -> AsyncIterator[Pod]:
    made: list[Gateway] = []

    async def admin(scope: Any, receive: Any, send: Any) -> None:
        await made[0].admin_app(scope, receive, send)

    async with serving(admin) as admin_url:
        port = int(admin_url.rpartition(":")[2])
        settings = Settings(
            "default", "ns", name, networks=LOOPBACK, state_dir=state, pod_ip="127.0.0.1", admin_port=port
        )
        made.append(gateway := Gateway(settings))
        async with serving(gateway.serving_app) as url:
            await deliver(gateway, weight=50, canary=arm(CANARY), **REPORTED)
            yield Pod(url, client, gateway)
    await gateway.serving_app.close()
    await gateway.providers.close()


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[list[Pod]]:
    """Two pods of one gateway that know each other's addresses only by what they sign."""
    async with (
        aiohttp.ClientSession() as client,
        a_pod("pod-0", tmp_path / "0", client) as first,
        a_pod("pod-1", tmp_path / "1", client) as second,
    ):
        yield [first, second]


async def test_a_report_that_reaches_another_pod_is_counted_where_it_was_rendered(pods: list[Pod]) -> None:
    first, second = pods
    token = (await first.render("0"))["usage_token"]
    assert await second.report(token, outcome="error") is True
    assert await second.report(token) == "already_reported"
    assert await first.report(token) == "already_reported"
    assert (counted(first.gateway), counted(second.gateway)) == ({"canary": (1, 1)}, {})


async def test_the_admin_port_takes_reports_of_its_own_renders_only(pods: list[Pod]) -> None:
    first, second = pods
    token = (await first.render("0"))["usage_token"]
    own, other = Caller(first.gateway.admin_app), Caller(second.gateway.admin_app)
    for body, status, code in ({"token": token}, 409, "other_pod"), ({"token": "x"}, 400, "invalid_token"):
        refused = await other.post(body, "/usage")
        assert (refused.status, refused.error["code"]) == (status, code)
    assert (await other.post({"token": "x" * 70_000}, "/usage")).status == 413
    assert (await own.post({"token": token}, "/usage")).json == {"object": "usage", "counted": True}
    assert (await own.post({}, "/rollouts")).status == 405
    assert counted(second.gateway) == {}


async def test_a_rollout_whose_pods_have_no_key_tracks_nothing(gateway: Gateway) -> None:
    await deliver(gateway, reporting=REPORTED["reporting"])
    caller = Caller(gateway.serving_app)
    assert (await caller.post({"user": "u"}, "/v1/prompts/support/render")).json["usage_token"] is None
    assert len(gateway.registry.renders) == 0


async def test_the_token_of_a_render_is_an_answers_id_for_votes(pods: list[Pod]) -> None:
    first, second = pods
    token = (await first.render("0"))["usage_token"]
    status, found = await second.post("/v1/feedback", {"response_id": token, "rating": "positive"})
    assert (status, found["counted"]) == (200, True)
    labels = {"variant": "canary", "version": CANARY[:10], "rating": "positive"}
    assert value(await samples(second.gateway), names.METRIC_FEEDBACK, **labels) == 1


def token_of(
    number: int, host: str = "", port: int = 1, ago: int = 0, uid: str = "uid-1", version: str = CANARY
) -> str:
    """Of a render in a process that is no more."""
    return signed(str(RenderId("deadbeef", number, host, port)), ago, uid, version)


def signed(upstream: str, ago: int = 0, uid: str = "uid-1", version: str = CANARY, *, rendered: bool = True) -> str:
    at = int(time.time()) - ago
    given = ResponseId(upstream, version[:10], "canary", 3, at, b"xx", at, rendered)
    return ResponseIds(uid, bytes.fromhex(KEY)).wrap(given)


async def test_a_pod_that_is_silent_may_have_counted_it(pods: list[Pod], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_FORWARD_SECONDS", 0.1)
    _, second = pods

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)

    async with serving(silent) as url:
        token = token_of(7, "127.0.0.1", int(url.rpartition(":")[2]))
        status, found = await second.post("/v1/usage", {"token": token})
        assert (status, found["error"]["code"]) == (503, "other_pod_silent")
        await asyncio.sleep(0.3)
    assert counted(second.gateway) == {}


async def test_a_report_whose_pod_is_gone_is_counted_where_it_arrives(pods: list[Pod]) -> None:
    first, second = pods
    gone = token_of(7, "127.0.0.1", 1)
    assert await second.report(gone) is True
    assert await second.report(gone) == "already_reported"
    reused = token_of(8, "127.0.0.1", first.gateway.settings.admin_port)
    assert await second.report(reused) is True, "another pod has its address now"
    assert await second.report(token_of(9, ago=121)) == "too_late"
    assert await second.report(token_of(10, version="0" * 64)) == "version_retired"
    for strange in (token_of(11, uid="uid-0"), token_of(12)[:-1] + "~", str(RenderId("deadbeef", 13, "", 0))):
        status, found = await second.post("/v1/usage", {"token": strange})
        assert (status, found["error"]["code"]) == (400, "invalid_token")
    assert (counted(first.gateway), counted(second.gateway)) == ({}, {"canary": (2, 0)})


async def test_an_answers_id_is_no_token(pods: list[Pod]) -> None:
    """Not even where a provider gives it the form of one: it would say where we send the report."""
    elsewhere = str(RenderId("deadbeef", 7, "127.0.0.1", pods[1].gateway.settings.admin_port))
    for upstream in ("chatcmpl-1", elsewhere):
        status, found = await pods[0].post("/v1/usage", {"token": signed(upstream, rendered=False)})
        assert (status, found["error"]["code"]) == (400, "invalid_token")


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.0.0.7", "http://10.0.0.7:9090"), ("fd00::7", "http://[fd00::7]:9090"), ("", ""), ("a.example", "")],
)
def test_an_id_says_where_its_pod_is(host: str, url: str) -> None:
    render = RenderId("0123abcd", 2**40, host, 9090)
    assert RenderId.read(str(render)) == render
    assert render.url == url


@hypothesis.given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_text_is_a_token(text: str) -> None:
    assert RenderId.read(text) is None


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, None),
        ({}, None),
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(5, 0, 2)),
        ({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}, Usage(5, 4, 2)),
        (
            {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 3},
            Usage(48, 40, 2, 3),
        ),
        ({"input_tokens": "x", "output_tokens": 2}, Usage(0, 0, 2)),
    ],
)
def test_usage_in_the_words_of_either_provider(given: dict[str, Any] | None, read: Usage | None) -> None:
    assert usage_of(given) == read
