"""From samples to intervals: pods come and go, counters restart, scrapes fail; a restart of ours changes no bit."""

import math
import random
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter

import pytest

from promptrollout.api import names
from promptrollout.api.slo import Objective
from promptrollout.engine.statistics.evidence import Arm, Counts, Interval
from promptrollout.operator.evidence.reader import CARRY_SECONDS, Reader
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries, Query
from promptrollout.operator.sources.series import Series, parse_matrix

WIDTH = 30
START = 1_800_000_000
Samples = list[tuple[float, float]]

ERRORS = ObjectiveQueries.of(Objective(name="errors", signal="ErrorRate"))
COST = ObjectiveQueries.of(Objective(name="cost", signal="CostPerRequest"))
SLOW = ObjectiveQueries.of(Objective(name="slow", signal="Latency", threshold_seconds="2.50"))


def question(*objectives: ObjectiveQueries, width: int = WIDTH) -> EvidenceRequest:
    return EvidenceRequest("uid", "default", width, "sssssssss1", "cccccccccc", objectives or (ERRORS,))


def series(
    variant: str,
    samples: Iterable[tuple[float, float]],
    process: str = "pod-a",
    le: float | None = None,
    part: str = "",
    self_named: bool = False,
) -> Series:
    version = "cccccccccc" if variant == "canary" else "sssssssss1"
    shifted = tuple((START + at, value) for at, value in samples)
    return Series(variant, version, process, f"{part}{le or ''}", le, shifted, self_named)


def read(windows: dict[str, list[Series]], *, until: int = WIDTH, reader: Reader | None = None) -> list[Interval]:
    reader = reader or Reader(question(), START)
    return reader.read(asked(windows), START + until)


def asked(windows: dict[str, list[Series]]) -> dict[Query, list[Series]]:
    return {Query("metric", metric): all_series for metric, all_series in windows.items()}


def rates(canary: Samples, bad: Samples, stable: Samples, stable_bad: Samples) -> dict[str, list[Series]]:
    return {
        names.METRIC_REQUESTS: [series("canary", canary), series("stable", stable)],
        names.METRIC_ERRORS: [series("canary", bad), series("stable", stable_bad)],
    }


FLAT: Samples = [(-5, 0), (10, 0), (25, 0)]


def test_an_interval_is_what_the_counters_grew_by() -> None:
    windows = rates([(-5, 10), (10, 12), (25, 20)], [(-5, 1), (25, 3)], [(-5, 100), (25, 190)], [(-5, 7), (25, 7)])
    assert read(windows) == [Interval(START, START + 30, {"errors": (Counts.of(10, 2, 90, 0),)})]


def test_the_end_belongs_to_the_interval_and_the_start_to_the_one_before() -> None:
    windows = rates([(0, 10), (30, 15), (31, 99)], [(0, 0), (30, 0)], [(0, 0), (30, 1)], [(0, 0), (30, 0)])
    assert read(windows)[0].counts == {"errors": (Counts.of(5, 0, 1, 0),)}


def test_a_counter_that_fell_was_restarted() -> None:
    windows = rates([(-5, 50), (10, 60), (15, 4), (25, 9)], FLAT, [(-5, 0), (25, 40)], FLAT)
    assert read(windows)[0].counts["errors"] == (Counts.of(19, 0, 40, 0),)


def test_a_first_sample_is_a_baseline() -> None:
    windows = rates([(10, 50), (25, 60)], FLAT, [(-5, 0), (25, 40)], FLAT)
    assert read(windows)[0].counts["errors"] == (Counts.of(10, 0, 40, 0),)


def test_pods_are_compared_one_by_one_before_they_are_summed() -> None:
    windows = rates([(-5, 50), (25, 60)], FLAT, [(-5, 0), (25, 40)], FLAT)
    windows[names.METRIC_REQUESTS] += [
        series("canary", [(-5, 500)], "pod-gone"),
        series("canary", [(5, 0), (25, 3)], "pod-new"),
    ]
    windows[names.METRIC_ERRORS] += [
        series("canary", [(-5, 0)], "pod-gone"),
        series("canary", [(5, 0), (25, 0)], "pod-new"),
    ]
    assert read(windows)[0].counts["errors"] == (Counts.of(13, 0, 40, 0),)


def test_error_types_are_summed() -> None:
    windows = rates([(-5, 0), (25, 60)], [(-5, 0), (25, 2)], [(-5, 0), (25, 40)], FLAT)
    windows[names.METRIC_ERRORS].append(series("canary", [(-5, 1), (25, 4)], part="timeout"))
    assert read(windows)[0].counts["errors"] == (Counts.of(60, 5, 40, 0),)


