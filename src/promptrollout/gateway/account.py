"""Last step of a request's way: what is known of it when it is over, and what it cost."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from promptrollout.api.provider import ModelPrice
from promptrollout.gateway.choices import Choice
from promptrollout.gateway.errors import ErrorType

# no model takes or makes more in one call: a larger number is a broken answer, and one of them would own the mean
MAX_TOKENS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, clipped to what is possible; `cached_input` and `written_input` are part of `input`."""

    input: int
    cached_input: int
    output: int
    written_input: int = 0
    """Put into the provider's cache, where it says so."""

    @staticmethod
    def read(found: Any) -> Usage | None:
        """From `usage` of a chat completion; None where there is none."""
        if not isinstance(found, dict):
            return None
        prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
        if prompt is None and completion is None:
            return None
        return Usage.of(prompt, found.get("prompt_tokens_details"), completion)

    @staticmethod
    def of(tokens: Any, details: Any, output: Any) -> Usage:
        """From what an API of OpenAI says, whatever that is."""
        total = _clipped(tokens)
        if not isinstance(details, dict):
            return Usage(total, 0, _clipped(output))
        cached = min(total, _clipped(details.get("cached_tokens")))
        written = min(total - cached, _clipped(details.get("cache_write_tokens")))
        return Usage(total, cached, _clipped(output), written)

    @staticmethod
    def beside(tokens: Any, read: Any, written: Any, output: Any) -> Usage:
        """From what Anthropic says, which counts its cache beside the other input."""
        cached = _clipped(read)
        put = min(MAX_TOKENS - cached, _clipped(written))
        return Usage(min(MAX_TOKENS, _clipped(tokens) + cached + put), cached, _clipped(output), put)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token."""

    input_usd: float
    cached_input_usd: float
    output_usd: float
    written_input_usd: float

    @staticmethod
    def of(row: ModelPrice) -> Price:
        cached, written = row.cached_input_per_million_usd, row.cache_write_per_million_usd
        return Price(
            input_usd=float(row.input_per_million_usd) / 1e6,
            cached_input_usd=float(row.input_per_million_usd if cached is None else cached) / 1e6,
            output_usd=float(row.output_per_million_usd) / 1e6,
            written_input_usd=float(row.input_per_million_usd if written is None else written) / 1e6,
        )

    def cost_usd(self, usage: Usage) -> float:
        return (
            (usage.input - usage.cached_input - usage.written_input) * self.input_usd
            + usage.cached_input * self.cached_input_usd
            + usage.written_input * self.written_input_usd
            + usage.output * self.output_usd
        )

    def saved_usd(self, usage: Usage) -> float:
        """By the provider's cache. Never below 0, so that its sum is a counter: a cache may be priced above input."""
        return usage.cached_input * max(0.0, self.input_usd - self.cached_input_usd)


@dataclass(slots=True)
class Outcome:
    """What is known of a request when it is over. Whoever answered, it counts for the arm that it was assigned to."""

    shard: int = 0
    """Of its unit."""
    error_type: ErrorType | None = None
    fallback: bool = False
    """A fallback answered; the error is the own provider's, and the answer's worth is counted all the same."""
    usage: Usage | None = None
    price: Price | None = None
    """Of the model that answered, which is not always that of the arm that is counted."""
    seconds: float = 0.0
    """From the request to the last byte of the provider's answer, without the time that a slow reader took. Of an
    abandoned request: until the caller hung up, the least that the answer would have taken."""
    first_token_seconds: float | None = None
    """From the request to the first token of a stream, or the first byte of an answer as a whole; None: none came. Of
    a request that timed out or was abandoned before that: until then, the least that it would have taken."""
    contract_kept: bool | None = None
    """None: not checked."""
    abandoned: bool = False
    """The caller hung up before the answer was whole. Nobody knows whether it would have come: no error, but neither
    nothing, or a version that hangs until its callers give up would look like one that is not asked."""
    refused: bool = False
    truncated: bool = False
    empty: bool = False

    @property
    def cached(self) -> bool:
        """The provider says that it took some of the input from its cache."""
        return self.usage is not None and self.usage.cached_input > 0

    def answered(self, choices: Collection[Choice]) -> None:
        """Note what a complete answer is. Of several choices one is enough: the caller may take any."""
        self.refused = any(choice.refused for choice in choices)
        self.truncated = any(choice.truncated for choice in choices)
        self.empty = not choices or any(choice.empty for choice in choices)

    def over(self, seconds: float) -> None:
        """Note when it was over: whoever waited for a first token in vain waited at least so long."""
        self.seconds = seconds
        if self.first_token_seconds is None and (self.abandoned or self.error_type == "timeout"):
            self.first_token_seconds = seconds


def _clipped(tokens: Any) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or tokens != tokens:
        return 0
    return int(min(max(tokens, 0), MAX_TOKENS))
