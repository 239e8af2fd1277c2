"""What a full pod does: requests wait their turn for a short time, the others are told when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from promptrollout.gateway.http import exchange
from promptrollout.gateway.http.errors import Overloaded, RateLimited
from promptrollout.gateway.http.exchange import Bodies, Receive, read_body
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server import concurrency_limit, strict_http
from promptrollout.gateway.server.admission import MAX_RETRY_SECONDS, REFUSALS_PER_SECOND, Admission, RateLimiter
from promptrollout.gateway.server.app import Limits
from promptrollout.gateway.server.concurrency_limit import LATE_SECONDS, LEAST, ConcurrencyLimit
from tests.unit.gateway.kit import DONE, LOOPBACK, Provider, arm, delivery, request, samples, series, streams, value
from tests.unit.gateway.live import listening


@asynccontextmanager
async def serving(tmp_path: Path, provider: Provider, limits: Limits) -> AsyncIterator[tuple[Gateway, str]]:
    gateway = Gateway(Settings("default", "ns", "pod-1", networks=LOOPBACK, state_dir=tmp_path, limits=limits))
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    try:
        async with listening(gateway.serving_app) as port:
            yield gateway, f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        await gateway.providers.close()


async def until(gateway: Gateway, in_flight: int, queued: int) -> None:
    async with asyncio.timeout(5):
        while (gateway.counters.in_flight, gateway.counters.queued) != (in_flight, queued):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_one_at_work_one_waits_and_the_third_comes_back_later(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_http, "SHED_SECONDS", 0.05)
    gate = asyncio.Event()
    provider.script.append(streams(gate, DONE))
    limits = Limits(max_concurrent_requests=1, max_queued_requests=1)
    async with serving(tmp_path, provider, limits) as (gateway, url), aiohttp.ClientSession() as client:

        async def ask() -> int:
            async with client.post(url, json=request()) as answer:
                await answer.read()
                return answer.status

        first = asyncio.create_task(ask())
        await until(gateway, 1, 0)
        second = asyncio.create_task(ask())
        await until(gateway, 1, 1)
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as third:
            for _ in range(3):  # on one connection, which is kept
                async with third.post(url, json=request(filler="x" * 300_000)) as answer:
                    error = (await answer.json())["error"]
                    assert (answer.status, error["code"], error["type"]) == (503, "overloaded", "server_error")
                    assert answer.headers["retry-after"] == "1"
            assert len(provider.requests) == 1
            found = await samples(gateway)
            assert value(found, "promptrollout_gateway_rejected_requests_total", code="overloaded") == 3
            assert value(found, "promptrollout_gateway_queued_requests") == 1
            gate.set()
            assert await asyncio.gather(first, second) == [200, 200]
            async with third.post(url, json=request()) as answer:
                assert answer.status == 200
        assert series(gateway, "stable").total.requests == 3
        assert (gateway.counters.in_flight, gateway.counters.queued) == (0, 0)


async def test_who_sends_slowly_keeps_nobody_from_being_answered(tmp_path: Path, provider: Provider) -> None:
    body = orjson.dumps(request())
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serving(tmp_path, provider, Limits(max_concurrent_requests=1, max_queued_requests=0)) as (gateway, url):
        opened = [await asyncio.open_connection("127.0.0.1", int(url.split(":")[2].split("/")[0])) for _ in range(5)]
        async with asyncio.timeout(5):
            for number, (_, writer) in enumerate(opened, 1):
                writer.write(head + body[:20])
                while gateway.serving_app._bodies.bytes_held < 20 * number:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        async with aiohttp.ClientSession() as client, client.post(url, json=request()) as answer:
            assert answer.status == 200
        for reader, writer in opened:
            writer.write(body[20:])
            assert (await reader.readline()).split()[1] == b"200"
            writer.close()
        assert gateway.serving_app._bodies.bytes_held == 0


async def test_bodies_that_are_not_whole_have_a_bound_together() -> None:
    bodies = Bodies(max_bytes=200_000)
    more = asyncio.Event()

    def body(pieces: list[bytes], last: bytes) -> Receive:
        left = [*pieces]

        async def receive() -> dict[str, Any]:
            if left:
                return {"type": "http.request", "body": left.pop(0), "more_body": True}
            await more.wait()
            return {"type": "http.request", "body": last, "more_body": False}

        return receive

    async def read(pieces: list[bytes]) -> bytes:
        with bodies.share() as share:
            return await read_body({}, body(pieces, b"y"), 10**6, share)

    first = asyncio.create_task(read([b"x" * 150_000]))
    await asyncio.sleep(0)
    more.set()
    with pytest.raises(Overloaded):
        await read([b"x" * 60_000, b"x" * 10_000])
    assert await read([b"x" * 60_000]) == b"x" * 60_000 + b"y"
    assert len(await first) == 150_001
    assert bodies.bytes_held == 0


async def test_who_waits_too_long_is_told_so_and_who_hangs_up_leaves_the_queue(
    tmp_path: Path, provider: Provider
) -> None:
    gate = asyncio.Event()
    provider.script.append(streams(gate, DONE))
    limits = Limits(max_concurrent_requests=1, max_queued_requests=10, max_queue_milliseconds=150)
    async with serving(tmp_path, provider, limits) as (gateway, url), aiohttp.ClientSession() as client:

        async def ask(seconds: float = 5) -> int:
            async with client.post(url, json=request(), timeout=aiohttp.ClientTimeout(total=seconds)) as answer:
                return answer.status

        first = asyncio.create_task(ask())
        await until(gateway, 1, 0)
        waiting = [asyncio.create_task(ask()) for _ in range(3)]
        impatient = asyncio.create_task(ask(0.02))
        with pytest.raises(TimeoutError):
            await impatient
        assert await asyncio.gather(*waiting) == [503] * 3
        gate.set()
        await first
        assert await ask() == 200
        await until(gateway, 0, 0)
    assert len(provider.requests) == 2


async def test_places_are_never_lost_or_doubled() -> None:
    """Hundreds of requests that come, go, time out and hang up at awkward moments."""
    counters = Counters()
    admission = Admission(counters, 4, 30, 0.01)
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        await asyncio.sleep(number % 17 / 1000)
        async with admission:
            most = max(most, counters.in_flight)
            await asyncio.sleep(number % 5 / 1000)

    tasks = [asyncio.create_task(one(number)) for number in range(400)]
    for number, task in enumerate(tasks):
        if number % 7 == 0:
            asyncio.get_running_loop().call_later(number % 23 / 1000, task.cancel)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, Overloaded)]
    assert refused
    assert {type(one) for one in ended} <= {type(None), Overloaded, asyncio.CancelledError}
    assert (most, counters.in_flight, counters.queued, len(admission._waiting)) == (4, 0, 0, 0)
    async with admission:
        assert counters.in_flight == 1


async def test_a_burst_that_is_read_at_one_turn_is_counted_before_it_begins() -> None:
    counters = Counters()
    admission = Admission(counters, 3, 4, 5)
    done = asyncio.Event()

    async def one() -> None:
        async with admission:
            await done.wait()

    def burst() -> list[asyncio.Task[None]]:
        return [asyncio.create_task(one()) for _ in range(20) if not admission.refuses()]

    tasks = burst()
    assert len(tasks) == 7
    await asyncio.sleep(0)
    assert (counters.in_flight, counters.queued) == (3, 4)
    assert burst() == []
    done.set()
    await asyncio.gather(*tasks)
    again = burst()
    assert len(again) == 7, "nothing is left of those who came"
    await asyncio.gather(*again)


def test_the_more_are_refused_the_longer_they_are_told_to_wait() -> None:
    admission = Admission(Counters(), 0, 0, 1)

    def a_second(number: int, refusals: int) -> int:
        for n in range(refusals):
            admission._record_refusal(number + n / refusals)
        return admission.retry_seconds

    assert [a_second(n, REFUSALS_PER_SECOND) for n in range(1, 4)] == [1, 1, 1]
    assert a_second(4, 3 * REFUSALS_PER_SECOND) == 1
    assert a_second(5, REFUSALS_PER_SECOND) == 3
    assert a_second(6, 100 * REFUSALS_PER_SECOND) == 3
    assert a_second(7, 10) == MAX_RETRY_SECONDS
    assert a_second(8, 10) == 1


async def test_whose_turn_would_come_too_late_is_refused_at_once() -> None:
    counters = Counters()
    admission = Admission(counters, 1, 1000, 0.2)
    ended: Counter[str] = Counter()
    arrived = 0

    async def one() -> None:
        before = arrived
        try:
            async with admission:
                await asyncio.sleep(0.005)
            ended["served"] += 1
        except Overloaded:
            ended["at once" if arrived == before else "in vain"] += 1

    tasks = []
    for _ in range(400):  # twice as many as can be served
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.0025)
        arrived += 1
        assert counters.queued <= 100, "of the 1,000 that have room"
    await asyncio.gather(*tasks)
    assert ended["served"] > 100
    assert ended["in vain"] < ended["at once"] / 2


async def test_those_who_wait_are_served_in_order() -> None:
    admission = Admission(Counters(), 1, 10, 5)
    served: list[int] = []

    async def one(number: int) -> None:
        async with admission:
            served.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(8)))
    assert served == list(range(8))


def test_the_limit_falls_while_the_loop_is_late_and_rises_again() -> None:
    under_way, raised = [500], [0]

    def more() -> None:
        raised[0] += 1

    concurrency = ConcurrencyLimit(1000, lambda: under_way[0], more)
    concurrency.adjust(0.0)
    concurrency.adjust(LATE_SECONDS)
    assert (concurrency.limit, raised) == (1000, [0])
    concurrency.adjust(0.03)
    assert concurrency.limit == 450, "by what is under way"
    concurrency.adjust(0.03)
    assert concurrency.limit == 405
    under_way[0] = 3
    concurrency.adjust(5.0)
    assert concurrency.limit == LEAST
    times = 0
    while concurrency.limit < 1000:
        concurrency.adjust(0.0)
        times += 1
    assert (concurrency.limit, raised) == (1000, [times])
    assert times < 40
    few = ConcurrencyLimit(4, lambda: 500, more)
    few.adjust(1.0)
    assert few.limit == 4, "not above what may be"


async def test_a_loop_that_is_late_takes_fewer_and_those_who_wait_come_when_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrency_limit, "LEAST", 2)
    counters = Counters()
    admission = Admission(counters, 8, 10, 5)
    done = asyncio.Event()

    async def one() -> None:
        async with admission:
            await done.wait()

    early = [asyncio.create_task(one()) for _ in range(4)]
    while admission.concurrency.limit == 8:
        time.sleep(0.03)  # noqa: ASYNC251 the loop is busy
        await asyncio.sleep(0)
    assert admission.concurrency.limit == 3
    late = [asyncio.create_task(one()) for _ in range(4)]
    await asyncio.sleep(0)
    assert (counters.in_flight, counters.queued, admission.full) == (4, 4, False)
    async with asyncio.timeout(5):
        while counters.in_flight < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (counters.queued, admission.concurrency.limit) == (0, 8)
    done.set()
    await asyncio.gather(*early, *late)
    async with asyncio.timeout(5):
        while admission.concurrency._timer is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_rates_are_steady_with_a_burst_and_remember_few() -> None:
    now = [0.0]
    told: set[str] = set()
    rates = RateLimiter(per_minute=60, burst=3, clock=lambda: now[0])

    def taken(caller: str, times: int) -> int:
        count = 0
        for _ in range(times):
            try:
                rates.spend(caller)
            except RateLimited as error:
                told.add(error.headers["retry-after"])
            else:
                count += 1
        return count

    assert taken("a", 10) == 3
    assert taken("b", 1) == 1
    now[0] += 2
    assert taken("a", 10) == 2
    now[0] += 3600
    assert taken("a", 10) == 3
    for number in range(20_000):
        rates.spend(f"caller-{number}")
    assert (len(rates), told) == (10_000, {"1"})


async def test_small_bodies_have_a_bound_together_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_SMALL_BYTES", 50_000)
    bodies = Bodies(max_bytes=100_000)
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(bodies.share()).reserve(30_000) for _ in range(7)]
    assert taken == [True] * 5 + [False] * 2
    assert bodies.bytes_held == 0


async def test_connections_have_a_bound(gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_http, "MAX_CONNECTIONS", 3)
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    async with listening(gateway.serving_app) as port, contextlib.AsyncExitStack() as stack:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in opened:
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in answer
        assert b"overloaded" in answer
        opened[0][1].close()
        await opened[0][1].wait_closed()
        async with asyncio.timeout(5):
            while True:
                async with aiohttp.ClientSession() as client:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with client.get(f"http://127.0.0.1:{port}/v1/models") as listed:
                            if listed.status == 200:
                                break
                await asyncio.sleep(0.01)