def test_another_version_under_the_same_variant_does_not_count() -> None:
    windows = rates([(-5, 0), (25, 60)], FLAT, [(-5, 0), (25, 40)], FLAT)
    old = Series("canary", "oldversion", "pod-a", "", None, ((START - 5.0, 0.0), (START + 25.0, 1_000.0)))
    windows[names.METRIC_REQUESTS].append(old)
    windows[names.METRIC_ERRORS].append(old)
    assert read(windows)[0].counts["errors"] == (Counts.of(60, 0, 40, 0),)


def test_an_interval_that_one_arm_was_not_scraped_in_counts_for_neither_and_nothing_is_lost() -> None:
    windows = rates(
        [(-5, 0), (25, 10), (55, 30)],
        [(-5, 0), (25, 0), (55, 0)],
        [(-5, 0), (55, 100)],
        [(-5, 0), (55, 0)],
    )
    first, second = read(windows, until=60)
    assert first.counts == {}
    assert second.counts == {"errors": (Counts.of(30, 0, 100, 0),)}


def test_nothing_at_all_gives_empty_intervals() -> None:
    assert [interval.counts for interval in read({}, until=90)] == [{}, {}, {}]


def test_what_was_carried_too_long_is_dropped_in_both_arms() -> None:
    late = CARRY_SECONDS + 60
    canary = [(at, float(at + 10)) for at in range(-5, late, 10)]
    stable = [(-5.0, 0.0), (late - 15.0, 5.0), (late - 5.0, 7.0)]
    flat = [(at, 0.0) for at, _ in canary]
    windows = rates(canary, flat, stable, flat)
    found = read(windows, until=late)
    assert [interval.end for interval in found if interval.counts] == [START + late]
    (counts,) = found[-1].counts["errors"]
    assert counts.stable.n == 2
    assert counts.canary.n <= WIDTH


def test_moments_and_the_objectives_are_independent() -> None:
    windows = {
        metric: [series("canary", [(-5, 1), (25, 3)]), series("stable", [(-5, 1), (25, 5)])]
        for metric in (names.METRIC_COST_COUNT, names.METRIC_COST_SUM, names.METRIC_COST_SUMSQ)
    }
    found = read(windows, reader=Reader(question(ERRORS, COST), START))
    assert found[0].counts == {"cost": (Counts(Arm(2, 2, 2), Arm(4, 4, 4)),)}


def test_slow_requests_are_those_outside_the_bucket_whatever_its_spelling() -> None:
    windows = {
        names.METRIC_LATENCY + "_count": [
            series("canary", [(-5, 0), (25, 10)]),
            series("stable", [(-5, 0), (25, 20)]),
        ],
        names.METRIC_LATENCY + "_bucket": [
            series("canary", [(-5, 0), (25, 7)], le=2.5),
            series("canary", [(-5, 0), (25, 1)], le=1.0),
            series("stable", [(-5, 0), (25, 19)], le=2.5),
        ],
    }
    found = read(windows, reader=Reader(question(SLOW), START))
    assert found[0].counts == {"slow": (Counts.of(10, 3, 20, 1),)}


def test_what_two_scrapers_saw_of_one_process_counts_once() -> None:
    windows = rates([], [], [(-5, 0), (25, 40)], FLAT)
    for at in (0, 3):
        samples = [(-6.0 + at, 10.0), (4.0 + at, 14.0 + at), (14.0 + at, 20.0)]
        windows[names.METRIC_REQUESTS].append(series("canary", samples, "0123abcd", self_named=True))
        windows[names.METRIC_ERRORS].append(series("canary", [(t, 1) for t, _ in samples], "0123abcd", self_named=True))
    assert read(windows)[0].counts["errors"] == (Counts.of(10, 0, 40, 0),)


def test_answers_that_overtook_each_other_are_no_restart_but_a_counter_that_begins_anew_is() -> None:
    def of(samples: Samples) -> dict[str, list[Series]]:
        windows = rates([], [], [(-5, 0), (25, 40), (55, 40), (85, 40)], [(-5, 0), (25, 0), (55, 0), (85, 0)])
        windows[names.METRIC_REQUESTS].append(series("canary", samples, "0123abcd", self_named=True))
        windows[names.METRIC_ERRORS].append(series("canary", [(t, 0) for t, _ in samples], "0123abcd", self_named=True))
        return windows

    def counted(samples: Samples) -> list[float]:
        return [counts.canary.n for interval in read(of(samples), until=90) for counts in interval.counts["errors"]]

    assert counted([(-5, 1000), (14, 1010), (15, 1008), (25, 1011), (55, 1012), (85, 1012)]) == [11, 1, 0]
    assert counted([(-5, 1000), (14, 1010), (20, 3), (55, 7), (85, 9)]) == [10, 0, 9]


