"""Prometheus' text format of all counters.

All series are copied first, each in one step; then the text is made in pieces, and other requests run in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import get_args

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from promptrollout.api import names
from promptrollout.gateway.applications.feedback import NotCounted
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.metrics.text import Copy, series_lines, shard_lines
from promptrollout.gateway.metrics.unreported_renders import UnreportedRenders
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.llm.answers.schema_process import NOT_JUDGED

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINES_PER_PIECE = 500
"""About 0.2 ms, in which no request runs."""
SERIES_PER_PIECE = 16
"""Copied in one step; with shards about 0.5 ms."""


@dataclass(frozen=True, slots=True)
class PodState:
    """State of the process that is exported besides the counters."""

    rollouts: Iterable[LiveRollout]
    retries: Mapping[str, int]
    renders: UnreportedRenders
    api_contact_at: float | None
    """On the monotonic clock."""
    ready: bool
    concurrency_limit: int
    """Requests that may be in flight now."""
    caller_keys: int | None = None
    """None: callers need no keys."""
    providers_down: Collection[str] = ()
    """Names of providers that are unreachable, or fail nearly always."""
    token_reviews_forbidden: bool = False


async def exposition(counters: Counters, state: PodState) -> AsyncIterator[bytes]:
    """The whole page in pieces."""
    copies, live = [], list(counters.live())
    for at in range(0, len(live), SERIES_PER_PIECE):
        copies += [Copy.of(series, counters.process) for series in live[at : at + SERIES_PER_PIECE]]
        await asyncio.sleep(0)
    own = _Page(list(_process_families(counters, state)))
    lines = chain(series_lines(copies), shard_lines(copies))
    while piece := list(islice(lines, LINES_PER_PIECE)):
        yield ("\n".join(piece) + "\n").encode()
        await asyncio.sleep(0)
    yield await asyncio.to_thread(generate_latest, own)


class _Page(Collector):
    """Families that were collected already, and those of the process, whose files are read by the thread that asks."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield from REGISTRY.collect()


Values = Iterable[tuple[Sequence[str], float]]
"""With the values of their labels."""


def _counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def _by(counted: Mapping[str, int]) -> Values:
    return [((value,), n) for value, n in sorted(counted.items())]


def _process_families(counters: Counters, state: PodState) -> Iterator[Metric]:
    """What the pod counts of itself."""
    gateway, rollout = "promptrollout_gateway", ("rollout_uid", "rollout")
    rollouts = [((s.configuration.spec.rollout_uid, s.configuration.name), s) for s in state.rollouts]
    circuits = [((*of, *labels.values()), circuit) for of, s in rollouts for labels, circuit in s.circuits]
    circuit_labels = (*rollout, "arm", "version", "provider", "model")
    yield _counter(names.METRIC_UNASSIGNED, "Requests without a stickiness key.", rollout, counters.unassigned.items())
    yield _counter(
        names.METRIC_DIVERTED,
        "Canary requests answered by stable while only the canary's provider cannot be reached.",
        rollout,
        counters.diverted.items(),
    )
    yield _gauge(
        names.METRIC_CIRCUIT_OPEN,
        "1 while a version's requests are kept from a provider that fails.",
        circuit_labels,
        ((of, int(not circuit.closed)) for of, circuit in circuits),
    )
    yield _counter(
        names.METRIC_CIRCUIT_OPENED,
        "How often a version's requests were kept from a provider that failed.",
        circuit_labels,
        ((of, circuit.opened) for of, circuit in circuits),
    )
    yield _gauge(
        f"{gateway}_config_sequence",
        "The last configuration sequence that is fully in service.",
        rollout,
        ((of, s.acknowledged) for of, s in rollouts),
    )
    yield _gauge(
        f"{gateway}_overridden",
        "1 while the emergency override holds the rollout on stable.",
        rollout,
        ((of, int(s.overridden)) for of, s in rollouts),
    )
    yield CounterMetricFamily(f"{gateway}_config_swaps", "Configurations put in service.", counters.swaps)
    yield _counter(
        f"{gateway}_config_refused",
        "Configurations that were refused, by reason.",
        ("reason",),
        _by({"older_sequence": 0, "changed_content": 0, "invalid": 0, "key_missing": 0, **counters.refused}),
    )
    yield _counter(
        f"{gateway}_disk_errors",
        "Failures to read or write the last good configuration on disk.",
        ("operation",),
        _by({"read": 0, "write": 0, "delete": 0, "checksum": 0, **counters.disk_errors}),
    )
    yield _counter(
        f"{gateway}_rejected_requests",
        "Requests refused for an error of the caller; they count for no arm.",
        ("code",),
        _by(counters.rejected),
    )
    yield _counter(
        f"{gateway}_votes_not_counted",
        "Feedback and scores that were accepted but not counted, by reason.",
        ("reason",),
        _by({**dict.fromkeys(get_args(NotCounted), 0), **counters.votes_not_counted}),
    )
    yield _counter(
        f"{gateway}_answers_not_judged",
        "Complete answers that were not checked against their output schema, by reason.",
        ("reason",),
        _by({**dict.fromkeys(NOT_JUDGED, 0), **counters.answers_not_judged}),
    )
    yield CounterMetricFamily(
        f"{gateway}_disconnects", "Callers that closed the connection early.", counters.disconnects
    )
    yield _counter(f"{gateway}_provider_retries", "Retries of provider calls.", ("provider",), _by(state.retries))
    yield GaugeMetricFamily(
        f"{gateway}_pending_renders", "Rendered prompts without a report so far.", len(state.renders)
    )
    yield CounterMetricFamily(
        f"{gateway}_untracked_renders",
        "Rendered prompts that count for no arm, because too many wait for a report.",
        state.renders.untracked,
    )
    yield GaugeMetricFamily(
        names.METRIC_SHARDS_WITHHELD,
        "Rollouts with a canary whose shards are not exported, because the limit is reached.",
        len(counters.withheld),
    )
    yield GaugeMetricFamily(f"{gateway}_in_flight_requests", "Requests in progress.", counters.in_flight)
    yield GaugeMetricFamily(f"{gateway}_queued_requests", "Requests in the queue.", counters.queued)
    yield GaugeMetricFamily(
        f"{gateway}_concurrency_limit",
        "Requests that may be in progress: fewer than maxConcurrentRequests when the CPU is overloaded.",
        state.concurrency_limit,
    )
    if state.caller_keys is not None:
        yield GaugeMetricFamily(f"{gateway}_caller_keys", "Caller keys in use.", state.caller_keys)
    yield _gauge(
        f"{gateway}_provider_down",
        "1 while the provider cannot be reached, or fails nearly always.",
        ("provider",),
        (((name,), 1) for name in state.providers_down),
    )
    forbidden = int(state.token_reviews_forbidden)
    yield GaugeMetricFamily(
        f"{gateway}_token_reviews_forbidden", "1 while the gateway may not review tokens.", forbidden
    )
    yield GaugeMetricFamily(f"{gateway}_ready", "1 when the pod takes traffic.", int(state.ready))
    if state.api_contact_at is not None:
        yield GaugeMetricFamily(
            f"{gateway}_api_contact_age_seconds",
            "Time since the API server last answered.",
            round(time.monotonic() - state.api_contact_at, 3),
        )
