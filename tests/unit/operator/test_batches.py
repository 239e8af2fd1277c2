"""What the pods of one namespace export costs the others nothing: over a real socket, with a source that is honest."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from promptrollout.engine.statistics.evidence import Evidence, Interval
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.evidence import analyses as analyses_module
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.evidence.batches import ALONE_SECONDS, Batches, Window, joined
from promptrollout.operator.sources.lanes import MAX_ANSWER_BYTES, SourceError
from promptrollout.operator.sources.prometheus import PARALLEL_ALONE, Source
from promptrollout.operator.sources.series import Series
from tests.unit.operator.test_prometheus import question
from tests.world import INTERVAL, World, started

NOW = 1_800_000_001.0
POISONED = "poisoned"
"""The namespace whose pods export what they like."""


class Store:
    """Answers with a series of each rollout that a query names, in the namespaces that it names; and its poison."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, ...]] = []
        """Namespaces of each query."""
        self.sent = 0
        self.poison = ""
        """`large`, `slow`, `odd`, `limit`; empty: the namespace is as good as any."""
        self.hangs = False
        self.slow_for_all = False
        self.longest_seconds = 10**9
        """Of a window that can be read at once, of any namespace."""
        self.released = asyncio.Event()

    async def query(self, request: web.Request) -> web.StreamResponse:
        query = request.query["query"]
        if self.hangs:
            await self.released.wait()
        if query == "time()":
            return self.result([NOW, str(NOW)])
        uids, spaces = (re.search(f'{label}=~"([^"]*)"', query)[1].split("|") for label in ("rollout_uid", "namespace"))  # type: ignore[index]
        spaces.remove("")
        self.asked.append(tuple(spaces))
        seconds = int(query.rpartition("[")[2].removesuffix("s]"))
        if self.slow_for_all:
            await self.released.wait()
        if POISONED in spaces and self.poison == "timeout":
            body = {"status": "error", "errorType": "timeout", "error": "query timed out in expression evaluation"}
            return web.json_response(body, status=503)
        if POISONED in spaces and self.poison == "slow":
            await self.released.wait()
        if POISONED in spaces and self.poison == "odd":
            return self.result({"no": "matrix"})
        if (POISONED in spaces and self.poison == "limit") or seconds > self.longest_seconds:
            return web.json_response({"status": "error", "error": "too many samples"}, status=422)
        end = int(request.query["time"])
        found = [
            {
                "metric": {"rollout_uid": uid, "namespace": uid.partition("-")[0], "variant": "canary", "version": "c"},
                "values": [[at, str(at)] for at in range(end - seconds + 1, end + 1, 5)],
            }
            for uid in uids
            if uid.partition("-")[0] in spaces
        ]
        if POISONED in spaces and self.poison == "large":
            labels = {"rollout_uid": uids[0], "namespace": POISONED, "junk": "x" * 2**20}
            found += [{"metric": labels | {"n": str(n)}, "values": [[end, "1"]]} for n in range(12)]
        return self.result(found)

    def result(self, content: Any) -> web.Response:
        body = json.dumps({"status": "success", "data": {"result": content}})
        self.sent += len(body)
        return web.Response(text=body, content_type="application/json")


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    found = Store()
    application = web.Application()
    application.router.add_get("/api/v1/query", found.query)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.released.set()
    await runner.cleanup()


@pytest.fixture
async def source(store: Store) -> AsyncIterator[Source]:
    found = Source("default", store.url, Metrics(), wall=lambda: NOW, timeout=1)
    yield found
    found.close()


WINDOW = Window("m", int(NOW), 30, 30, {})
GOOD = {f"good{n}-a": f"good{n}" for n in range(10)}
BAD = {"poisoned-a": POISONED, "poisoned-b": POISONED}


async def read(batches: Batches, rollouts: dict[str, str], window: Window = WINDOW) -> dict[str, Any]:
    asked = batches.ask(window, rollouts)
    return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))


