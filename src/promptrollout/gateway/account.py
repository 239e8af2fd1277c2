"""Last step of a request's way: counted once, under the arm that it was assigned to, whatever happened on the way."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any, Final

from promptrollout.api.provider import ModelPrice
from promptrollout.gateway.errors import ERROR_TYPES, ErrorType

# OpenTelemetry's advice for gen_ai.client.operation.duration
DEFAULT_EDGES_SECONDS: Final[tuple[float, ...]] = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TOKEN_TYPES: Final = ("input", "cached_input", "output")
# no model takes or makes more in one call: a larger number is a broken answer, and one of them would own the mean
MAX_TOKENS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, clipped to what is possible; `cached_input` is part of `input`."""

    input: int
    cached_input: int
    output: int

    @staticmethod
    def read(found: Any) -> Usage | None:
        """From `usage` of an answer; None where there is none."""
        if not isinstance(found, dict):
            return None
        prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
        if prompt is None and completion is None:
            return None
        details = found.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        tokens = _clipped(prompt)
        return Usage(tokens, min(tokens, _clipped(cached)), _clipped(completion))


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token."""

    input_usd: float
    cached_input_usd: float
    output_usd: float

    @staticmethod
    def of(row: ModelPrice) -> Price:
        cached = row.cached_input_per_million_usd
        return Price(
            input_usd=float(row.input_per_million_usd) / 1e6,
            cached_input_usd=float(row.input_per_million_usd if cached is None else cached) / 1e6,
            output_usd=float(row.output_per_million_usd) / 1e6,
        )

    def cost_usd(self, usage: Usage) -> float:
        return (
            (usage.input - usage.cached_input) * self.input_usd
            + usage.cached_input * self.cached_input_usd
            + usage.output * self.output_usd
        )


@dataclass(slots=True)
class Outcome:
    """What is known of a request when it is over."""

    error_type: ErrorType | None = None
    usage: Usage | None = None
    price: Price | None = None
    """Of the arm that answered, which is not always the arm that is counted."""
    seconds: float = 0.0
    """From the request to the last byte of the provider's answer, without the time that a slow reader took. Of an
    abandoned request: until the caller hung up, the least that the answer would have taken."""
    contract_kept: bool | None = None
    """None: not checked."""
    abandoned: bool = False
    """The caller hung up before the answer was whole. Nobody knows whether it would have come: no error, but neither
    nothing, or a version that hangs until its callers give up would look like one that is not asked."""


@dataclass(eq=False, slots=True)
class Series:
    """The counters of one version in one variant. Plain numbers: a request costs a dozen additions."""

    labels: tuple[str, str, str, str, str]
    """rollout_uid, rollout, version, variant, model"""
    edges_seconds: list[float]
    requests: int = 0
    errors: dict[ErrorType, int] = field(default_factory=lambda: dict.fromkeys(ERROR_TYPES, 0))
    abandoned: int = 0
    contract_checks: int = 0
    contract_failures: int = 0
    cost_count: int = 0
    cost_sum_usd: float = 0.0
    cost_sumsq_usd2: float = 0.0
    unpriced: int = 0
    usage_missing: int = 0
    tokens: list[int] = field(default_factory=lambda: [0] * len(TOKEN_TYPES))
    bins: list[int] = field(default_factory=list)
    seconds_sum: float = 0.0
    in_flight: int = 0
    retired_at: float | None = None
    """On the monotonic clock: since when no configuration uses it."""

    def __post_init__(self) -> None:
        self.bins = [0] * (len(self.edges_seconds) + 1)

    def count(self, outcome: Outcome) -> None:
        """Count one request that is over."""
        self.requests += 1
        if outcome.error_type is not None:
            self.errors[outcome.error_type] += 1
        self.abandoned += outcome.abandoned
        if outcome.contract_kept is not None:
            self.contract_checks += 1
            self.contract_failures += not outcome.contract_kept
        self.bins[bisect_left(self.edges_seconds, outcome.seconds)] += 1
        self.seconds_sum += outcome.seconds
        self._count_cost(outcome)

    def _count_cost(self, outcome: Outcome) -> None:
        usage = outcome.usage
        if usage is None and (outcome.abandoned or outcome.error_type in (None, "stream_broken")):
            # nobody says how much was answered: counting nothing as free would make a version look cheap
            self.usage_missing += 1
            return
        cost = 0.0
        if usage is not None:
            self.tokens[0] += usage.input
            self.tokens[1] += usage.cached_input
            self.tokens[2] += usage.output
        if outcome.price is None:
            # nobody knows what it costs: counting it as free would let it pass any objective
            self.unpriced += usage is not None
            return
        if usage is not None:
            cost = outcome.price.cost_usd(usage)
        self.cost_count += 1
        self.cost_sum_usd += cost
        self.cost_sumsq_usd2 += cost * cost

    def add_edges(self, edges_seconds: list[float]) -> None:
        """Have these edges too. None is ever taken away, so every bucket that has been exported stays monotone.

        What was counted in a bin that is now divided stays in its upper part: the new bucket begins at what is
        surely below it, and its differences are right from now on.
        """
        for edge in edges_seconds:
            position = bisect_left(self.edges_seconds, edge)
            if position == len(self.edges_seconds) or self.edges_seconds[position] != edge:
                self.edges_seconds.insert(position, edge)
                self.bins.insert(position, 0)


def _clipped(tokens: Any) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or tokens != tokens:
        return 0
    return int(min(max(tokens, 0), MAX_TOKENS))
