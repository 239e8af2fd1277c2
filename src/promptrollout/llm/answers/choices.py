"""The choices of an answer, whole or streamed: text, tool calls, a refusal, and why each ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_CONTENT_BYTES: Final = 1024 * 1024
"""Text beyond this is not collected."""
MAX_CHOICES: Final = 128
"""OpenAI's maximum. Further choices are forwarded, but not read."""
MAX_COLLECTED: Final = 16
"""Choices of a stream whose text is collected; that of further ones is not."""


class Choice:
    """One choice (a request may ask for several with `n`), as far as it has arrived."""

    __slots__ = ("_has_calls", "_has_text", "_pieces", "_refused", "finish_reason", "size")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.size = 0
        """Characters collected; collecting stops beyond MAX_CONTENT_BYTES."""
        self._pieces: list[str] = []
        self._has_text = self._has_calls = self._refused = False

    def add(self, message: Any, finish_reason: Any, *, collect: bool) -> bool:
        """Add a message or a delta; whether it has any content: text, reasoning or a tool call."""
        if finish_reason:
            self.finish_reason = str(finish_reason)
        if not isinstance(message, dict):
            return False
        if content := message.get("content"):
            if not isinstance(content, str):
                self._has_text = True  # a list of parts, as from some models
            else:
                self._has_text = self._has_text or not content.isspace()
                if collect and self.size <= MAX_CONTENT_BYTES:
                    self._pieces.append(content)
                    self.size += len(content)
        if message.get("tool_calls") or message.get("function_call"):
            self._has_calls = True
        if message.get("refusal"):
            self._refused = True
        if message.get("audio"):
            self._has_text = True
        return any(value for name, value in message.items() if name != "role")

    def skip(self) -> None:
        """Do not collect its text, so that it is not checked."""
        self.size = MAX_CONTENT_BYTES + 1

    @property
    def content(self) -> str:
        """The collected text."""
        return "".join(self._pieces)

    @property
    def refused(self) -> bool:
        """The model refused, or a filter blocked its answer."""
        return self._refused or self.finish_reason == "content_filter"

    @property
    def truncated(self) -> bool:
        """Cut at the limit of tokens."""
        return self.finish_reason == "length"

    @property
    def empty(self) -> bool:
        """Ended normally with neither text nor a tool call (reasoning alone is not an answer)."""
        return not (self._has_text or self._has_calls or self.refused or self.truncated)


def choices_of(answer: Mapping[str, Any]) -> list[Choice]:
    """The choices of an answer that did not stream."""
    choices: list[Choice] = []
    for parsed in (answer.get("choices") or ())[:MAX_CHOICES]:
        if isinstance(parsed, dict):
            choice = Choice()
            choice.add(parsed.get("message"), parsed.get("finish_reason"), collect=True)
            choices.append(choice)
    return choices
