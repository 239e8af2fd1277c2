"""Prometheus' text format of all counters.

Written by hand for the series of rollouts: a generic registry takes ten times as long for thousands of them, and the
event loop stands still meanwhile. One consistent copy is taken first; then text is made in pieces that let go of the
loop in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice

from prometheus_client import REGISTRY, generate_latest

from promptrollout.api import names
from promptrollout.gateway.account import TOKEN_TYPES, Series
from promptrollout.gateway.counters import Counters
from promptrollout.gateway.registry import Serving

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINES_PER_PIECE = 2000
_UNPRICED = "promptrollout_unpriced_requests_total"
_USAGE_MISSING = "promptrollout_usage_missing_requests_total"


@dataclass(frozen=True, slots=True)
class PodState:
    """What is exported of the process besides the counters."""

    servings: Iterable[Serving]
    retries: Mapping[str, int]
    api_contact_at: float | None
    """On the monotonic clock."""
    ready: bool


@dataclass(frozen=True, slots=True)
class _Copy:
    """One series at the moment of the scrape."""

    labels: str
    requests: int
    errors: tuple[tuple[str, int], ...]
    abandoned: int
    contract_checks: int
    contract_failures: int
    cost_count: int
    cost_sum_usd: float
    cost_sumsq_usd2: float
    unpriced: int
    usage_missing: int
    tokens: tuple[int, ...]
    edges: tuple[float, ...]
    bins: tuple[int, ...]
    seconds_sum: float


async def exposition(counters: Counters, state: PodState) -> AsyncIterator[bytes]:
    """The whole page in pieces."""
    copies = [_copied(series, counters.process) for series in counters.live()]
    own = list(_process_lines(counters, state))
    lines = _series_lines(copies)
    while piece := list(islice(lines, LINES_PER_PIECE)):
        yield ("\n".join(piece) + "\n").encode()
        await asyncio.sleep(0)
    yield ("\n".join(own) + "\n").encode()
    yield await asyncio.to_thread(generate_latest, REGISTRY)


def labels_text(**labels: str) -> str:
    """`a="b",…` with the format's escapes."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _copied(series: Series, process: str) -> _Copy:
    uid, rollout, version, variant, model = series.labels
    labels = {"rollout_uid": uid, "rollout": rollout, "version": version, "variant": variant, "model": model}
    return _Copy(
        labels_text(**labels, **{names.LABEL_PROCESS: process}),
        series.requests,
        tuple(series.errors.items()),
        series.abandoned,
        series.contract_checks,
        series.contract_failures,
        series.cost_count,
        series.cost_sum_usd,
        series.cost_sumsq_usd2,
        series.unpriced,
        series.usage_missing,
        tuple(series.tokens),
        tuple(series.edges_seconds),
        tuple(series.bins),
        series.seconds_sum,
    )