@pytest.mark.parametrize("self_named", [False, True])
@pytest.mark.parametrize("absent_seconds", [15, 130, 250, 350])
def test_shards_that_begin_anew_after_a_while_without_canary_are_no_restart_of_the_arm(
    self_named: bool, absent_seconds: int
) -> None:
    """A gateway gives stable's shards up some time after a canary left; the next canary's begin at zero."""
    back = START + 20 + absent_seconds
    end = 60 * math.ceil(absent_seconds / 60) + 120

    def recorded(variant: str, shards_only_at: Iterable[int]) -> dict[str, list[Series]]:
        found: dict[str, list[Series]] = {}
        for metric, rate in ((names.METRIC_REQUESTS, 3.2), (names.METRIC_ERRORS, 0.32)):
            whole = [(at, 90_000 * rate + at * rate) for at in range(-10, end + 10, 10)]
            found[metric] = [series(variant, whole, "0123abcd", self_named=self_named)]
            for shard in range(names.SHARDS):
                each = []
                for at in shards_only_at:
                    since = -1000 if START + at <= START + 20 else back - START - 10
                    each.append((at, (at - since) * rate / names.SHARDS))
                one = series(variant, each, "0123abcd", part=f"shard={shard}", self_named=self_named)
                found.setdefault(names.shard_metric(metric), []).append(replace(one, labels={"shard": str(shard)}))
        return found

    shown = [at for at in range(-10, end + 10, 10) if at <= 20 or START + at >= back]
    windows = recorded("stable", shown)
    for metric, all_series in recorded("canary", shown).items():
        windows[metric] += all_series
    found = read(windows, until=end)
    counted = [counts.stable.n for interval in found for counts in interval.counts["errors"]]
    assert counted == pytest.approx([96.0] * len(found))
    assert found[-1].counts["errors"][0].stable.shards
    assert sum(n for n, _ in found[-1].counts["errors"][0].stable.shards) == pytest.approx(96)


def test_a_process_is_counted_from_when_it_has_the_bucket_of_a_new_threshold() -> None:
    def windows(bucket: Samples) -> dict[str, list[Series]]:
        return {
            names.METRIC_LATENCY + "_count": [
                series("canary", [(-5, 0), (25, 10)]),
                series("stable", [(-5, 500), (5, 600), (15, 700), (25, 720)]),
                series("stable", [(-5, 100), (25, 110)], "pod-b"),
            ],
            names.METRIC_LATENCY + "_bucket": [
                series("canary", [(-5, 0), (25, 7)], le=2.5),
                series("stable", bucket, le=2.5),
                series("stable", [(-5, 90), (25, 99)], "pod-b", le=2.5),
            ],
        }

    found = read(windows([(15, 0), (25, 20)]), reader=Reader(question(SLOW), START))
    assert found[0].counts == {"slow": (Counts.of(10, 3, 30, 1),)}
    # a pod that has not taken the threshold over yet: none of its requests is known to be slow
    found = read(windows([]), reader=Reader(question(SLOW), START))
    assert found[0].counts == {"slow": (Counts.of(10, 3, 10, 1),)}


def labels_of(scraper: str, **changes: str) -> dict[str, str]:
    own = {"rollout_uid": "uid", "variant": "canary", "version": "cccccccccc", "model": "m", "process": "0123abcd"}
    return own | {"job": scraper, "instance": f"10.0.0.1:9090/{scraper}", "replica": scraper} | changes


def test_a_process_is_known_by_its_own_label_whoever_scraped_it() -> None:
    def parsed(*all_labels: dict[str, str]) -> list[Series]:
        return parse_matrix([{"metric": labels, "values": [[START + 5, "3"]]} for labels in all_labels], START, 2e9)[
            "uid"
        ]

    one, other = parsed(labels_of("annotations"), labels_of("podmonitor"))
    assert (one.process, one.part, one.self_named) == (other.process, other.part, True) == ("0123abcd", "", True)
    quick, slow = parsed(labels_of("a", le="2.5"), labels_of("b", le="2.50"))
    assert (quick.part, quick.le) == (slow.part, slow.le)
    timeout, broken = parsed(labels_of("a", error_type="timeout"), labels_of("a", error_type="broken"))
    assert timeout.part != broken.part
    # a gateway of an older release, or a scrape job's own label `process`
    for process in ("", "gateway"):
        one, other = parsed(labels_of("a", process=process), labels_of("b", process=process))
        assert one.process != other.process
        assert not one.self_named
        assert parsed(labels_of("a", process=process, le="1"))[0].process == one.process


