"""Reads a streamed answer on the side: usage, what its choices say, when that began, whether it ended as it should."""

from __future__ import annotations

from typing import Any, Final

import orjson

from promptrollout.gateway.account import Usage
from promptrollout.gateway.choices import Choice

MAX_EVENT_BYTES: Final = 1024 * 1024
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class StreamError(Exception):
    """What arrives is no stream of chat completion events."""


class StreamReader:
    """Takes the provider's bytes, gives back the bytes for the caller: whole events, as they came.

    An event that carries only the usage is kept back unless the caller asked for it: we did.
    """

    def __init__(self, *, forward_usage: bool, collect_content: bool) -> None:
        self._forward_usage = forward_usage
        self._collect_content = collect_content
        self._rest = b""
        self._choices: dict[int, Choice] = {}
        self.usage: Usage | None = None
        self.done = False
        """`[DONE]` was seen."""
        self.error: str | None = None
        """The provider said in the stream that it failed."""
        self.events = 0
        self.begun = False
        """Something of the answer was seen: more than its role."""

    def feed(self, chunk: bytes) -> bytes:
        """Whole events that `chunk` completes. Raises StreamError."""
        data = self._rest + chunk if self._rest else chunk
        forward: list[bytes] = []
        start = 0
        while (end := _event_end(data, start)) != -1:
            event = data[start:end]
            start = end
            if self._read(event):
                forward.append(event)
        self._rest = data[start:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise StreamError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return b"".join(forward)

    def finish(self) -> bytes:
        """What is left when the provider closed: an event without its blank line, or nothing."""
        rest, self._rest = self._rest, b""
        return rest + b"\n\n" if rest.strip() and self._read(rest) else b""

    @property
    def complete(self) -> bool:
        """The answer is whole: the end marker was seen, or each choice said why it ended."""
        return self.done or (bool(self._choices) and all(c.finish_reason for c in self._choices.values()))

    def choices(self) -> list[Choice]:
        return list(self._choices.values())

    def _read(self, event: bytes) -> bool:
        """Note what the event says; whether it is forwarded."""
        payload = b"\n".join(
            line[5:].lstrip(b" ") for line in event.replace(b"\r", b"\n").split(b"\n") if line.startswith(b"data:")
        )
        if not payload:
            return True  # a comment that keeps the connection alive
        if payload.strip() == b"[DONE]":
            self.done = True
            return True
        try:
            found = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise StreamError(f"an event is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise StreamError("an event is not a JSON object")
        self.events += 1
        if failure := found.get("error"):
            self.error = str(failure.get("message") if isinstance(failure, dict) else failure)[:1000]
            return True
        if usage := Usage.read(found.get("usage")):
            self.usage = usage
        choices = found.get("choices")
        if not choices:
            return self._forward_usage or not found.get("usage")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._grow(choice)
        return True

    def _grow(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        growing = self._choices.setdefault(index if isinstance(index, int) else 0, Choice())
        if growing.add(choice.get("delta"), choice.get("finish_reason"), collect=self._collect_content):
            self.begun = True


def _event_end(data: bytes, start: int) -> int:
    """Where the event that begins at `start` ends, its blank line included; -1 if it is not complete."""
    found = [(at, len(end)) for end in _ENDS if (at := data.find(end, start)) != -1]
    if not found:
        return -1
    at, length = min(found)
    return at + length
