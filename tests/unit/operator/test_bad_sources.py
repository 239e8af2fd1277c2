"""Slow, failing and hostile answers of a metrics source: each costs those who need it, at most some seconds, and is a
sentence."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from promptrollout.api import names
from promptrollout.api.slo import Objective
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries
from promptrollout.operator.sources.access import SourceAccess
from promptrollout.operator.sources.lanes import SourceError
from promptrollout.operator.sources.prometheus import Source
from tests.world import started, version

A, B = Key("PromptRollout", "ns", "a"), Key("PromptRollout", "ns", "b")
NOW = 1_800_000_001.0
"""What every clock shows, for ever: no interval ends during a test."""
ARM = '{variant="{{ variant }}",version="{{ version }}"}'
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Fake:
    """Answers queries with nothing, or by the first part of `answers` that is in the query."""

    def __init__(self) -> None:
        self.url = ""
        self.queries: list[str] = []
        self.answers: dict[str, Answer] = {}

    async def query(self, request: web.Request) -> web.StreamResponse:
        query = request.query["query"]
        self.queries.append(query)
        for part, answer in self.answers.items():
            if part in query:
                return await answer(request)
        return result([NOW, str(NOW)] if query == "time()" else [])


def result(content: Any) -> web.Response:
    return web.json_response({"status": "success", "data": {"result": content}})


def says(text: str, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, status=status, headers=headers)

    return answer


async def drips(request: web.Request) -> web.StreamResponse:
    """A byte now and then: each is in time, the answer never is."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100):
        await response.write(b" ")
        await asyncio.sleep(0.02)
    return response


async def hangs(_: web.Request) -> web.Response:
    await asyncio.sleep(2)
    return result([])


@pytest.fixture
async def fakes() -> AsyncIterator[tuple[Fake, Fake]]:
    found, runners = [], []
    for _ in range(2):
        fake = Fake()
        app = web.Application()
        for endpoint in ("query", "query_range"):
            app.router.add_get(f"/api/v1/{endpoint}", fake.query)
        runners.append(web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runners[-1].addresses[0][1]}"
        found.append(fake)
    yield found[0], found[1]
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def sources(fakes: tuple[Fake, Fake]) -> AsyncIterator[dict[str, Source]]:
    found = {
        name: Source(
            name, fake.url, Metrics(), lambda: NOW, timeout=0.4, access=SourceAccess({"X-Scope-OrgID": "secret"}, None)
        )
        for name, fake in zip(("default", "other"), fakes, strict=True)
    }
    yield found
    for source in found.values():
        source.close()


# ---------------------------------------------------------------- one answer


async def failure(source: Source) -> str:
    with pytest.raises(SourceError) as caught:
        await source.window("m", {"uid": "ns"}, 60, 30)
    return str(caught.value)


async def test_an_answer_that_drips_has_a_deadline(fakes: tuple[Fake, Fake], sources: dict[str, Source]) -> None:
    fakes[0].answers["m{"] = drips
    async with asyncio.timeout(60):  # a watchdog: it drips for minutes
        assert "no complete answer within 0.8 s" in await failure(sources["default"])


async def test_a_redirect_is_not_followed_as_its_goal_would_learn_the_headers(
    fakes: tuple[Fake, Fake], sources: dict[str, Source]
) -> None:
    fakes[0].answers["m{"] = says("", 302, Location=f"{fakes[1].url}/api/v1/query?query=m")
    assert "HTTP 302: redirects are not followed, here to http://" in await failure(sources["default"])
    assert fakes[1].queries == []


@pytest.mark.parametrize("depth", [900, 3_000, 100_000])
async def test_json_nested_too_deep(fakes: tuple[Fake, Fake], sources: dict[str, Source], depth: int) -> None:
    fakes[0].answers["m{"] = says('{"data":{"result":' + "[" * depth + "]" * depth + "}}")
    assert await failure(sources["default"])


async def test_an_answer_that_is_too_large(
    fakes: tuple[Fake, Fake], sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources["default"]._lane, "most_bytes", 2**20)
    fakes[0].answers["m{"] = says(" " * (2**20 + 1))
    assert "its answer is larger than 1 MiB" in await failure(sources["default"])


