"""What a translation between two protocols consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from promptrollout.gateway.errors import Unfilled
from promptrollout.gateway.render import Body
from promptrollout.gateway.sse import StreamTranslator


class Untranslatable(Unfilled):
    """The provider's protocol cannot say what the request asks."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        """The request's field."""


@dataclass(frozen=True, slots=True)
class Translation:
    """From a caller's protocol to a provider's, and back."""

    request: Callable[[Body], Body]
    """Raises Untranslatable, CallerError. Leaves what it takes as it is."""
    answer: Callable[[dict[str, Any]], dict[str, Any]]
    stream: Callable[[Body], StreamTranslator]
    """For the answer to this request of the caller."""
