"""Reads a streamed answer on the side: usage, what its choices say, when that began, whether it ended as it should."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, Protocol

import orjson

from promptrollout.gateway.account import Usage
from promptrollout.gateway.choices import Choice

MAX_EVENT_BYTES: Final = 1024 * 1024
_PLAIN_END: Final = (b"\n\n",)
_ENDS: Final = (*_PLAIN_END, b"\r\n\r\n", b"\r\r")


class StreamError(Exception):
    """What arrives is no stream of chat completion events."""


class StreamTranslator(Protocol):
    """Turns the events of a provider's stream into those of the caller's protocol, as they come."""

    def event(self, found: dict[str, Any]) -> bytes:
        """What the caller gets for this event; empty if nothing."""

    def error(self, message: str) -> bytes:
        """What the caller gets where the provider says in the stream that it failed."""

    def end(self) -> bytes:
        """What the caller still gets when the provider's stream is whole."""


class StreamReader(ABC):
    """Takes the provider's bytes, gives back the bytes for the caller: whole events, as they came.

    A protocol says by `note` what its events mean.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.translator: StreamTranslator | None = None
        """Where the caller speaks another protocol."""
        self.usage: Usage | None = None
        self.done = False
        """The end marker was seen."""
        self.error: str | None = None
        """The provider said in the stream that it failed."""
        self.events = 0
        self.begun = False
        """Something of the answer was seen: more than its role."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """The answer is whole."""

    @abstractmethod
    def choices(self) -> list[Choice]:
        """What was answered, as far as it has arrived."""

    @abstractmethod
    def note(self, found: dict[str, Any]) -> bool:
        """Take in what an event says; whether it goes on to the caller."""

    def feed(self, chunk: bytes) -> bytes:
        """Whole events that `chunk` completes. Raises StreamError."""
        data = self._rest + chunk if self._rest else chunk
        forward: list[bytes] = []
        start = 0
        ends = _PLAIN_END if b"\r" not in data else _ENDS
        while (end := _event_end(data, start, ends)) != -1:
            event = data[start:end]
            start = end
            forward.append(self._read(event))
        self._rest = data[start:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise StreamError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return b"".join(forward)

    def finish(self) -> bytes:
        """What is left when the provider closed: an event without its blank line, or nothing."""
        rest, self._rest = self._rest, b""
        last = self._read(rest + b"\n\n") if rest.strip() else b""
        if self.translator is not None and self.complete and self.error is None:
            last += self.translator.end()
        return last

    def _read(self, event: bytes) -> bytes:
        """Note what the event says; what goes on for it."""
        payload = _payload(event)
        if not payload:
            return event  # a comment that keeps the connection alive
        if payload.strip() == b"[DONE]":
            self.done = True
            return event if self.translator is None else b""
        try:
            found = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise StreamError(f"an event is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise StreamError("an event is not a JSON object")
        self.events += 1
        if failure := self.failure_of(found):
            self.error = failure[:1000]
            return event if self.translator is None else self.translator.error(self.error)
        forwarded = self.note(found)
        if self.translator is not None:
            return self.translator.event(found)
        return event if forwarded else b""

    @staticmethod
    def failure_of(found: dict[str, Any]) -> str | None:
        """What an event says of the provider's failure, if it is such an event."""
        if failure := found.get("error"):
            return str(failure.get("message") if isinstance(failure, dict) else failure)
        return None


def _payload(event: bytes) -> bytes:
    """The event's data; empty if it has none."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[5:-2].lstrip(b" ")  # one line, as all providers send it
    lines = event.replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].lstrip(b" ") for line in lines if line.startswith(b"data:"))


def _event_end(data: bytes, start: int, ends: tuple[bytes, ...]) -> int:
    """Where the event that begins at `start` ends, its blank line included; -1 if it is not complete."""
    if ends is _PLAIN_END:
        at = data.find(b"\n\n", start)
        return -1 if at == -1 else at + 2
    found = [(at, len(end)) for end in ends if (at := data.find(end, start)) != -1]
    if not found:
        return -1
    at, length = min(found)
    return at + length