@pytest.mark.parametrize("bad", ["NaN", "+Inf", "-1"])
def test_values_that_are_none_are_missing(bad: str) -> None:
    labels = {"rollout_uid": "uid", "variant": "canary", "version": "cccccccccc"}
    answer = [{"metric": labels, "values": [[START + 5, "3"], [START + 10, bad], [START + 15, "4"]]}]
    found = parse_matrix(answer, START, START + 30)
    assert [value for _, value in found["uid"][0].samples] == [3, 4]


def test_samples_outside_the_window_are_left_out() -> None:
    labels = {"rollout_uid": "uid", "variant": "canary", "version": "cccccccccc"}
    answer = [{"metric": labels, "values": [[START, "1"], [START + 30, "2"], [START + 30.5, "3"]]}]
    assert [value for _, value in parse_matrix(answer, START, START + 30)["uid"][0].samples] == [2]


def history(rng: random.Random, seconds: int, self_named: bool) -> dict[str, list[Series]]:
    """A wild one: processes come, go and restart, scrapes fail, arms fall silent.

    Where processes name themselves, two scrapers ask them, and may be answered in another order than they asked.
    """
    windows: dict[str, list[Series]] = {names.METRIC_REQUESTS: [], names.METRIC_ERRORS: []}
    outages = [(variant, at, at + rng.randrange(10, 500)) for variant in ("canary", "stable") for at in (700, 1500)]
    for variant in ("canary", "stable"):
        for pod in range(3):
            born, dies = rng.randrange(-900, 600), rng.randrange(900, seconds + 600)
            counted: list[tuple[float, float]] = []
            total = bad = 0.0
            for _ in range(born, dies + 1):
                total, bad = total + rng.randrange(9) * 0.1, bad + rng.randrange(2) * 0.1
                if rng.random() < 0.002:
                    total = bad = 0.0
                counted.append((total, bad))
            found: dict[str, tuple[Samples, Samples]] = {}
            for scraper in range(2 if self_named else 1):
                for at in range(born + scraper, dies, 7):
                    silent = any(v == variant and a <= at < b for v, a, b in outages)
                    if at < seconds and not silent and rng.random() > 0.1:
                        answered = min(at + (rng.randrange(3) if self_named else 0), dies)
                        samples = found.setdefault(f"scraper {scraper}", ([], []))
                        for each, value in zip(samples, counted[answered - born], strict=True):
                            each.append((float(at), value))
            for pair in found.values():
                for metric, each in zip((names.METRIC_REQUESTS, names.METRIC_ERRORS), pair, strict=True):
                    windows[metric].append(series(variant, each, f"pod-{pod}", self_named=self_named))
    return windows


def cut(windows: dict[str, list[Series]], after: int, until: int) -> dict[str, list[Series]]:
    """What Prometheus answers for (after, until]: series without samples in it are absent."""
    found = {}
    for metric, all_series in windows.items():
        kept = []
        for s in all_series:
            first, end = (bisect_right(s.samples, at, key=itemgetter(0)) for at in (after, until))
            samples = s.samples[first:end]
            if samples:
                kept.append(replace(s, samples=samples))
        found[metric] = kept
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [5, 30, 420])
@pytest.mark.parametrize("self_named", [False, True])
def test_a_reader_that_was_restarted_at_any_interval_gives_the_same_bits(
    seed: int, width: int, self_named: bool
) -> None:
    rng = random.Random(seed)
    seconds = 2520
    windows = history(rng, seconds, self_named)
    first = math.ceil(START / width) * width
    steady = Reader(question(width=width), first)
    wanted: list[Interval] = []
    found: list[Interval] = []
    restarted = Reader(question(width=width), first)
    while steady.position < START + seconds - width:
        end = steady.position + width
        wanted += steady.read(asked(cut(windows, steady.start_of_window(), end)), end)
        if rng.random() < 0.2:
            restarted = Reader(question(width=width), restarted.position)
        if rng.random() < 0.7 or end >= START + seconds - 2 * width:  # else it was away and catches up later
            found += restarted.read(asked(cut(windows, restarted.start_of_window(), end)), end)
    assert found == wanted[: len(found)]
    assert len(found) >= len(wanted) - 2
    assert any(interval.counts for interval in wanted)
