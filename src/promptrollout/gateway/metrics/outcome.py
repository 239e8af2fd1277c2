"""What is known of a request when it is over."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from promptrollout.llm.answers.choices import Choice
from promptrollout.llm.answers.usage import Price, Usage
from promptrollout.llm.errors import ErrorType


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
