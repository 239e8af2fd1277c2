"""Prometheus' text format of the series of versions, and of their shards.

Written by hand: a generic registry takes ten times as long for thousands of lines, and blocks the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Final

from promptrollout.api import names
from promptrollout.gateway.metrics.series import CACHE_VALUES, Histogram, Series, Shards

UNPRICED: Final = "promptrollout_unpriced_requests_total"
USAGE_MISSING: Final = "promptrollout_usage_missing_requests_total"


@dataclass(frozen=True, slots=True)
class Copy:
    """One series at the moment of the scrape."""

    labels: str
    series: Series

    @staticmethod
    def of(series: Series, process: str) -> Copy:
        uid, rollout, version, variant, model = series.labels
        labels = {"rollout_uid": uid, "rollout": rollout, "version": version, "variant": variant, "model": model}
        return Copy(labels_text(**labels, **{names.LABEL_PROCESS: process}), series.copy())


@dataclass(frozen=True, slots=True)
class _Counter:
    """A metric with one value per series. A sum whose count is another metric is `untyped`: the format has no better
    type."""

    name: str
    field: str
    """In Series."""
    help: str
    type: str = "counter"


_COUNTERS: Final = (
    _Counter(names.METRIC_REQUESTS, "total.requests", "Requests, by the arm that they were assigned to."),
    _Counter(
        names.METRIC_ABANDONED,
        "total.abandoned",
        "Requests whose caller closed the connection before the answer was complete. They are requests, not errors.",
    ),
    _Counter(
        names.METRIC_CONTRACT_CHECKS,
        "total.contract_checks",
        "Complete answers that were checked against the output schema.",
    ),
    _Counter(
        names.METRIC_CONTRACT_FAILURES,
        "total.contract_failures",
        "Complete answers that do not match the output schema.",
    ),
    _Counter(names.METRIC_REFUSALS, "total.refusals", "Answers that are a refusal, or that a content filter stopped."),
    _Counter(names.METRIC_TRUNCATED, "total.truncated", "Answers that ended at the token limit."),
    _Counter(
        names.METRIC_FALLBACKS,
        "total.fallbacks",
        "Requests that a fallback answered. The failure of the version's own provider is counted as an error.",
    ),
    _Counter(names.METRIC_EMPTY_ANSWERS, "total.empty_answers", "Answers without text and without a tool call."),
    _Counter(
        names.METRIC_COST_SUMSQ,
        "cost_sumsq_usd2",
        "Sum of squares of the cost of requests, for the variance.",
        "untyped",
    ),
    _Counter(
        names.METRIC_COST_INPUT_SUM,
        "cost_input_usd",
        "What the input of these requests would have cost without the provider's cache.",
        "untyped",
    ),
    _Counter(
        names.METRIC_COST_SAVED_SUM, "cost_saved_usd", "What the provider's cache saved of these requests.", "untyped"
    ),
    _Counter(UNPRICED, "unpriced", "Requests of a model without a price."),
    _Counter(USAGE_MISSING, "usage_missing", "Answers without token usage. No cost is counted."),
    _Counter(
        names.METRIC_TOKENS_SUMSQ,
        "tokens_sumsq",
        "Sum of squares of the tokens of requests, for the variance.",
        "untyped",
    ),
    _Counter(names.METRIC_INPUT_TOKENS, "total.input_tokens", "Tokens of prompts."),
    _Counter(
        names.METRIC_CACHED_INPUT_TOKENS,
        "total.cached_input_tokens",
        "Tokens of prompts from the provider's cache; part of the input tokens.",
    ),
    _Counter(names.METRIC_OUTPUT_TOKENS, "output_tokens", "Tokens of answers."),
)

# summaries without quantiles: name, count, sum
_SUMMARIES: Final = (
    (
        (names.METRIC_COST_COUNT, "cost_count"),
        (names.METRIC_COST_SUM, "cost_sum_usd"),
        "Cost of requests in USD, where it is known.",
    ),
    (
        (names.METRIC_TOKENS_COUNT, "tokens_count"),
        (names.METRIC_TOKENS_SUM, "tokens_sum"),
        "Input and output tokens of requests, where they are known.",
    ),
)

# what shards have of a Tally
_SHARDED: Final = (
    (names.METRIC_REQUESTS, "requests"),
    (names.METRIC_ERRORS, "errors"),
    (names.METRIC_CONTRACT_CHECKS, "contract_checks"),
    (names.METRIC_CONTRACT_FAILURES, "contract_failures"),
    (names.METRIC_REFUSALS, "refusals"),
    (names.METRIC_TRUNCATED, "truncated"),
    (names.METRIC_EMPTY_ANSWERS, "empty_answers"),
    (names.METRIC_FALLBACKS, "fallbacks"),
    (names.METRIC_ABANDONED, "abandoned"),
    (names.METRIC_COST_COUNT, "cost_count"),
    (names.METRIC_COST_SUM, "cost_sum_usd"),
    (names.METRIC_TOKENS_COUNT, "tokens_count"),
    (names.METRIC_TOKENS_SUM, "tokens_sum"),
    (names.METRIC_INPUT_TOKENS, "input_tokens"),
    (names.METRIC_CACHED_INPUT_TOKENS, "cached_input_tokens"),
)
_SHARD_LABELS: Final = tuple(f'{names.LABEL_SHARD}="{shard}"' for shard in range(names.SHARDS))
_AGE_LABELS: Final = tuple(f'age="{age}"' for age in names.AGES)
# metrics of scores: suffix, field of Moments, type, help; the count is in the same family as the sum
_SCORES: Final = (
    ("_sum", "sum", "summary", "Scores of answers, by name and by the age of the answer."),
    ("_count", "count", "", ""),
    ("_sumsq", "sumsq", "untyped", "Sum of squares of scores, for the variance."),
)
_CACHE_LABELS: Final = tuple(f'{names.LABEL_CACHE}="{value}"' for value in CACHE_VALUES)


def labels_text(**labels: str) -> str:
    """`a="b",…` with the format's escapes."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def series_lines(copies: list[Copy]) -> Iterator[str]:
    """All metrics of versions."""
    for counter in _COUNTERS:
        value = attrgetter(counter.field)
        yield from _head(counter.name, counter.type, counter.help)
        for c in copies:
            yield f"{counter.name}{{{c.labels}}} {value(c.series)}"
    yield from _head(names.METRIC_ERRORS, "counter", "Requests that failed, by error type.")
    for c in copies:
        for kind, n in c.series.errors.items():
            yield f'{names.METRIC_ERRORS}{{{c.labels},error_type="{kind}"}} {n}'
    for (count_name, count_field), (sum_name, sum_field), help_text in _SUMMARIES:
        yield from _head(sum_name.removesuffix("_sum"), "summary", help_text)
        for c in copies:
            yield f"{sum_name}{{{c.labels}}} {getattr(c.series.total, sum_field)}"
            yield f"{count_name}{{{c.labels}}} {getattr(c.series.total, count_field)}"
    yield from _histogram_lines(
        names.METRIC_LATENCY,
        "Time from the request to the last byte of the provider, without waiting for a slow caller.",
        ((c.labels, c.series.duration) for c in copies),
    )
    yield from _histogram_lines(
        names.METRIC_FIRST_TOKEN,
        "Time from the request to the first token of a stream, or to the first byte of another answer.",
        (
            (f"{c.labels},{cache}", histogram)
            for c in copies
            for cache, histogram in zip(_CACHE_LABELS, c.series.first_token, strict=True)
        ),
    )
    yield from _vote_lines(copies)