def _series_lines(copies: list[_Copy]) -> Iterator[str]:
    def family(name: str, help_text: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
        yield f"# HELP {name} {help_text}"
        yield f"# TYPE {name} counter"
        for labels, value in values:
            yield f"{name}{{{labels}}} {value}"

    yield from family(
        names.METRIC_REQUESTS,
        "Requests, under the arm that they were assigned to.",
        ((c.labels, c.requests) for c in copies),
    )
    yield from family(
        names.METRIC_ERRORS,
        "Requests that failed, by why.",
        ((f'{c.labels},error_type="{kind}"', value) for c in copies for kind, value in c.errors),
    )
    yield from family(
        names.METRIC_ABANDONED,
        "Requests whose caller hung up before the answer was whole; part of the requests, none of the errors.",
        ((c.labels, c.abandoned) for c in copies),
    )
    yield from family(
        names.METRIC_CONTRACT_CHECKS,
        "Complete answers that were held against the output schema.",
        ((c.labels, c.contract_checks) for c in copies),
    )
    yield from family(
        names.METRIC_CONTRACT_FAILURES,
        "Complete answers that do not match the output schema.",
        ((c.labels, c.contract_failures) for c in copies),
    )
    yield from _cost_lines(copies)
    yield from family(_UNPRICED, "Requests of a model without a price.", ((c.labels, c.unpriced) for c in copies))
    yield from family(
        _USAGE_MISSING,
        "Answers that do not say how many tokens they took: no cost is counted.",
        ((c.labels, c.usage_missing) for c in copies),
    )
    yield from family(
        names.METRIC_TOKENS,
        "Tokens; cached_input is part of input.",
        ((f'{c.labels},type="{kind}"', n) for c in copies for kind, n in zip(TOKEN_TYPES, c.tokens, strict=True)),
    )
    yield from _latency_lines(copies)


def _cost_lines(copies: list[_Copy]) -> Iterator[str]:
    """A summary without quantiles, and beside it what the format has no place for."""
    name = names.METRIC_COST_SUM.removesuffix("_sum")
    yield f"# HELP {name} Cost of requests in USD, of those whose cost is known."
    yield f"# TYPE {name} summary"
    for c in copies:
        yield f"{names.METRIC_COST_SUM}{{{c.labels}}} {c.cost_sum_usd}"
        yield f"{names.METRIC_COST_COUNT}{{{c.labels}}} {c.cost_count}"
    yield f"# HELP {names.METRIC_COST_SUMSQ} Sum of the squares of the cost of requests, for its variance."
    yield f"# TYPE {names.METRIC_COST_SUMSQ} untyped"
    for c in copies:
        yield f"{names.METRIC_COST_SUMSQ}{{{c.labels}}} {c.cost_sumsq_usd2}"


def _latency_lines(copies: list[_Copy]) -> Iterator[str]:
    name = names.METRIC_LATENCY
    yield f"# HELP {name} From the request to the provider's last byte, without the time that a slow reader took."
    yield f"# TYPE {name} histogram"
    edge_texts: dict[float, str] = {}
    for c in copies:
        prefix = f'{name}_bucket{{{c.labels},le="'
        total = 0
        for edge, total in zip(c.edges, accumulate(c.bins), strict=False):
            text = edge_texts.get(edge)
            if text is None:
                text = edge_texts[edge] = names.le_label(edge)
            yield f'{prefix}{text}"}} {total}'
        total += c.bins[-1]
        yield f'{prefix}+Inf"}} {total}'
        yield f"{name}_sum{{{c.labels}}} {c.seconds_sum}"
        yield f"{name}_count{{{c.labels}}} {total}"


def _process_lines(counters: Counters, state: PodState) -> Iterator[str]:
    """What the pod counts of itself."""

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
    yield from family(
        f"{gateway}_config_sequence",
        "gauge",
        "The last sequence that was put in service as a whole.",
        (
            (
                labels_text(rollout_uid=s.configuration.spec.rollout_uid, rollout=s.configuration.name),
                s.acknowledged,
            )
            for s in state.servings
        ),
    )
    yield from family(
        f"{gateway}_overridden",
        "gauge",
        "1 while the emergency override holds the rollout on stable.",
        (
            (labels_text(rollout_uid=s.configuration.spec.rollout_uid, rollout=s.configuration.name), int(s.overridden))
            for s in state.servings
        ),
    )
    yield from family(
        f"{gateway}_config_swaps_total", "counter", "Configurations put in service.", [("", counters.swaps)]
    )
    yield from family(
        f"{gateway}_config_refused_total",
        "counter",
        "Configurations that were not, by why.",
        by("reason", {"older_sequence": 0, "changed_content": 0, "invalid": 0, "key_missing": 0, **counters.refused}),
    )
    yield from family(
        f"{gateway}_disk_errors_total",
        "counter",
        "Failures with the last good configuration on disk.",
        by("operation", {"read": 0, "write": 0, "delete": 0, "checksum": 0, **counters.disk_errors}),
    )
    yield from family(
        f"{gateway}_rejected_requests_total",
        "counter",
        "Requests at fault themselves; they count for no arm.",
        by("code", counters.rejected),
    )
    yield from family(
        f"{gateway}_disconnects_total",
        "counter",
        "Callers who hung up.",
        [("", counters.disconnects)],
    )
    yield from family(
        f"{gateway}_provider_retries_total", "counter", "Calls tried again.", by("provider", state.retries)
    )
    yield from family(f"{gateway}_in_flight_requests", "gauge", "Requests under way.", [("", counters.in_flight)])
    yield from family(f"{gateway}_ready", "gauge", "1 when the pod takes traffic.", [("", int(state.ready))])
    if state.api_contact_at is not None:
        yield from family(
            f"{gateway}_api_contact_age_seconds",
            "gauge",
            "Since the API server was last heard.",
            [("", round(time.monotonic() - state.api_contact_at, 3))],
        )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
