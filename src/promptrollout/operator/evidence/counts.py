"""From sums of increments to the engine's counts of both arms: rates, means, histograms of scores, shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from promptrollout.api.names import SHARDS
from promptrollout.engine.objectives.signals import Signal
from promptrollout.engine.statistics.evidence import Arm, Counts, Shard

WHOLE = -1
"""In the place of a shard's number: not divided."""
Sums = dict[str, dict[tuple[str, int], float]]
"""By arm, then by role and shard."""
_POINTS = range(1, 6)


def counts_of(signal: Signal, sums: Sums) -> Counts:
    """Both arms over the same seconds. Shards stand in both of them or in neither."""
    canary, stable = (_arm(signal, sums[arm]) for arm in ("canary", "stable"))
    shards = [_shards(signal, sums[arm], whole) for arm, whole in (("canary", canary), ("stable", stable))]
    if all(shards):
        canary, stable = (replace(arm, shards=each) for arm, each in zip((canary, stable), shards, strict=True))
    return Counts(canary=canary, stable=stable)


def _arm(signal: Signal, sums: Mapping[tuple[str, int], float]) -> Arm:
    if signal.counters and signal.counters[0][0] == "1":
        scores = _of_points([sums.get((str(points), WHOLE), 0.0) for points in _POINTS])
        return replace(scores, missing=sums.get(("missing", WHOLE), 0.0))
    n, total = _pair(signal, sums, WHOLE)
    squared, input_usd, saved_usd = (
        sums.get((role, WHOLE), 0.0) for role in ("total_squared", "input_usd", "saved_usd")
    )
    return Arm(n, total, squared, input_usd=input_usd, saved_usd=saved_usd)


def _of_points(buckets: list[float]) -> Arm:
    """Cumulative buckets at 1 to 5 hold whole scores exactly, so all their moments are exact."""
    each = [max(0.0, upper - lower) for lower, upper in zip((0.0, *buckets), buckets, strict=False)]
    return Arm(
        sum(each),
        sum(points * number for points, number in zip(_POINTS, each, strict=True)),
        sum(points * points * number for points, number in zip(_POINTS, each, strict=True)),
    )


def _pair(signal: Signal, sums: Mapping[tuple[str, int], float], shard: int) -> Shard:
    """`n` and `total`, with 0 <= total <= n for a rate: a new bucket, or a sample that was left out, makes a counter
    too low for a moment."""
    n = sums.get(("n", shard), 0.0)
    if ("spared", shard) in sums:
        return n, min(n, max(0.0, n - sums["spared", shard]))
    total = sums.get(("total", shard), 0.0)
    return n, min(n, total) if signal.kind == "rate" else total


def _shards(signal: Signal, sums: Mapping[tuple[str, int], float], whole: Arm) -> tuple[Shard, ...]:
    """All shards, if they add up to the arm: they do not while pods that do not export them take part."""
    roles = [role for role, _ in signal.shard_counters]
    if not roles or any((role, shard) not in sums for role in roles for shard in range(SHARDS)):
        return ()
    found = tuple(_pair(signal, sums, shard) for shard in range(SHARDS))
    n = math.fsum(n for n, _ in found)
    return found if math.isclose(n, whole.n, rel_tol=1e-9, abs_tol=1e-9) else ()
