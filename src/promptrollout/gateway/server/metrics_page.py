"""Prometheus' text format of all counters.

All series are copied first, each in one step; then the text is made in pieces, and other requests run in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import get_args

from prometheus_client import REGISTRY, generate_latest

from promptrollout.api import names
from promptrollout.gateway.applications.feedback import NotCounted
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.metrics.text import Copy, labels_text, series_lines, shard_lines
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
    own = list(_process_lines(counters, state))
    lines = chain(series_lines(copies), shard_lines(copies))
    while piece := list(islice(lines, LINES_PER_PIECE)):
        yield ("\n".join(piece) + "\n").encode()
        await asyncio.sleep(0)
    yield ("\n".join(own) + "\n").encode()
    yield await asyncio.to_thread(generate_latest, REGISTRY)


def _process_lines(counters: Counters, state: PodState) -> Iterator[str]:
    """The counters of the process itself."""

    def family(name: str, kind: str, help_text: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
        yield f"# HELP {name} {help_text}"
        yield f"# TYPE {name} {kind}"
        for labels, value in values:
            yield f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"

    def by_rollout(counted: Mapping[tuple[str, str], int]) -> list[tuple[str, float]]:
        return [(labels_text(rollout_uid=uid, rollout=name), n) for (uid, name), n in counted.items()]

    def by(label: str, counted: Mapping[str, int]) -> list[tuple[str, float]]:
        return [(labels_text(**{label: value}), n) for value, n in sorted(counted.items())]

    gateway = "promptrollout_gateway"
    yield from family(
        names.METRIC_UNASSIGNED, "counter", "Requests without a stickiness key.", by_rollout(counters.unassigned)
    )
    yield from family(
        names.METRIC_DIVERTED,
        "counter",
        "Canary requests answered by stable while only the canary's provider cannot be reached.",
        by_rollout(counters.diverted),
    )
    circuits = [
        (labels_text(rollout_uid=s.configuration.spec.rollout_uid, rollout=s.configuration.name, **of), circuit)
        for s in state.rollouts
        for of, circuit in s.circuits
    ]
    yield from family(
        names.METRIC_CIRCUIT_OPEN,
        "gauge",
        "1 while a version's requests are kept from a provider that fails.",
        ((labels, int(not circuit.closed)) for labels, circuit in circuits),
    )
    yield from family(
        names.METRIC_CIRCUIT_OPENED,
        "counter",
        "How often a version's requests were kept from a provider that failed.",
        ((labels, circuit.opened) for labels, circuit in circuits),
    )
    yield from family(
        f"{gateway}_config_sequence",
        "gauge",
        "The last configuration sequence that is fully in service.",
        (
            (
                labels_text(rollout_uid=s.configuration.spec.rollout_uid, rollout=s.configuration.name),
                s.acknowledged,
            )
            for s in state.rollouts
        ),
    )
    yield from family(
        f"{gateway}_overridden",
        "gauge",
        "1 while the emergency override holds the rollout on stable.",
        (
            (labels_text(rollout_uid=s.configuration.spec.rollout_uid, rollout=s.configuration.name), int(s.overridden))
            for s in state.rollouts
        ),
    )
    yield from family(
        f"{gateway}_config_swaps_total", "counter", "Configurations put in service.", [("", counters.swaps)]
    )
    yield from family(
        f"{gateway}_config_refused_total",
        "counter",
        "Configurations that were refused, by reason.",
        by("reason", {"older_sequence": 0, "changed_content": 0, "invalid": 0, "key_missing": 0, **counters.refused}),
    )
    yield from family(
        f"{gateway}_disk_errors_total",
        "counter",
        "Failures to read or write the last good configuration on disk.",
        by("operation", {"read": 0, "write": 0, "delete": 0, "checksum": 0, **counters.disk_errors}),
    )
    yield from family(
        f"{gateway}_rejected_requests_total",
        "counter",
        "Requests refused for an error of the caller; they count for no arm.",
        by("code", counters.rejected),
    )
    not_counted = dict.fromkeys(get_args(NotCounted), 0)
    yield from family(
        f"{gateway}_votes_not_counted_total",
        "counter",
        "Feedback and scores that were accepted but not counted, by reason.",
        by("reason", {**not_counted, **counters.votes_not_counted}),
    )
    yield from family(
        f"{gateway}_answers_not_judged_total",
        "counter",
        "Complete answers that were not checked against their output schema, by reason.",
        by("reason", {**dict.fromkeys(NOT_JUDGED, 0), **counters.answers_not_judged}),
    )
    yield from family(
        f"{gateway}_disconnects_total",
        "counter",
        "Callers that closed the connection early.",
        [("", counters.disconnects)],
    )
    yield from family(
        f"{gateway}_provider_retries_total", "counter", "Retries of provider calls.", by("provider", state.retries)
    )
    yield from family(
        f"{gateway}_pending_renders",
        "gauge",
        "Rendered prompts without a report so far.",
        [("", len(state.renders))],
    )
    yield from family(
        f"{gateway}_untracked_renders_total",
        "counter",
        "Rendered prompts that count for no arm, because too many wait for a report.",
        [("", state.renders.untracked)],
    )
    yield from family(
        names.METRIC_SHARDS_WITHHELD,
        "gauge",
        "Rollouts with a canary whose shards are not exported, because the limit is reached.",
        [("", len(counters.withheld))],
    )
    yield from family(f"{gateway}_in_flight_requests", "gauge", "Requests in progress.", [("", counters.in_flight)])
    yield from family(f"{gateway}_queued_requests", "gauge", "Requests in the queue.", [("", counters.queued)])
    yield from family(
        f"{gateway}_concurrency_limit",
        "gauge",
        "Requests that may be in progress: fewer than maxConcurrentRequests when the CPU is overloaded.",
        [("", state.concurrency_limit)],
    )
    if state.caller_keys is not None:
        yield from family(f"{gateway}_caller_keys", "gauge", "Caller keys in use.", [("", state.caller_keys)])
    down = [(f'provider="{name}"', 1) for name in state.providers_down]
    yield from family(
        f"{gateway}_provider_down", "gauge", "1 while the provider cannot be reached, or fails nearly always.", down
    )
    forbidden = int(state.token_reviews_forbidden)
    yield from family(
        f"{gateway}_token_reviews_forbidden", "gauge", "1 while the gateway may not review tokens.", [("", forbidden)]
    )
    yield from family(f"{gateway}_ready", "gauge", "1 when the pod takes traffic.", [("", int(state.ready))])
    if state.api_contact_at is not None:
        yield from family(
            f"{gateway}_api_contact_age_seconds",
            "gauge",
            "Time since the API server last answered.",
            [("", round(time.monotonic() - state.api_contact_at, 3))],
        )
