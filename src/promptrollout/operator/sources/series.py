"""Raw samples as a Prometheus-compatible store gives them, and whose counters they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from promptrollout.api.names import LABEL_PROCESS

_PROCESS_ID = re.compile("[0-9a-f]{8}")
_PARTS = frozenset({"age", "cache", "dimension", "error_type", "judge", "rating", "score", "shard", "type"})
"""Labels that divide one process's counters of one metric, besides `le`, which has several spellings."""
_LARGEST = 2.0**106
"""The square of the largest whole number that a float counts exactly up to: sums of squares may come near it, and what
is computed from such numbers does not overflow."""
_TARGET = ("container", "endpoint", "instance", "job", "namespace", "pod")
"""Labels by which scrape jobs tell apart what they scrape."""


@dataclass(frozen=True, slots=True)
class Series:
    """Raw samples of one series, oldest first: (timestamp, value). NaN, negative
    values and values too large to count on are left out."""

    variant: str
    version: str
    process: str
    """Whose counter it is: the gateway's process, or else what was scraped, by all its labels."""
    part: str
    """Which of the process's counters of this metric and arm."""
    le: float | None
    samples: tuple[tuple[float, float], ...]
    self_named: bool = True
    """The process names itself, so that samples of several scrapers are known to be of one counter."""
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_matrix(
    result: Any, after: float, until: float, unreadable: Callable[[str, Exception], None] | None = None
) -> dict[str, list[Series]]:
    """A range vector's answer by rollout uid, with samples in (after, until] only: versions of Prometheus differ in
    whether the left end belongs to the range.

    Any pod may export anything: `unreadable` is called with the rollout uid of a series that cannot be read, and the
    others are still read.
    """
    found: dict[str, list[Series]] = {}
    if not isinstance(result, list):
        raise TypeError("not a list")
    for entry in result:
        labels: dict[str, str] = entry["metric"]
        uid = labels.get("rollout_uid", "")
        try:
            series = _gateway_series(labels, entry["values"], after, until)
        except (TypeError, ValueError, KeyError) as error:
            if unreadable is not None:
                unreadable(uid, error)
            continue
        found.setdefault(uid, []).append(series)
    return found


def _gateway_series(labels: Mapping[str, str], values: Any, after: float, until: float) -> Series:
    edge = labels.get("le")
    le = None if edge is None else float(edge)
    process = labels.get(LABEL_PROCESS, "")
    self_named = _PROCESS_ID.fullmatch(process) is not None
    if not self_named:
        process = _joined(labels, labels.keys() - _PARTS - {"__name__", "le"})
    part = "/".join([f"{name}={labels[name]}" for name in labels if name in _PARTS])
    variant, version = labels.get("variant", ""), labels.get("version", "")
    return Series(variant, version, process, part, le, _samples(values, after, until), self_named, labels)


def parse_own(result: Any, after: float, until: float) -> list[Series]:
    """The answer to a Custom query: series by target, distinguished by all their labels."""
    if not isinstance(result, list):
        raise TypeError("not a list")
    found = []
    for entry in result:
        labels: dict[str, str] = entry["metric"]
        process = _joined(labels, labels.keys() & set(_TARGET))
        part = _joined(labels, labels.keys() - set(_TARGET))
        samples = _samples(entry["values"], after, until)
        found.append(Series("", "", process, part, None, samples, False, labels))
    return found


def _samples(values: Any, after: float, until: float) -> tuple[tuple[float, float], ...]:
    """Staleness markers are NaN, and no sample of a counter is negative."""
    found = []
    for at, text in values:
        value = float(text)
        if after < at <= until and 0 <= value <= _LARGEST:
            found.append((float(at), value))
    return tuple(found)


def _joined(labels: Mapping[str, str], names: Iterable[str]) -> str:
    return ",".join(f"{name}={labels[name]}" for name in sorted(names))


def spellings(edge: str) -> set[str]:
    """How an exporter or Prometheus itself may write a bucket's edge."""
    value = float(edge)
    plain = edge.rstrip("0").rstrip(".") if "." in edge else edge
    found = {edge, plain, f"{value:g}", repr(value)}
    return {spelling for spelling in found if "e" not in spelling}