def _vote_lines(copies: list[Copy]) -> Iterator[str]:
    """Feedback of every version, from zero; scores of versions that have some, or objectives on them."""
    yield from _head(names.METRIC_FEEDBACK, "counter", "Feedback on answers, by the age of the answer.")
    for c in copies:
        for rating, counts in c.series.votes.feedback.items():
            prefix = f'{names.METRIC_FEEDBACK}{{{c.labels},rating="{rating}",'
            for age, n in zip(_AGE_LABELS, counts, strict=True):
                yield f"{prefix}{age}}} {n}"
    for suffix, field, kind, help_text in _SCORES:
        name, values = names.METRIC_SCORE + suffix, attrgetter(field)
        if suffix != "_count":
            yield from _head(name.removesuffix("_sum"), kind, help_text)
        for c in copies:
            for score, moments in c.series.votes.scores.items():
                prefix = f'{name}{{{c.labels},score="{score}",'
                for age, value in zip(_AGE_LABELS, values(moments), strict=True):
                    yield f"{prefix}{age}}} {value}"


def shard_lines(copies: list[Copy]) -> Iterator[str]:
    """The metrics of shards, of the arms that are compared now."""
    compared = [(c.labels, c.series.shards) for c in copies if c.series.shards is not None]
    for metric, field in _SHARDED:
        name, value = names.shard_metric(metric), attrgetter(field)
        if exported := _exporting(name, compared):
            yield from _head(name, "counter" if name.endswith("_total") else "untyped", f"{metric} by groups of units.")
        for labels, shards in exported:
            for shard, tally in zip(_SHARD_LABELS, shards.tallies, strict=True):
                yield f"{name}{{{labels},{shard}}} {value(tally)}"
    slow = names.METRIC_SHARD_LATENCY_SLOW
    if exported := _exporting(slow, compared):
        yield from _head(slow, "counter", f"Of {names.METRIC_LATENCY}: above an objective's edge, by groups of units.")
    for labels, shards in exported:
        for edge, counts in shards.slow.items():
            yield from _by_shard(slow, f'{labels},le="{names.le_label(edge)}"', counts)
    yield from _first_token_lines(compared)
    yield from _vote_shard_lines(compared)