async def test_an_answer_that_is_cut_off(fakes: tuple[Fake, Fake], sources: dict[str, Source]) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"data"')
        assert request.transport is not None
        request.transport.close()
        return response

    fakes[0].answers["m{"] = cut
    assert "cut off" in await failure(sources["default"])


@pytest.mark.parametrize("told", ["NaN", "+Inf", "-Inf", "1e300", "-5"])
async def test_a_clock_that_tells_no_time(fakes: tuple[Fake, Fake], sources: dict[str, Source], told: str) -> None:
    fakes[0].answers["time()"] = says(json.dumps({"data": {"result": [1, told]}}))
    with pytest.raises(SourceError, match=r"its answer to time\(\)"):
        await sources["default"].read_clock()
    assert math.isfinite(sources["default"].now())


# ---------------------------------------------------------------- whom it costs


def question(uid: str, *expressions: str, source: str = "default", errors: bool = True) -> EvidenceRequest:
    objectives = [Objective.model_validate({"name": "errors", "signal": "ErrorRate"})] if errors else []
    for number, expression in enumerate(expressions):
        fields = {"name": f"own{number}", "signal": "Custom", "custom": {"value": expression + ARM}, "max": "1"}
        objectives.append(Objective.model_validate(fields))
    measured = tuple(map(ObjectiveQueries.of, objectives))
    return EvidenceRequest(uid, source, 5, "sssssssss1", "cccccccccc", measured, rollout=uid, namespace="ns")


def position() -> int:
    return int(NOW) - int(NOW) % 5 - 10


def answers_of(start: int) -> dict[str, Answer]:
    """Good ones to what `question` asks."""
    times = [start - 1, start + 1, start + 4, start + 6, start + 9]

    async def counters(request: web.Request) -> web.Response:
        found = []
        for uid in ("ua", "ub"):
            for variant, digest in (("canary", "cccccccccc"), ("stable", "sssssssss1")):
                labels = {"rollout_uid": uid, "variant": variant, "version": digest, "namespace": "ns"}
                grows = [[at, str(10 * n)] for n, at in enumerate(times)]
                found.append({"metric": labels, "values": grows})
        return result(found)

    async def value(request: web.Request) -> web.Response:
        return result([{"metric": {}, "values": [[start + 5, "0.5"], [start + 10, "0.5"]]}])

    return {f"{names.METRIC_REQUESTS}{{": counters, f"{names.METRIC_ERRORS}{{": counters, "queue": value}


async def analyses_of(sources: dict[str, Source]) -> Analyses:
    found = Analyses(sources, 0.0, lambda _: None)
    await found.first_contact()
    return found


async def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "not in time"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", [says("no such function", 422), hangs, drips])
async def test_an_own_query_that_fails_leaves_the_other_objectives_their_evidence(
    fakes: tuple[Fake, Fake], sources: dict[str, Source], how: Answer
) -> None:
    start = position()
    fakes[0].answers = {"broken": how, **answers_of(start)}
    analyses = await analyses_of(sources)
    analyses.request(A, question("ua", "queue", "broken"), start)
    await analyses.look()
    found = analyses.evidence(A, start, "default")
    assert not found.available, "nothing is promoted unwatched"
    assert [set(interval.counts) for interval in found.intervals] == [{"errors", "own0"}] * 2
    assert found.problem.startswith("objective own1 is not measured: metrics source default")
    fakes[0].answers["broken"] = fakes[0].answers["queue"]
    analyses.request(A, question("ua", "queue", "broken"), start - 5)
    await analyses.look()
    assert analyses.evidence(A, start - 5, "default").problem == ""


@pytest.mark.parametrize("breached", [False, True])
def test_evidence_that_lacks_an_own_query_holds_promotion_and_no_rollback(
    monkeypatch: pytest.MonkeyPatch, breached: bool
) -> None:
    canary = version("v2")
    world = started(error_rate={canary.digest: 0.4 if breached else 0.0})
    whole = world.evidence
    monkeypatch.setattr(world, "evidence", lambda: replace(whole(), available=False, problem="own1 is not measured"))
    world.tick(3 if breached else 40)
    assert [rejected.digest for rejected in world.status.rejected] == ([canary.digest] if breached else [])
    assert breached or (world.at, "own1 is not measured" in world.status.message) == (("Stepping", 10), True)


