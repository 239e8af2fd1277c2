"""A translation between two protocols."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from promptrollout.llm.answers.streams import StreamTranslator
from promptrollout.llm.prompts.prompt import Body


@dataclass(frozen=True, slots=True)
class Translation:
    """From a caller's protocol to a provider's, and back."""

    request: Callable[[Body], Body]
    """Raises Untranslatable, CallerError. Does not change its argument."""
    answer: Callable[[dict[str, Any], Body], dict[str, Any]]
    """The answer to this request of the caller. Raises ValueError if the caller's protocol cannot express it."""
    stream: Callable[[Body], StreamTranslator]
    """For the streamed answer to this request of the caller."""
