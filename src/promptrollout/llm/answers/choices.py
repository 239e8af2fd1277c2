"""What the choices of an answer say, whole or as they stream in: text, calls of tools, a refusal, why each ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_CONTENT_BYTES: Final = 1024 * 1024
"""Text beyond it is not collected."""
MAX_CHOICES: Final = 128
"""So many can be asked for at OpenAI. What is beyond is passed on, and not looked at."""
MAX_COLLECTED: Final = 16
"""Of the choices of a stream: the text of further ones is not kept until its end."""


class Choice:
    """One of the answers (`n` asks for several), as far as it has arrived."""

    __slots__ = ("_called", "_pieces", "_refused", "_said", "finish_reason", "size")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.size = 0
        """Characters collected; collecting stops beyond MAX_CONTENT_BYTES."""
        self._pieces: list[str] = []
        self._said = self._called = self._refused = False

    def add(self, message: Any, finish_reason: Any, *, collect: bool) -> bool:
        """Take in a message or a delta of one; whether it carries anything of the answer: text, reasoning, a call."""
        if finish_reason:
            self.finish_reason = str(finish_reason)
        if not isinstance(message, dict):
            return False
        if content := message.get("content"):
            if not isinstance(content, str):
                self._said = True  # parts, as some models answer
            else:
                self._said = self._said or not content.isspace()
                if collect and self.size <= MAX_CONTENT_BYTES:
                    self._pieces.append(content)
                    self.size += len(content)
        if message.get("tool_calls") or message.get("function_call"):
            self._called = True
        if message.get("refusal"):
            self._refused = True
        if message.get("audio"):
            self._said = True
        return any(value for name, value in message.items() if name != "role")

    def leave(self) -> None:
        """Its text is not collected, and so not judged."""
        self.size = MAX_CONTENT_BYTES + 1

    @property
    def content(self) -> str:
        """The text that was collected."""
        return "".join(self._pieces)

    @property
    def refused(self) -> bool:
        """The model would not answer, or a filter would not let it."""
        return self._refused or self.finish_reason == "content_filter"

    @property
    def truncated(self) -> bool:
        """Cut at the limit on its tokens."""
        return self.finish_reason == "length"

    @property
    def empty(self) -> bool:
        """Ended of its own accord with neither text nor a call of a tool (reasoning alone is no answer)."""
        return not (self._said or self._called or self.refused or self.truncated)


def choices_of(answer: Mapping[str, Any]) -> list[Choice]:
    """The choices of an answer that did not stream."""
    found: list[Choice] = []
    for given in (answer.get("choices") or ())[:MAX_CHOICES]:
        if isinstance(given, dict):
            choice = Choice()
            choice.add(given.get("message"), given.get("finish_reason"), collect=True)
            found.append(choice)
    return found
