"""The outcome of a request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from promptrollout.llm.answers.choices import Choice
from promptrollout.llm.answers.usage import Price, Usage
from promptrollout.llm.errors import ErrorType


@dataclass(slots=True)
class Outcome:
    """The outcome of a request. Whatever answered, it counts for the arm that the request was assigned to."""

    shard: int = 0
    """The group of its unit."""
    error_type: ErrorType | None = None
    fallback: bool = False
    """A fallback answered. The error is that of the arm's own provider; the answer is counted all the same."""
    usage: Usage | None = None
    price: Price | None = None
    """Of the model that answered, which may not be the counted arm's."""
    seconds: float = 0.0
    """From the request to the last byte of the provider's answer, without waiting for a slow caller. For an abandoned
    request: until the caller disconnected, which is a lower bound."""
    first_token_seconds: float | None = None
    """From the request to the first token of a stream, or the first byte of a whole answer; None: none came. For a
    request that timed out or was abandoned before that: until then, which is a lower bound."""
    contract_kept: bool | None = None
    """None: not checked."""
    abandoned: bool = False
    """The caller disconnected before the answer was complete. It might have come, so this is no error. It is counted,
    or a version that hangs until its callers give up would look like one without requests."""
    refused: bool = False
    truncated: bool = False
    empty: bool = False

    @property
    def cached(self) -> bool:
        """The provider reports cached input."""
        return self.usage is not None and self.usage.cached_input > 0

    def answered(self, choices: Collection[Choice]) -> None:
        """Record a complete answer. One of several choices is enough: the caller may use any."""
        self.refused = any(choice.refused for choice in choices)
        self.truncated = any(choice.truncated for choice in choices)
        self.empty = not choices or any(choice.empty for choice in choices)

    def over(self, seconds: float) -> None:
        """Record the duration; also as the lower bound of the time to a first token that never came."""
        self.seconds = seconds
        if self.first_token_seconds is None and (self.abandoned or self.error_type == "timeout"):
            self.first_token_seconds = seconds
