"""The traffic generator against a simulated model and against a small server that plays a gateway."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from promptrollout.sandbox.traffic import Traffic, completions_url
from tests.unit.sandbox_model.running_model import RunningModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - the generator has no event to wait for: its counts are its interface
            await asyncio.sleep(0.002)


async def until_answered(traffic: Traffic, count: int) -> None:
    def answered() -> int:
        seen = traffic.stats()
        return seen.answered + sum(seen.failures.values())

    await until(lambda: answered() >= count)


def gateway(handler: Handler) -> TestServer:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", handler)
    return TestServer(application)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/chat/completions"),
        ("http://127.64.0.9:8080/v1/", "http://127.64.0.9:8080/v1/chat/completions"),
        ("http://localhost:1/gw/v1/chat/completions", "http://localhost:1/gw/v1/chat/completions"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/chat/completions"),
    ],
)
def test_the_address_may_be_given_in_any_usual_form(url: str, expected: str) -> None:
    assert completions_url(url) == expected


@pytest.mark.parametrize("url", ["http://10.0.0.1:80", "https://api.openai.com/v1", "http://127.0.0.1.example.com"])
def test_only_this_machine_is_loaded(url: str) -> None:
    with pytest.raises(ValueError, match="not a loopback address"):
        Traffic(url, "m")


@pytest.mark.parametrize(
    ("name", "value"),
    [("users", 0), ("requests_per_second", 0), ("stream_share", 1.5), ("zipf", -1), ("questions", [])],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Traffic("http://127.0.0.1:1", "m", **{name: value})  # type: ignore[arg-type]


async def test_counts_what_users_saw(model: RunningModel) -> None:
    await model.behave({"name": "a", "errorRate": 0.2, "disconnectRate": 0.2, "latency": {"fixedMs": 0}})
    traffic = Traffic(
        model.url,
        "m",
        requests_per_second=2000,
        stream_share=0.5,
        headers={"authorization": "Bearer sk-test-1234"},
    )
    async with traffic:
        await until_answered(traffic, 200)
    stats = traffic.stats()
    assert stats.sent == stats.answered + sum(stats.failures.values())
    assert 0.1 < stats.statuses[500] / stats.sent < 0.3
    assert 0.1 < stats.failures["ClientPayloadError"] / stats.sent < 0.3
    assert stats.ok > 0
    [one] = await model.get("/control/requests?last=1")  # type: ignore[misc]
    assert one["body"]["user"].startswith("user-")


async def test_variants_versions_and_changes_are_counted_by_user() -> None:
    flips = iter(range(10_000))

    async def answer(_request: web.Request) -> web.Response:
        variant = "canary" if next(flips) % 2 else "stable"
        return web.Response(headers={"x-promptrollout-variant": variant, "x-promptrollout-version": f"v-{variant}"})

    async with gateway(answer) as server:
        traffic = Traffic(str(server.make_url("/")), "m", users=1, requests_per_second=1000)
        async with traffic:
            await until_answered(traffic, 20)
        stats = traffic.stats()
    assert set(stats.variants) == {"stable", "canary"}
    assert set(stats.versions) == {"v-stable", "v-canary"}
    assert stats.users == 1
    assert sum(stats.users_by_last_variant.values()) == 1
    assert stats.variant_changes["canary->stable"] >= 1
    assert stats.latency_ms["stable"]["p50"] <= stats.latency_ms["stable"]["p99"]


async def test_the_same_seed_asks_the_same_and_zipf_prefers_few_users() -> None:
    async def asked(zipf: float) -> list[str]:
        users: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            users.append((await request.json())["user"])
            return web.Response()

        async with gateway(answer) as server:
            traffic = Traffic(str(server.make_url("/")), "m", users=1000, requests_per_second=2000, zipf=zipf, seed=3)
            async with traffic:
                await until_answered(traffic, 150)
        return users

    first, second, skewed = await asked(0), await asked(0), await asked(1.5)
    # over many connections neighbours may arrive swapped, so the order itself is not compared
    assert set(first[:100]) <= set(second)
    assert len(set(skewed[:100])) < len(set(first[:100]))


async def test_a_gateway_that_hangs_is_given_up_and_the_memory_is_bounded() -> None:
    release = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with gateway(hang) as server:
        traffic = Traffic(str(server.make_url("/")), "m", requests_per_second=2000, largest_in_flight=10)
        await traffic.start()
        await until(lambda: traffic.stats().skipped > 0)
        stats = await traffic.stop(grace_seconds=0.01)
        release.set()
    assert stats.sent == 10
    assert stats.failures == {"Abandoned": 10}
