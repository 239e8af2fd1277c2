"""Recorded and historical metrics: read as written, never scaled, and said where they do not fit."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner

from promptrollout.api import names
from promptrollout.cli.main import main
from promptrollout.engine.statistics.evidence import Arm, Counts, Interval
from promptrollout.simulation.history import history
from promptrollout.simulation.recorded import Recorded, RecordedInterval, line_of, read, write
from promptrollout.simulation.world import simulate
from tests.unit.operator.test_prometheus import FakePrometheus
from tests.unit.simulation.steady import Steady, rules

ROLLOUT = Path(__file__).parents[3] / "examples" / "simulate" / "rollout.yaml"
START = 1_800_000_000
SHARDS = tuple((float(g), 1.0) for g in range(32))


def recording(traffic: Steady, *weights: tuple[int, int], baseline: int = 60) -> list[RecordedInterval]:
    """What would have been recorded of `traffic`, so many intervals at each weight."""
    lines, k = [], -baseline
    for weight, count in ((0, baseline), *weights):
        for _ in range(count):
            at = START + 30 * k
            lines.append(line_of(Interval(at, at + 30, traffic.counts(k, weight)), weight))
            k += 1
    return lines


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    cost = Counts(Arm(10, 0.02, 0.00005, SHARDS, 0.01, 0.002), Arm(90, 0.2, 0.0007, SHARDS))
    interval = Interval(START, START + 30, {"cost": (cost, cost), "errors": (Counts.of(10, 1, 90, 2),)})
    write(tmp_path / "m.jsonl", [line_of(interval, 10)])
    assert read(tmp_path / "m.jsonl").counts(0, 10) == interval.counts


def test_a_replay_by_the_same_rules_decides_the_same() -> None:
    for rates in ((0.01, 0.01), (0.03, 0.01)):
        live = simulate(rules(), Steady(rates={"errors": rates}))
        lines = recording(Steady(rates={"errors": rates}), (10, 20), (50, 40), (100, 5))
        found = Recorded(lines)
        again = simulate(rules(), found, exposed_at=found.exposed_at)
        assert (again.outcome, again.seconds, again.tolls) == (live.outcome, live.seconds, live.tolls)
        assert list(found.warnings(["errors"])) == []


def test_another_weight_than_was_recorded_is_said_and_nothing_is_scaled() -> None:
    found = Recorded(recording(Steady(), (5, 200)))
    run = simulate(rules(), found, exposed_at=found.exposed_at)
    assert run.canary_requests == pytest.approx(run.seconds / 30 * 30), "5 % of 600 requests, all the time"
    (warning,) = found.warnings(["errors"])
    assert "from 0 s on the rollout would be at 10 %, but 5 % is recorded" in warning
    assert "unscaled" in warning


def test_what_a_recording_lacks_is_said() -> None:
    lines = recording(Steady(rates={"other": (0.01, 0.01)}), (10, 30))
    del lines[70]
    found = Recorded(lines)
    warnings = list(found.warnings(["errors"]))
    assert warnings[0].startswith("the objective errors was not recorded")
    assert warnings[1].startswith("other was recorded")
    assert warnings[2].startswith("1 of 30 intervals have no line")


def test_outages_are_replayed() -> None:
    lines = recording(Steady(rates={"errors": (0.05, 0.01)}), (10, 40))
    lines = [
        line.model_copy(update={"available": not START <= line.start < START + 600, "provider": "up"}) for line in lines
    ]
    run = simulate(rules(), Recorded(lines), exposed_at=START)
    assert (run.outcome, run.seconds) == ("RolledBack", 630)


GOOD = {"start": START, "end": START + 30, "weight": 10, "counts": {}}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["{"], r"m\.jsonl:1: Invalid JSON"),
        ([GOOD | {"wieght": 5}], r"m\.jsonl:1: wieght: unknown field"),
        ([GOOD, GOOD | {"start": START + 10, "end": START + 40}], r":2: .*must be a multiple of the interval"),
        ([GOOD | {"end": START}], "must be after start"),
        ([GOOD | {"counts": {"e": [{"canary": {"n": -1, "total": 0}}]}}], r"counts\.e\.0\.canary\.n"),
        ([GOOD, GOOD], "twice"),
        ([GOOD, GOOD | {"start": START + 60, "end": START + 120}], "30 s and of 60 s"),
        (
            [GOOD, GOOD | {"start": START + 3_000_000, "end": START + 3_000_030}],
            r"m\.jsonl:2: starts at 1803000000, more than 100,000 intervals after the canary's first exposure",
        ),
        ([GOOD | {"weight": 0}], "the canary served no users"),
        ([], "it has no interval"),
        (
            [GOOD | {"counts": {"e": [{"canary": {"n": 1, "total": 0, "shards": [[1, 0]]}}]}}],
            "1 shards: give all 32",
        ),
    ],
)
def test_a_bad_file_names_line_field_and_reason(tmp_path: Path, lines: list[object], reason: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(ValueError, match=reason):
        read(path)


# ---------------------------------------------------------------- historical


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


def series(metric: str, variant: str, version: str, first: int, last: int, per_scrape: float) -> dict[str, object]:
    labels = {"__name__": metric, "rollout_uid": "uid", "variant": variant, "version": version, "process": "0123abcd"}
    values = [[at, str(per_scrape * (at - first) / 10)] for at in range(first, last + 1, 10)]
    return {"metric": labels | {"namespace": "ns", "rollout": "app", "model": "m"}, "values": values}


async def test_history_is_read_as_the_operator_would_have_read_it(prometheus: FakePrometheus, tmp_path: Path) -> None:
    end = int(time.time()) // 30 * 30 - 300
    start, before = end - 900, end - 900 - 3000
    for metric, canary, stable in ((names.METRIC_REQUESTS, 10.0, 90.0), (names.METRIC_ERRORS, 2.0, 0.9)):
        prometheus.series[metric] = [
            series(metric, "canary", "cccccccccc", start, end, canary),
            series(metric, "stable", "ssssssssss", before, end, stable),
        ]

    def ask(url: str) -> list[RecordedInterval]:
        return history(url, "app", rules(), "uid", "ssssssssss", "cccccccccc", start, end, "ns")

    lines = await asyncio.to_thread(ask, prometheus.url)
    found = Recorded(lines)
    assert found.intervals == 30
    counts = found.counts(10, 10)["errors"][0]
    assert (counts.canary.n, counts.canary.total) == pytest.approx((30, 6))
    assert (counts.stable.n, counts.stable.total) == pytest.approx((270, 2.7))
    run = simulate(rules(), found, exposed_at=found.exposed_at)
    assert run.outcome == "RolledBack"
    assert "the recording has no weights" in " ".join(found.warnings(["errors"]))

    kept = tmp_path / "kept.jsonl"
    arguments = ["simulate", "-f", str(ROLLOUT), "--prometheus", prometheus.url, "--from", str(start), "--to", str(end)]
    arguments += ["--uid", "uid", "--stable", "ssssssssss", "--canary", "cccccccccc", "-n", "ns", "--record", str(kept)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert result.exit_code == 0, result.output
    assert "rolled back" in result.output
    assert read(kept).counts(10, 10)["errors"] == (counts,)

    with pytest.raises(ValueError, match="cannot be reached"):
        await asyncio.to_thread(ask, "http://127.0.0.1:9")
