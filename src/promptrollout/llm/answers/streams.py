"""Read a streamed answer while it is forwarded: usage, choices, first token, and whether it ended properly."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Protocol

import orjson

from promptrollout.llm.answers.choices import Choice
from promptrollout.llm.answers.json_text import dumped
from promptrollout.llm.answers.usage import Usage

MAX_EVENT_BYTES: Final = 1024 * 1024
# two line ends, of any kind and mix; the common case is found without it
_BLANK_LINE_BYTES: Final = 4
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")


class StreamError(Exception):
    """The provider's bytes are not a valid stream of events."""


class StreamTranslator(Protocol):
    """Translates the events of a provider's stream to the caller's protocol, one by one."""

    def event(self, event: dict[str, Any]) -> bytes:
        """The caller's bytes for this event; empty if there are none."""

    def error(self, message: str, code: str) -> bytes:
        """The caller's last bytes if the provider reports an error in the stream, or the stream breaks."""

    def end(self) -> bytes:
        """The caller's last bytes once the provider's stream is complete."""


class IdReplacement(Protocol):
    """Replaces the provider's id of an answer."""

    def replace_in(self, body: dict[str, Any], path: Sequence[str]) -> bool:
        """Replace the id in `body`, at `path`; whether there was one."""

    def replaced(self, payload: bytes) -> bytes | None:
        """The payload that the body was parsed from, with the new id; None if it must be serialized again."""


class StreamReader(ABC):
    """Takes the provider's bytes and returns the caller's: complete events, unchanged where possible.

    Each protocol implements `read_event` for the meaning of its events.
    """

    id_paths: ClassVar[tuple[tuple[str, ...], ...]] = (("id",), ("response", "id"), ("message", "id"))
    """Where events have the id of the answer: in chat completions, in OpenAI's responses, in Anthropic's messages. No
    protocol uses another's place for something else."""

    def __init__(self) -> None:
        self._rest = bytearray()
        """The beginning of an incomplete event."""
        self._carriage_returns = False
        """The stream contains some."""
        self.translator: StreamTranslator | None = None
        """Set if the caller uses another protocol."""
        self.answer_id: IdReplacement | None = None
        """Set if the provider's id is replaced."""
        self.usage: Usage | None = None
        self.done = False
        """The end marker was seen."""
        self.error: str | None = None
        """The error that the provider reported in the stream."""
        self.events = 0
        self.begun = False
        """Some of the answer was seen: more than its role."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """The answer is complete."""

    @abstractmethod
    def choices(self) -> list[Choice]:
        """The choices, as far as they have arrived."""

    @abstractmethod
    def read_event(self, event: dict[str, Any]) -> bool:
        """Read an event; whether to forward it to the caller."""

    def feed(self, chunk: bytes) -> bytes:
        """The complete events up to the end of `chunk`. Raises StreamError."""
        data: bytes | bytearray = chunk
        start = looked_at = 0
        if self._rest:
            # an event in many small pieces is neither copied nor searched again for each of them
            looked_at = max(0, len(self._rest) - _BLANK_LINE_BYTES)
            self._rest += chunk
            data = self._rest
        self._carriage_returns = self._carriage_returns or b"\r" in chunk
        forward: list[bytes] = []
        while (end := _event_end(data, max(start, looked_at), self._carriage_returns)) != -1:
            event = bytes(data[start:end])
            start = end
            forward.append(self._read(event))
        if data is self._rest:
            del self._rest[:start]
        elif start < len(data):
            self._rest = bytearray(data[start:])
        if len(self._rest) > MAX_EVENT_BYTES:
            raise StreamError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return b"".join(forward)

    def finish(self) -> bytes:
        """The rest after the provider closed the stream: an event without its blank line, or nothing."""
        rest, self._rest = bytes(self._rest), bytearray()
        last = self._read(rest + b"\n\n") if rest.strip() else b""
        if self.translator is not None and self.complete and self.error is None:
            last += self.translator.end()
        return last

    def _read(self, event: bytes) -> bytes:
        """Read one event; the bytes to forward for it."""
        payload = _payload(event)
        if not payload:
            return event  # a comment that keeps the connection alive
        if payload.strip() == b"[DONE]":
            self.done = True
            return event if self.translator is None else b""
        try:
            parsed = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise StreamError(f"an event is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise StreamError("an event is not a JSON object")
        self.events += 1
        if failure := self.failure_of(parsed):
            self.error = failure[:1000]
            return event if self.translator is None else self.translator.error(self.error, "stream_broken")
        forwarded = self.read_event(parsed)
        if (answer_id := self.answer_id) is not None and any(
            answer_id.replace_in(parsed, path) for path in self.id_paths
        ):
            event = answer_id.replaced(event) or _with_payload(event, parsed)
        if self.translator is not None:
            return self.translator.event(parsed)
        return event if forwarded else b""

    def failure_of(self, event: dict[str, Any]) -> str | None:
        """The message of an event that reports an error; None for other events."""
        if failure := event.get("error"):
            return str(failure.get("message") if isinstance(failure, dict) else failure)
        return None


def _payload(event: bytes) -> bytes:
    """The data of an event; empty for a comment."""
    at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if (at or event.startswith(b"data:")) and event.find(b"\n", at) == len(event) - 2 and b"\r" not in event:
        return event[at + 5 : -2].removeprefix(b" ")  # one data line at the end: the common case
    lines = event.replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def _with_payload(event: bytes, body: dict[str, Any]) -> bytes:
    """The event with this data, its other fields unchanged. Raises StreamError."""
    if (payload := dumped(body)) is None:
        raise StreamError("an event is nested too deeply")
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    others = [line for line in lines if line and not line.startswith(b"data:")]
    return b"\n".join([*others, b"data: " + payload, b"", b""])


def _event_end(data: bytes | bytearray, start: int, carriage_returns: bool) -> int:
    """Where the event that begins at `start` ends, with its blank line; -1 if it is incomplete."""
    if carriage_returns:
        blank = _BLANK_LINE.search(data, start)
        return -1 if blank is None else blank.end()
    at = data.find(b"\n\n", start)
    return -1 if at == -1 else at + 2