async def test_what_failed_is_not_asked_again_at_once_and_what_did_not_is(
    fakes: tuple[Fake, Fake], sources: dict[str, Source]
) -> None:
    start = position() - 5 * 100
    fakes[0].answers = {"broken": says("", 500), **answers_of(start)}
    analyses = await analyses_of(sources)
    analyses.request(A, question("ua", "queue", "broken"), start)
    await analyses.look()
    asked = len(fakes[0].queries)
    assert analyses._analyses[A].failing_until > time.monotonic()
    analyses._analyses[A].failing_until += 60  # however slow this machine is
    await analyses.look()
    again = fakes[0].queries[asked:]
    assert any("queue" in query for query in again)
    assert not any("broken" in query for query in again)
    assert len(analyses.evidence(A, start, "default").intervals) > 100


async def test_where_nothing_else_is_measured_the_interval_waits_for_the_own_query(
    fakes: tuple[Fake, Fake], sources: dict[str, Source]
) -> None:
    start = position()
    fakes[0].answers = {"queue": says("", 500)}
    analyses = await analyses_of(sources)
    analyses.request(A, question("ua", "queue", errors=False), start)
    await analyses.look()
    held = analyses.evidence(A, start, "default")
    assert (held.available, held.intervals) == (False, ())
    fakes[0].answers = answers_of(start)
    analyses._analyses[A].pause_until = analyses._analyses[A].failing_until = 0.0
    await analyses.look()
    found = analyses.evidence(A, start, "default")
    assert [set(interval.counts) for interval in found.intervals] == [{"own0"}] * 2
    assert (found.available, found.problem) == (True, "")


async def test_slow_own_queries_of_one_rollout_delay_no_other(
    fakes: tuple[Fake, Fake], sources: dict[str, Source]
) -> None:
    start = position()
    fakes[0].answers = {"slow": hangs, **answers_of(start)}
    analyses = await analyses_of(sources)
    analyses.request(A, question("ua", *(f"slow{n}" for n in range(19))), start)
    analyses.request(B, question("ub"), start)
    running = asyncio.create_task(analyses.run())
    try:
        await eventually(lambda: len(analyses.evidence(B, start, "default").intervals) >= 2)
        assert analyses.evidence(A, start, "default").intervals == (), "its own queries are still under way"
        await eventually(lambda: len(analyses.evidence(A, start, "default").intervals) >= 2)
        assert sum("slow" in query for query in fakes[0].queries) < 19, "it does not wait for all of them"
        analyses.stop(A)
    finally:
        running.cancel()
        await asyncio.gather(running, *analyses._under_way, return_exceptions=True)


async def test_a_source_that_drips_delays_no_other_source(fakes: tuple[Fake, Fake], sources: dict[str, Source]) -> None:
    start = position()
    sources["default"].answer_seconds = 60
    analyses = await analyses_of(sources)
    fakes[0].answers = {"": drips}
    fakes[1].answers = answers_of(start)
    analyses.request(A, question("ua"), start)
    analyses.request(B, question("ub", source="other"), start)
    running = asyncio.create_task(analyses.run())
    try:
        await eventually(lambda: len(analyses.evidence(B, start, "other").intervals) >= 2)
        assert any(names.METRIC_REQUESTS in query for query in fakes[0].queries)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_fault_in_a_look_is_logged_and_looking_goes_on(
    fakes: tuple[Fake, Fake],
    sources: dict[str, Source],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = position()
    fakes[1].answers = answers_of(start)
    analyses = await analyses_of(sources)
    analyses.request(A, question("ua"), start)
    analyses.request(B, question("ub", source="other"), start)

    due_end = Analyses._due_end

    def broken(own: Analyses, source: Source, analysis: Any) -> int | None:
        if source.name == "default":
            raise RuntimeError("a fault of ours")
        return due_end(own, source, analysis)

    monkeypatch.setattr(Analyses, "_due_end", broken)
    running = asyncio.create_task(analyses.run())
    try:
        await eventually(lambda: len(analyses.evidence(B, start, "other").intervals) >= 2)
        assert "a fault of ours" in caplog.text
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
