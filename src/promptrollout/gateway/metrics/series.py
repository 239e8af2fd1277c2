"""The counters of one version in one variant, and of its shards: plain numbers, so that counting is cheap."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from promptrollout.api.names import SHARDS
from promptrollout.gateway.assignment.assign import Variant
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.votes import Rating, Votes
from promptrollout.llm.errors import ERROR_TYPES, ErrorType

# OpenTelemetry's advice for gen_ai.client.operation.duration
DEFAULT_EDGES_SECONDS: Final[tuple[float, ...]] = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
CACHE_VALUES: Final = ("miss", "hit")
"""The order of everything that is counted by cache use."""


@dataclass(eq=False, slots=True)
class Tally:
    """Counters that exist for a whole arm, and for each of its shards."""

    requests: int = 0
    errors: int = 0
    contract_checks: int = 0
    contract_failures: int = 0
    refusals: int = 0
    truncated: int = 0
    empty_answers: int = 0
    fallbacks: int = 0
    abandoned: int = 0
    cost_count: int = 0
    cost_sum_usd: float = 0.0
    tokens_count: int = 0
    tokens_sum: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0

    def add(self, outcome: Outcome, cost_usd: float | None) -> None:
        """Count a request; `cost_usd` is None if it is unknown."""
        self.requests += 1
        if outcome.error_type is not None:
            self.errors += 1
        if outcome.contract_kept is not None:
            self.contract_checks += 1
            self.contract_failures += not outcome.contract_kept
        self.refusals += outcome.refused
        self.truncated += outcome.truncated
        self.empty_answers += outcome.empty
        self.fallbacks += outcome.fallback
        self.abandoned += outcome.abandoned
        if (usage := outcome.usage) is not None:
            self.tokens_count += 1
            self.tokens_sum += usage.input + usage.output
            self.input_tokens += usage.input
            self.cached_input_tokens += usage.cached_input
        if cost_usd is not None:
            self.cost_count += 1
            self.cost_sum_usd += cost_usd

    def copy(self) -> Tally:
        return Tally(*_tallied(self))


_BILLED_UNKNOWN: Final = frozenset({None, "stream_broken", "timeout", "reported", "unreported"})
"""Outcomes without usage for which the provider may still charge: a request that timed out is billed."""
_tallied = attrgetter(*Tally.__slots__)


@dataclass(eq=False, slots=True)
class Histogram:
    """Counts by edges; an edge belongs to the bin below it."""

    edges_seconds: list[float] = field(default_factory=lambda: list(DEFAULT_EDGES_SECONDS))
    bins: list[int] = field(default_factory=list)
    seconds_sum: float = 0.0

    def __post_init__(self) -> None:
        self.bins = self.bins or [0] * (len(self.edges_seconds) + 1)

    def add(self, seconds: float) -> None:
        self.bins[bisect_left(self.edges_seconds, seconds)] += 1
        self.seconds_sum += seconds

    def add_edges(self, edges_seconds: Iterable[float]) -> None:
        """Add edges. No edge is ever removed, so that every exported bucket stays monotone.

        The count of a bin that is divided stays in its upper part: the new bucket starts at a lower bound, and its
        differences are right from now on.
        """
        for edge in edges_seconds:
            position = bisect_left(self.edges_seconds, edge)
            if position == len(self.edges_seconds) or self.edges_seconds[position] != edge:
                self.edges_seconds.insert(position, edge)
                self.bins.insert(position, 0)

    def copy(self) -> Histogram:
        return Histogram(self.edges_seconds[:], self.bins[:], self.seconds_sum)


@dataclass(eq=False, slots=True)
class Shards:
    """An arm's counters by groups of units, for as long as it is compared with the other arm."""

    tallies: list[Tally] = field(default_factory=lambda: [Tally() for _ in range(SHARDS)])
    slow: dict[float, list[int]] = field(default_factory=dict)
    """By objectives' edges in seconds, then by shard: requests that took longer."""
    first_tokens: list[list[int]] = field(default_factory=lambda: [[0] * SHARDS for _ in CACHE_VALUES])
    """By CACHE_VALUES, then by shard: requests whose time to the first token is known, from the first edge on."""
    first_token_slow: dict[float, list[list[int]]] = field(default_factory=dict)
    """By edges, by CACHE_VALUES, then by shard."""
    votes: Votes = field(default_factory=lambda: Votes(SHARDS))
    metrics: frozenset[str] = frozenset()
    """The metrics that are exported."""
    retired_at: float | None = None
    """On the monotonic clock: since when the arm is not compared."""

    def add(self, outcome: Outcome, cost_usd: float | None) -> None:
        shard, seconds, first_token = outcome.shard, outcome.seconds, outcome.first_token_seconds
        self.tallies[shard].add(outcome, cost_usd)
        for edge, counts in self.slow.items():
            if seconds > edge:
                counts[shard] += 1
        if first_token is not None and self.first_token_slow:
            cached = outcome.cached
            self.first_tokens[cached][shard] += 1
            for edge, by_cache in self.first_token_slow.items():
                if first_token > edge:
                    by_cache[cached][shard] += 1

    def add_edges(self, edges_seconds: Iterable[float]) -> None:
        """Count by these edges too, from now on."""
        for edge in edges_seconds:
            self.slow.setdefault(edge, [0] * SHARDS)
            self.first_token_slow.setdefault(edge, [[0] * SHARDS for _ in CACHE_VALUES])

    def copy(self) -> Shards:
        return Shards(
            [tally.copy() for tally in self.tallies],
            {edge: counts[:] for edge, counts in self.slow.items()},
            [counts[:] for counts in self.first_tokens],
            {edge: [counts[:] for counts in by_cache] for edge, by_cache in self.first_token_slow.items()},
            self.votes.copy(),
            self.metrics,
        )