def readable(found: dict[str, Any]) -> set[str]:
    return {uid for uid, series in found.items() if not isinstance(series, SourceError) and series}


async def test_rollouts_of_many_namespaces_are_asked_for_together(store: Store, source: Source) -> None:
    assert readable(await read(Batches(source), GOOD)) == GOOD.keys()
    assert store.asked == [tuple(sorted(GOOD.values()))]


@pytest.mark.parametrize("poison", ["large", "slow", "odd", "limit", "timeout"])
async def test_a_namespace_that_spoils_answers_costs_the_others_nothing(
    store: Store, source: Source, poison: str
) -> None:
    store.poison = poison
    batches = Batches(source)
    found = await read(batches, GOOD | BAD)
    assert readable(found) == GOOD.keys()
    assert all(error.spoilt for uid, error in found.items() if uid in BAD)
    store.asked.clear()
    assert readable(await read(batches, GOOD | BAD)) == GOOD.keys()
    assert tuple(sorted(GOOD.values())) in store.asked, "the others are asked for together again, without it"
    assert all(spaces == (POISONED,) for spaces in store.asked if POISONED in spaces)


async def test_others_do_not_wait_for_the_one_that_is_asked_alone(store: Store, source: Source) -> None:
    store.poison = "slow"
    batches = Batches(source)
    await read(batches, GOOD | BAD)
    many = {f"poisoned-{n}": POISONED for n in range(4 * PARALLEL_ALONE)}
    asked = batches.ask(WINDOW, GOOD | many)
    await asyncio.gather(*(asked[uid] for uid in GOOD))
    assert not any(asked[uid].done() for uid in many)
    batches.close()


async def test_after_an_hour_it_is_trusted_again(store: Store, source: Source) -> None:
    now = [0.0]
    store.poison = "odd"
    batches = Batches(source, clock=lambda: now[0])
    await read(batches, GOOD | BAD)
    store.poison = ""
    now[0] += ALONE_SECONDS
    store.asked.clear()
    assert readable(await read(batches, GOOD | BAD)) == GOOD.keys() | BAD.keys()
    assert store.asked == [(*sorted(GOOD.values()), POISONED)]


async def test_a_source_that_is_away_or_slow_for_all_puts_nobody_apart(store: Store, source: Source) -> None:
    store.hangs = True
    batches = Batches(source)
    assert readable(await read(batches, GOOD)) == set()
    assert store.asked == []
    store.hangs = False
    store.released.set()
    store.asked.clear()
    assert readable(await read(batches, GOOD)) == GOOD.keys()
    assert set(store.asked) == {tuple(sorted(GOOD.values()))}


async def test_a_source_that_is_slow_for_a_moment_puts_nobody_apart(store: Store, source: Source) -> None:
    """It answers what time it is, and had answered everything just before."""
    batches = Batches(source)
    assert readable(await read(batches, GOOD)) == GOOD.keys()
    store.slow_for_all = True
    assert readable(await read(batches, GOOD)) == set()
    store.slow_for_all = False
    store.released.set()
    store.asked.clear()
    assert readable(await read(batches, GOOD)) == GOOD.keys()
    assert tuple(sorted(GOOD.values())) in store.asked


async def test_a_crowd_that_spoils_its_answers_keeps_nobody_waiting_in_the_intervals_that_follow(
    store: Store, source: Source
) -> None:
    store.poison = "slow"
    batches = Batches(source)
    crowd = {f"poisoned-{n}": POISONED for n in range(500)}
    windows = [Window(f"m{n}", int(NOW), 30, 30, {}) for n in range(8)]
    for _ in range(3):
        asked = [batches.ask(window, GOOD | crowd) for window in windows]
        async with asyncio.timeout(3):
            await asyncio.gather(*(each[uid] for each in asked for uid in GOOD))
        assert not all(each[uid].done() for each in asked for uid in crowd)
    batches.close()


