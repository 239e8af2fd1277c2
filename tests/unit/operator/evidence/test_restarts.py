"""A reader that is restarted at any interval gives the same bits: with strata, shards, a baseline and people's own
queries, on wild histories."""

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any

import pytest

from promptrollout.api import names
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.evidence import Interval
from promptrollout.operator.evidence.reader import Reader
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries, Query
from promptrollout.operator.sources.series import Series
from tests.objectives import RATIO

START = 1_800_000_000
WIDTH = 30
SECONDS = 2520
VERSIONS = {"canary": "cccccccccc", "stable": "sssssssss1"}
Windows = dict[Query, list[Series]]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "shards": {"signal": "ErrorRate"},
    "optional parts": {"signal": "CostPerRequest"},
    "ages": {"signal": "NegativeFeedbackRate"},
    "judges and ages": {"signal": "JudgeScore", "dimension": "helpful"},
    "cache": {"signal": "TimeToFirstToken", "thresholdSeconds": "1"},
    "own queries": {"signal": "Custom", "custom": RATIO},
}
STRATA = {"age": ("1m", "10m"), "judge": ("j1", "j2"), "cache": ("hit", "miss")}


def asked(kind: str, exposed_at: int) -> EvidenceRequest:
    measured = ObjectiveQueries.of(Objective.model_validate({"name": "it", **OBJECTIVES[kind]}))
    return EvidenceRequest(
        "uid", "d", WIDTH, VERSIONS["stable"], VERSIONS["canary"], (measured,), exposed_at=exposed_at
    )


def kinds_of_series(question: EvidenceRequest, arm: str) -> Iterator[tuple[Query, dict[str, str]]]:
    """Each series that a target may have, by the query that finds it."""
    (measured,) = question.objectives
    for _, of, query in question.own_queries(measured):
        if of == arm:
            yield query, {}
    labels: list[dict[str, str]] = [{}]
    for name in measured.signal.strata:
        labels = [each | {name: value} for each in labels for value in STRATA[name]]
    for wanted in measured.selectors:
        if wanted.divided and question.objectives[0].signal is not SIGNALS["ErrorRate"]:
            continue  # one signal shows what shards do, at a fraction of the time
        for each in labels:
            own = each | dict(wanted.counter.labels)
            shards = range(names.SHARDS) if wanted.divided else [None]
            yield from ((wanted.query, own if shard is None else own | {"shard": str(shard)}) for shard in shards)


def history(rng: random.Random, question: EvidenceRequest) -> Windows:
    """Targets come, go and restart; series of theirs appear late and vanish for a while; scrapes fail."""
    windows: Windows = {query: [] for query in question.queries}
    for arm in VERSIONS:
        outages = [(at, at + rng.randrange(10, 500)) for at in (700, 1500)]
        for target in range(2):
            born, dies = rng.randrange(-900, 600), rng.randrange(900, SECONDS + 600)
            scraped = [
                at
                for at in range(born, min(dies, SECONDS), 10)
                if rng.random() > 0.1 and not any(a <= at < b for a, b in outages)
            ]
            restarts = [at for at in scraped if rng.random() < 0.02]
            for query, labels in kinds_of_series(question, arm):
                absent = rng.randrange(born, SECONDS) if rng.random() < 0.3 else dies
                samples, value, before = [], 0.0, born
                for at in scraped:
                    if any(before < restart <= at for restart in restarts):
                        value = 0.0
                    value, before = value + rng.randrange(9) * 0.1, at
                    if not absent <= at < absent + 400:
                        samples.append((float(START + at), value))
                le = float(labels["le"]) if "le" in labels else None
                part = ",".join(f"{name}={label}" for name, label in sorted(labels.items()))
                series = Series(arm, VERSIONS[arm], f"t{target}", part, le, tuple(samples), False, labels)
                windows[query].append(series)
    return windows


def cut(windows: Windows, after: int, until: int) -> Windows:
    found: Windows = {}
    for query, all_series in windows.items():
        each = ((s, *(bisect_right(s.samples, at, key=itemgetter(0)) for at in (after, until))) for s in all_series)
        found[query] = [replace(s, samples=s.samples[first:end]) for s, first, end in each if first < end]
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_restart_changes_no_bit(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    first = math.ceil(START / WIDTH) * WIDTH
    question = asked(kind, exposed_at=first + 20 * WIDTH + rng.randrange(WIDTH))
    windows = history(rng, question)
    steady, restarted = Reader(question, first), Reader(question, first)
    wanted: list[Interval] = []
    found: list[Interval] = []
    while steady.position < START + SECONDS - WIDTH:
        end = steady.position + WIDTH
        wanted += steady.read(cut(windows, steady.start_of_window(), end), end)
        if rng.random() < 0.2:
            restarted = Reader(question, restarted.position)
        if rng.random() < 0.7 or end >= START + SECONDS - 2 * WIDTH:  # else it was away and catches up later
            found += restarted.read(cut(windows, restarted.start_of_window(), end), end)
    assert found == wanted[: len(found)]
    assert len(found) >= len(wanted) - 2
    baseline = [i for i in wanted if i.end <= question.exposed_at and i.counts]
    assert all(counts.canary.n == 0 for interval in baseline for counts in interval.counts["it"])
    assert any(counts.canary.n for interval in wanted if interval.counts for counts in interval.counts["it"])
