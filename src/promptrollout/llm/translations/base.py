"""What a translation between two protocols consists of."""

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
    """Raises Untranslatable, CallerError. Leaves what it takes as it is."""
    answer: Callable[[dict[str, Any], Body], dict[str, Any]]
    """To this request of the caller. Raises ValueError for what cannot be said in the caller's protocol."""
    stream: Callable[[Body], StreamTranslator]
    """For the answer to this request of the caller."""
