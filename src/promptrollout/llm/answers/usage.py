"""The usage of a call in tokens, and its cost in USD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from promptrollout.api.provider import ModelPrice

# no model reads or writes more in one call: a larger number is a broken answer, which would dominate the mean
MAX_TOKENS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, clipped to plausible numbers; `cached_input` and `written_input` are part of `input`."""

    input: int
    cached_input: int
    output: int
    written_input: int = 0
    """Input written to the provider's cache, if the provider reports it."""

    @staticmethod
    def read(usage: Any) -> Usage | None:
        """From `usage` of a chat completion; None if it has none."""
        if not isinstance(usage, dict):
            return None
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if prompt is None and completion is None:
            return None
        return Usage.of(prompt, usage.get("prompt_tokens_details"), completion)

    @staticmethod
    def of(tokens: Any, details: Any, output: Any) -> Usage:
        """From the values of an API of OpenAI, of any type."""
        total = _clipped(tokens)
        if not isinstance(details, dict):
            return Usage(total, 0, _clipped(output))
        cached = min(total, _clipped(details.get("cached_tokens")))
        written = min(total - cached, _clipped(details.get("cache_write_tokens")))
        return Usage(total, cached, _clipped(output), written)

    @staticmethod
    def with_separate_cache(tokens: Any, read: Any, written: Any, output: Any) -> Usage:
        """From Anthropic's values, which count cached input separately from other input."""
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
        """USD saved by the provider's cache. Never below 0, so that its sum is a counter: cached input may cost
        more."""
        return usage.cached_input * max(0.0, self.input_usd - self.cached_input_usd)


def _clipped(tokens: Any) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or tokens != tokens:
        return 0
    return int(min(max(tokens, 0), MAX_TOKENS))