@dataclass(eq=False, slots=True)
class Series:
    """The counters of one version in one variant."""

    labels: tuple[str, str, str, Variant, str]
    """rollout_uid, rollout, version, variant, model"""
    total: Tally = field(default_factory=Tally)
    errors: dict[ErrorType, int] = field(default_factory=lambda: dict.fromkeys(ERROR_TYPES, 0))
    cost_sumsq_usd2: float = 0.0
    cost_input_usd: float = 0.0
    cost_saved_usd: float = 0.0
    tokens_sumsq: int = 0
    output_tokens: int = 0
    unpriced: int = 0
    usage_missing: int = 0
    duration: Histogram = field(default_factory=Histogram)
    first_token: list[Histogram] = field(default_factory=lambda: [Histogram() for _ in CACHE_VALUES])
    """By CACHE_VALUES."""
    votes: Votes = field(default_factory=Votes)
    shards: Shards | None = None
    """While a canary is loaded, and a while longer."""
    expected_scores: frozenset[str] = frozenset()
    """The scores that objectives use."""
    in_flight: int = 0
    retired_at: float | None = None
    """On the monotonic clock: since when no configuration uses it."""

    @property
    def version(self) -> str:
        return self.labels[2]

    @property
    def variant(self) -> Variant:
        return self.labels[3]

    def count(self, outcome: Outcome) -> None:
        """Count a request that is over."""
        cost_usd = self._count_cost(outcome)
        self.total.add(outcome, cost_usd)
        if outcome.error_type is not None:
            self.errors[outcome.error_type] += 1
        self.duration.add(outcome.seconds)
        if outcome.first_token_seconds is not None:
            self.first_token[outcome.cached].add(outcome.first_token_seconds)
        if self.shards is not None:
            self.shards.add(outcome, cost_usd)

    def rate(self, rating: Rating, age: int, shard: int) -> None:
        """Count feedback; `age` is an index into names.AGES."""
        self.votes.rate(rating, age)
        if self.shards is not None:
            self.shards.votes.rate(rating, age, shard)

    def score(self, name: str, value: float, age: int, shard: int) -> None:
        """Count a score; by shards only if an objective uses it."""
        self.votes.score(name, value, age)
        if self.shards is not None and name in self.shards.votes.scores:
            self.shards.votes.score(name, value, age, shard)

    def expect_scores(self, names: Iterable[str]) -> None:
        """Export these scores from now on, from zero: objectives use them."""
        self.expected_scores = frozenset(names)
        self.votes.expect(self.expected_scores)

    def add_edges(self, edges_seconds: Iterable[float]) -> None:
        """Add edges to every histogram."""
        edges = list(edges_seconds)
        for histogram in (self.duration, *self.first_token):
            histogram.add_edges(edges)

    def compare(self, edges_seconds: Iterable[float], metrics: frozenset[str]) -> None:
        """Count by shards too, and export these metrics. Counting continues whether exported or not, so that a metric
        that is exported later, or again, never falls."""
        if self.shards is None:
            self.shards = Shards()
        self.shards.add_edges(edges_seconds)
        self.shards.votes.expect(self.expected_scores)
        self.shards.metrics = metrics
        self.shards.retired_at = None

    def copy(self) -> Series:
        """A copy of what is exported."""
        return Series(
            self.labels,
            self.total.copy(),
            self.errors.copy(),
            self.cost_sumsq_usd2,
            self.cost_input_usd,
            self.cost_saved_usd,
            self.tokens_sumsq,
            self.output_tokens,
            self.unpriced,
            self.usage_missing,
            self.duration.copy(),
            [histogram.copy() for histogram in self.first_token],
            self.votes.copy(),
            None if self.shards is None else self.shards.copy(),
        )

    def _count_cost(self, outcome: Outcome) -> float | None:
        """Count the costs of the whole arm; returns the request's cost in USD, None if it is unknown."""
        usage, price = outcome.usage, outcome.price
        if usage is None:
            unknown = outcome.error_type in _BILLED_UNKNOWN
            if outcome.abandoned or outcome.fallback or unknown:
                # the usage is unknown: counting it as free would make a version look cheap
                self.usage_missing += 1
                return None
            return None if price is None else 0.0
        tokens = usage.input + usage.output
        self.tokens_sumsq += tokens * tokens
        self.output_tokens += usage.output
        if price is None:
            # the price is unknown: counting it as free would let it pass any objective
            self.unpriced += 1
            return None
        cost = price.cost_usd(usage)
        self.cost_sumsq_usd2 += cost * cost
        self.cost_input_usd += usage.input * price.input_usd
        self.cost_saved_usd += price.saved_usd(usage)
        return cost