def _exporting(name: str, compared: list[tuple[str, Shards]]) -> list[tuple[str, Shards]]:
    """The arms whose objectives need the metric."""
    return [(labels, shards) for labels, shards in compared if name in shards.metrics]


def _first_token_lines(compared: list[tuple[str, Shards]]) -> Iterator[str]:
    """By objectives' edges; without any, the count is not needed either."""
    count = names.shard_metric(names.METRIC_FIRST_TOKEN + "_count")
    if exported := _exporting(count, compared):
        yield from _head(count, "untyped", f"{names.METRIC_FIRST_TOKEN}_count by groups of units.")
    for labels, shards in exported:
        for cache, counts in zip(_CACHE_LABELS, shards.first_tokens, strict=True):
            if shards.first_token_slow:
                yield from _by_shard(count, f"{labels},{cache}", counts)
    slow = names.METRIC_SHARD_FIRST_TOKEN_SLOW
    if exported := _exporting(slow, compared):
        yield from _head(
            slow, "counter", f"Of {names.METRIC_FIRST_TOKEN}: above an objective's edge, by groups of units."
        )
    for labels, shards in exported:
        for edge, by_cache in shards.first_token_slow.items():
            for cache, counts in zip(_CACHE_LABELS, by_cache, strict=True):
                yield from _by_shard(slow, f'{labels},{cache},le="{names.le_label(edge)}"', counts)


def _vote_shard_lines(compared: list[tuple[str, Shards]]) -> Iterator[str]:
    """Feedback, and the scores that objectives use."""
    name = names.shard_metric(names.METRIC_FEEDBACK)
    if exported := _exporting(name, compared):
        yield from _head(name, "counter", f"{names.METRIC_FEEDBACK} by groups of units.")
    for labels, shards in exported:
        for rating, counts in shards.votes.feedback.items():
            yield from _by_age_and_shard(name, f'{labels},rating="{rating}"', counts)
    for suffix, values in (("_count", attrgetter("count")), ("_sum", attrgetter("sum"))):
        name = names.shard_metric(names.METRIC_SCORE + suffix)
        exported = [(labels, shards) for labels, shards in _exporting(name, compared) if shards.votes.scores]
        if exported:
            yield from _head(name, "untyped", f"{names.METRIC_SCORE}{suffix} by groups of units.")
        for labels, shards in exported:
            for score, moments in shards.votes.scores.items():
                yield from _by_age_and_shard(name, f'{labels},score="{score}"', values(moments))


def _by_age_and_shard(name: str, labels: str, counts: Sequence[float]) -> Iterator[str]:
    for at, age in enumerate(_AGE_LABELS):
        yield from _by_shard(name, f"{labels},{age}", counts[at * names.SHARDS : (at + 1) * names.SHARDS])


def _by_shard(name: str, labels: str, counts: Sequence[float]) -> Iterator[str]:
    for shard, n in zip(_SHARD_LABELS, counts, strict=True):
        yield f"{name}{{{labels},{shard}}} {n}"


def _histogram_lines(name: str, help_text: str, histograms: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    yield from _head(name, "histogram", help_text)
    edge_texts: dict[float, str] = {}
    for labels, histogram in histograms:
        prefix = f'{name}_bucket{{{labels},le="'
        total = 0
        for edge, total in zip(histogram.edges_seconds, accumulate(histogram.bins), strict=False):
            text = edge_texts.get(edge)
            if text is None:
                text = edge_texts[edge] = names.le_label(edge)
            yield f'{prefix}{text}"}} {total}'
        total += histogram.bins[-1]
        yield f'{prefix}+Inf"}} {total}'
        yield f"{name}_sum{{{labels}}} {histogram.seconds_sum}"
        yield f"{name}_count{{{labels}}} {total}"


def _head(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