async def test_no_answer_is_read_beyond_its_limit(store: Store, source: Source) -> None:
    store.poison = "large"
    batches = Batches(source, pods=lambda _: 1)
    await read(batches, GOOD | BAD)
    metric = source._metrics.query_errors.labels("default")
    assert metric._value.get() >= 1
    with pytest.raises(SourceError, match="its answer is larger than 1 MiB"):
        await source.window("m", {"poisoned-a": POISONED}, int(NOW), 30, most_bytes=2**20)
    assert MAX_ANSWER_BYTES <= 8 * 2**20


async def test_many_rollouts_of_one_namespace_come_after_the_few_of_others(store: Store, source: Source) -> None:
    crowd = {f"crowd-{n}": "crowd" for n in range(1000)}
    found = await read(Batches(source), GOOD | crowd)
    assert readable(found) == GOOD.keys() | crowd.keys()
    first = next(n for n, spaces in enumerate(store.asked) if "good0" in spaces)
    assert first < 4, "in one of the first queries that are sent together"


async def test_a_window_that_is_too_long_is_read_in_halves(store: Store, source: Source) -> None:
    store.longest_seconds = 200
    window = Window("m", int(NOW), 600, 30, {})
    (series,) = (await read(Batches(source), {"good1-a": "good1"}, window))["good1-a"]
    assert [at for at, _ in series.samples] == list(range(int(NOW) - 599, int(NOW) + 1, 5))


def test_series_of_one_half_alone_are_kept() -> None:
    one = Series("canary", "c", "p", "", None, ((1.0, 1.0),), labels={"a": "1"})
    two = Series("canary", "c", "p", "", None, ((2.0, 2.0),), labels={"a": "1"})
    other = Series("canary", "c", "q", "", None, ((2.0, 5.0),), labels={"a": "2"})
    found = joined([one], [two, other])
    assert [series.samples for series in found] == [((1.0, 1.0), (2.0, 2.0)), ((2.0, 5.0),)]


# ---------------------------------------------------------------- a rollout whose own namespace is poisoned


def position() -> int:
    return int(NOW) - int(NOW) % 5 - 10


async def test_a_window_that_stays_unreadable_is_skipped_and_what_follows_is_read(
    store: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analyses_module, "UNREADABLE_SECONDS", 0.0)
    store.poison = "odd"
    found = Analyses({"default": source}, 0.0, lambda _: None)
    await found.first_contact()
    key, start = Key("PromptRollout", POISONED, "app"), position()
    found.request(key, question("poisoned-a"), start)
    for _ in range(2):
        await found.look()
        found._analyses[key].pause_until = 0.0
    evidence = found.evidence(key, start, "default")
    assert [(interval.start, bool(interval.problem), interval.counts) for interval in evidence.intervals] == [
        (start, True, {}),
        (start + 5, True, {}),
    ]
    assert evidence.lost
    store.poison = ""
    found.request(key, question("poisoned-a"), start + 10)
    monkeypatch.setattr(source, "_wall", lambda: NOW + 5)
    await found.look()
    evidence = found.evidence(key, start + 10, "default")
    assert (evidence.available, [interval.problem for interval in evidence.intervals]) == (True, [""])


def skipping(world: World) -> None:
    """The next interval cannot be read."""
    since = world.status.clock.evaluated_until
    assert since is not None
    interval = Interval(since, since + INTERVAL, problem="its answer is larger than 4 MiB")
    world.evidence = lambda: Evidence((interval,), available=False, problem="unreadable", lost=True)  # type: ignore[method-assign]
    world.now += INTERVAL
    world.settle()


def test_what_is_skipped_is_no_evidence_and_is_said_once_an_hour() -> None:
    world = started()
    world.tick()
    before = world.status.clock.step_active_seconds
    for _ in range(3):
        skipping(world)
    assert world.events.count("MetricsSkipped") == 1
    assert (world.status.clock.step_active_seconds, world.at) == (before, ("Stepping", 10))
    message = next(d.message for d in world.status.history if d.reason == "MetricsSkipped")
    assert "its answer is larger than 4 MiB" in message
