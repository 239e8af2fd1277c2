"""A metrics source that answers badly is a sentence, holds the rollouts that need it, and nobody else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from promptrollout.api import names
from promptrollout.api.slo import Objective
from promptrollout.engine.statistics.evidence import Interval
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.evidence.reader import Reader
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries
from promptrollout.operator.sources.lanes import SourceError
from promptrollout.operator.sources.prometheus import Source

A, B = Key("PromptRollout", "ns", "a"), Key("PromptRollout", "ns", "b")
NOW = 1_800_000_001.0
"""What every clock shows, for ever: no interval ends during a test."""


class FakePrometheus:
    """Speaks the query API; `broken` maps a part of a query to the answer given instead."""

    def __init__(self) -> None:
        self.url = ""
        self.queries: list[str] = []
        self.broken: dict[str, tuple[int, str]] = {}
        self.ahead = 0.0
        self.series: dict[str, list[dict[str, Any]]] = {}

    async def query(self, request: web.Request) -> web.Response:
        query = request.query["query"]
        self.queries.append(query)
        for part, (status, body) in self.broken.items():
            if part in query:
                return web.Response(status=status, text=body)
        result: Any = self.series.get(query.split("{")[0], [])
        if query == "time()":
            result = [NOW + self.ahead, str(NOW + self.ahead)]
        return web.json_response({"status": "success", "data": {"result": result}})


@pytest.fixture
async def prometheus() -> AsyncIterator[FakePrometheus]:
    fake = FakePrometheus()
    app = web.Application()
    app.router.add_get("/api/v1/query", fake.query)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


@pytest.fixture
async def source(prometheus: FakePrometheus) -> AsyncIterator[Source]:
    found = Source("default", prometheus.url, Metrics(), wall=lambda: NOW, timeout=1)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, "internal", "HTTP 500: internal"),
        (422, '{"status":"error","error":"too many samples"}', "too many samples"),
        (200, "<html>log in</html>", "not that of a Prometheus API"),
        (200, "", "not that of a Prometheus API"),
        (200, '{"status":"success"}', "not that of a Prometheus API"),
        (200, '{"data": null}', "not that of a Prometheus API"),
        (200, '{"data":{"result":{"odd":1}}}', "not a matrix"),
    ],
)
async def test_bad_answers(prometheus: FakePrometheus, source: Source, status: int, body: str, says: str) -> None:
    prometheus.broken["m{"] = (status, body)
    with pytest.raises(SourceError, match=re.escape(says)):
        await source.window("m", {"uid": "ns"}, 60, 30)


async def test_nobody_there() -> None:
    source = Source("default", "http://127.0.0.1:9", Metrics(), timeout=1)
    with pytest.raises(SourceError, match=r"metrics source default .* cannot be reached"):
        await source.read_clock()
    source.close()


async def test_intervals_are_cut_by_its_own_clock(prometheus: FakePrometheus, source: Source) -> None:
    prometheus.ahead = 3600
    await source.read_clock()
    assert source.now() == NOW + 3600


async def test_an_empty_answer_is_no_series(source: Source) -> None:
    assert await source.window("m", {"uid": "ns"}, 60, 30) == {}


async def test_uids_and_edges_stand_in_the_query(prometheus: FakePrometheus, source: Source) -> None:
    await source.window("m_bucket", {"b": "ns", "a": "ns"}, 60, 30, {"le": {"2.50"}})
    (query,) = prometheus.queries
    assert 'rollout_uid=~"a|b"' in query
    assert "2[.]5|" in query
    assert query.endswith("[30s]")


def scraped(uid: str, **labels: str) -> dict[str, Any]:
    own = {"rollout_uid": uid, "variant": "canary", "version": "cccccccccc", "process": "0123abcd"}
    return {"metric": own | labels, "values": [[50, "7"]]}


async def test_only_pods_of_the_rollouts_own_namespace_are_heard(
    prometheus: FakePrometheus, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """Any pod of the cluster may export series that name any rollout."""
    prometheus.series["m"] = [
        scraped("ua", namespace="ns", pod="a"),
        scraped("ua", namespace="evil", pod="b"),
        scraped("ub", namespace="ns", pod="c"),
        scraped("ua", pod="d"),
        scraped("ua", namespace="evil", exported_namespace="ns", pod="e"),
    ]
    found = await source.window("m", {"ua": "ns", "ub": "other"}, 60, 30)
    assert {uid: len(series) for uid, series in found.items()} == {"ua": 1}
    assert caplog.messages == [
        "metrics source default: ignoring series of a pod in namespace 'evil' that name rollout ua of namespace ns",
        "metrics source default: ignoring series of a pod in namespace 'ns' that name rollout ub of namespace other",
    ]


@pytest.mark.parametrize("bad", [{"le": "x"}, {"values": [[50, "x"]]}, {"values": None}])
async def test_a_series_that_cannot_be_read_is_left_out_and_said_once(
    prometheus: FakePrometheus, source: Source, caplog: pytest.LogCaptureFixture, bad: dict[str, Any]
) -> None:
    """Any pod may export anything, and the answer is of many rollouts."""
    odd = scraped("ua", namespace="ns", **({"le": bad["le"]} if "le" in bad else {}))
    prometheus.series["m"] = [odd | {n: v for n, v in bad.items() if n == "values"}, scraped("ub", namespace="ns")]
    for _ in range(2):
        assert list(await source.window("m", {"ua": "ns", "ub": "ns"}, 60, 30)) == ["ub"]
    (message,) = caplog.messages
    assert message.startswith("metrics source default: ignoring an unreadable series of m of rollout ua: ")


async def test_a_store_without_the_label_is_said_or_configured(prometheus: FakePrometheus, source: Source) -> None:
    prometheus.series["m"] = [scraped("ua", kubernetes_namespace="ns")]
    with pytest.raises(SourceError, match=r"carries the label namespace, which .* set namespaceLabel"):
        await source.window("m", {"ua": "ns"}, 60, 30)
    for label in ("kubernetes_namespace", ""):
        other = Source("default", prometheus.url, Metrics(), timeout=1, namespace_label=label)
        assert list(await other.window("m", {"ua": "ns"}, 60, 30)) == ["ua"]
        other.close()


@pytest.mark.parametrize(("label", "counted"), [("namespace", False), ("", True)])
async def test_a_faked_series_reaches_no_analysis(prometheus: FakePrometheus, label: str, counted: bool) -> None:
    source = Source("default", prometheus.url, Metrics(), wall=lambda: NOW, timeout=1, namespace_label=label)
    start = position()

    def growing(variant: str, space: str) -> dict[str, Any]:
        version = "cccccccccc" if variant == "canary" else "sssssssss1"
        labels = {"rollout_uid": "ua", "variant": variant, "version": version, "namespace": space}
        return {"metric": labels, "values": [[start - 1, "0"], [start + 1, "0"], [start + 4, "50"]]}

    for metric in (names.METRIC_REQUESTS, names.METRIC_ERRORS):
        prometheus.series[metric] = [growing(variant, "evil") for variant in ("canary", "stable")]
    prometheus.series[names.METRIC_REQUESTS] += [growing("stable", "ns")]
    analyses, _ = await analyses_of(source)
    analyses.request(A, question("ua"), start)
    await analyses.look()
    (first, _) = analyses.evidence(A, start, "default").intervals
    assert ("errorrate" in first.counts) == counted
    source.close()


# ---------------------------------------------------------------- the scheduler


def question(uid: str, *signals: str) -> EvidenceRequest:
    objectives = tuple(
        ObjectiveQueries.of(Objective.model_validate({"name": signal.lower(), "signal": signal}))
        for signal in signals or ("ErrorRate",)
    )
    return EvidenceRequest(uid, "default", 5, "sssssssss1", "cccccccccc", objectives)


def position() -> int:
    return int(NOW) - int(NOW) % 5 - 10


async def analyses_of(source: Source) -> tuple[Analyses, list[Key]]:
    changed: list[Key] = []
    found = Analyses({"default": source}, 0.0, changed.append)
    await found.first_contact()
    return found, changed


async def test_one_query_per_metric_for_all_rollouts_that_are_due(prometheus: FakePrometheus, source: Source) -> None:
    analyses, changed = await analyses_of(source)
    for key, uid in ((A, "ua"), (B, "ub")):
        analyses.request(key, question(uid), position())
    await analyses.look()
    asked = sorted(query.split("{")[0] for query in prometheus.queries if query != "time()")
    whole = [names.METRIC_REQUESTS, names.METRIC_ERRORS]
    assert asked == sorted([*whole, *map(names.shard_metric, whole)])
    assert set(changed) == {A, B}
    evidence = analyses.evidence(A, position(), "default")
    assert evidence.available
    assert [interval.end - interval.start for interval in evidence.intervals] == [5, 5]


async def test_a_failing_query_holds_only_those_who_need_it(prometheus: FakePrometheus, source: Source) -> None:
    prometheus.broken[names.METRIC_COST_SUM] = (422, json.dumps({"error": "query is not liked"}))
    analyses, changed = await analyses_of(source)
    start = position()
    analyses.request(A, question("ua"), start)
    analyses.request(B, question("ub", "ErrorRate", "CostPerRequest"), start)
    await analyses.look()
    assert analyses.evidence(A, start, "default").available
    held = analyses.evidence(B, start, "default")
    assert (held.available, held.intervals) == (False, ())
    assert "query is not liked" in held.problem
    assert set(changed) == {A, B}


async def test_numbers_of_one_rollout_that_nobody_can_count_with_hold_it_alone(
    prometheus: FakePrometheus, source: Source
) -> None:
    start = position()
    for metric in (names.METRIC_REQUESTS, names.METRIC_ERRORS):
        for uid, value in (("ua", "1.7e308"), ("ub", "9")):
            for variant, version in (("canary", "cccccccccc"), ("stable", "sssssssss1")):
                labels = {"rollout_uid": uid, "variant": variant, "version": version, "namespace": "ns"}
                values = [[start - 1, "0"], [start + 1, "0"], [start + 4, value]]
                prometheus.series.setdefault(metric, []).append({"metric": labels, "values": values})
                for shard in map(str, range(names.SHARDS)):
                    divided = {"metric": labels | {"shard": shard}, "values": values}
                    prometheus.series.setdefault(names.shard_metric(metric), []).append(divided)
    analyses, _ = await analyses_of(source)
    analyses.request(A, question("ua"), start)
    analyses.request(B, question("ub"), start)
    await analyses.look()
    assert [counts.canary.n for counts in analyses.evidence(A, start, "default").intervals[0].counts["errorrate"]] == [
        0
    ]
    assert [counts.canary.n for counts in analyses.evidence(B, start, "default").intervals[0].counts["errorrate"]] == [
        9
    ]


async def test_a_fault_in_reading_one_rollouts_metrics_is_said_and_holds_it_alone(
    source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Reader.read

    def read(reader: Reader, *args: Any) -> list[Interval]:
        if reader.request.uid == "ua":
            raise OverflowError("intermediate overflow in fsum")
        return whole(reader, *args)

    analyses, changed = await analyses_of(source)
    start = position()
    analyses.request(A, question("ua"), start)
    analyses.request(B, question("ub"), start)
    with monkeypatch.context() as patched:
        patched.setattr(Reader, "read", read)
        await analyses.look()
    held = analyses.evidence(A, start, "default")
    assert (held.available, held.intervals) == (False, ())
    assert held.problem == "its metrics cannot be evaluated: OverflowError: intermediate overflow in fsum"
    assert len(analyses.evidence(B, start, "default").intervals) == 2
    assert set(changed) == {A, B}
    assert "Traceback" in caplog.text
    analyses._analyses[A].pause_until = 0.0
    await analyses.look()
    assert len(analyses.evidence(A, start, "default").intervals) == 2


async def test_an_outage_loses_no_interval(prometheus: FakePrometheus, source: Source) -> None:
    prometheus.broken[""] = (500, "down")
    analyses, _ = await analyses_of(source)
    start = position()
    analyses.request(A, question("ua"), start)
    await analyses.look()
    assert not analyses.evidence(A, start, "default").available
    prometheus.broken.clear()
    analyses._pause_until.clear()
    await analyses.look()
    found = analyses.evidence(A, start, "default")
    assert found.available
    assert found.intervals[0].start == start


async def test_what_was_folded_in_is_dropped_and_a_step_back_starts_anew(source: Source) -> None:
    analyses, _ = await analyses_of(source)
    start = position()
    analyses.request(A, question("ua"), start)
    await analyses.look()
    analyses.request(A, question("ua"), start + 5)
    assert [i.start for i in analyses.evidence(A, start + 5, "default").intervals] == [start + 5]
    analyses.request(A, question("ua"), start - 50)
    assert analyses.evidence(A, start - 50, "default").intervals == ()
    await analyses.look()
    assert analyses.evidence(A, start - 50, "default").intervals[0].start == start - 50


async def test_after_a_long_outage_it_catches_up_in_portions(source: Source) -> None:
    analyses, _ = await analyses_of(source)
    start = position() - 5 * 250
    analyses.request(A, question("ua"), start)
    await analyses.look()
    assert len(analyses.evidence(A, start, "default").intervals) == 100
    await analyses.look()
    assert len(analyses.evidence(A, start, "default").intervals) == 200


async def test_an_answer_from_before_it_was_asked_confirms_nothing(prometheus: FakePrometheus, source: Source) -> None:
    """A canary was exposed 3 s after its source had died, on the word of its last answer."""
    analyses, changed = await analyses_of(source)
    assert not analyses.evidence(A, None, "default").confirmed
    analyses.check_source(A, "default")
    assert not analyses.evidence(A, None, "default").confirmed
    await analyses.look()
    assert changed == [A]
    assert analyses.evidence(A, None, "default").confirmed
    assert not analyses.evidence(A, None, "default").confirmed, "each raise asks anew"
    analyses.check_source(A, "default")
    prometheus.broken["time()"] = (500, "down")
    await analyses.look()
    found = analyses.evidence(A, None, "default")
    assert (found.confirmed, found.available, changed) == (False, False, [A, A])


async def test_an_unknown_source_is_a_sentence(source: Source) -> None:
    analyses, _ = await analyses_of(source)
    assert "not in the operator's configuration" in analyses.evidence(A, 0, None).problem
    await asyncio.sleep(0)
