"""Reads a streamed answer on the side: usage, what its choices say, when that began, whether it ended as it should."""

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
# two ends of lines, of any kind and mix; the common ones are found without it
_BLANK_LINE_BYTES: Final = 4
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")


class StreamError(Exception):
    """What arrives is no stream of chat completion events."""


class StreamTranslator(Protocol):
    """Turns the events of a provider's stream into those of the caller's protocol, as they come."""

    def event(self, found: dict[str, Any]) -> bytes:
        """What the caller gets for this event; empty if nothing."""

    def error(self, message: str, code: str) -> bytes:
        """What the caller gets last where the provider says in the stream that it failed, or the stream breaks."""

    def end(self) -> bytes:
        """What the caller still gets when the provider's stream is whole."""


class IdReplacement(Protocol):
    """Puts another id in the place of the provider's."""

    def replace_in(self, found: dict[str, Any], path: Sequence[str]) -> bool:
        """Have it in `found`, at `path`; whether there was an id at all."""

    def replaced(self, payload: bytes) -> bytes | None:
        """The payload that `found` was read from, with that id; None where it must be written anew."""


class StreamReader(ABC):
    """Takes the provider's bytes, gives back the bytes for the caller: whole events, as they came.

    A protocol says by `note` what its events mean.
    """

    id_paths: ClassVar[tuple[tuple[str, ...], ...]] = (("id",), ("response", "id"), ("message", "id"))
    """Where events say the id of the answer, those that do; the first that is there counts. Of chat completions, of
    OpenAI's responses, of Anthropic's messages: none has one of the others' places for something else."""

    def __init__(self) -> None:
        self._rest = bytearray()
        """An event that is not whole yet."""
        self._carriage_returns = False
        """The stream has some."""
        self.translator: StreamTranslator | None = None
        """Where the caller speaks another protocol."""
        self.answer_id: IdReplacement | None = None
        """What stands in the place of the provider's id."""
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
        data: bytes | bytearray = chunk
        start = looked_at = 0
        if self._rest:
            # an event in many small pieces is neither copied nor looked through for each of them
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
        """What is left when the provider closed: an event without its blank line, or nothing."""
        rest, self._rest = bytes(self._rest), bytearray()
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
            return event if self.translator is None else self.translator.error(self.error, "stream_broken")
        forwarded = self.note(found)
        if (answer_id := self.answer_id) is not None and any(
            answer_id.replace_in(found, path) for path in self.id_paths
        ):
            event = answer_id.replaced(event) or _with_payload(event, found)
        if self.translator is not None:
            return self.translator.event(found)
        return event if forwarded else b""

    def failure_of(self, found: dict[str, Any]) -> str | None:
        """What an event says of the provider's failure, if it is such an event."""
        if failure := found.get("error"):
            return str(failure.get("message") if isinstance(failure, dict) else failure)
        return None


def _payload(event: bytes) -> bytes:
    """What an event carries; empty of a comment."""
    at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if (at or event.startswith(b"data:")) and event.find(b"\n", at) == len(event) - 2 and b"\r" not in event:
        return event[at + 5 : -2].removeprefix(b" ")  # one line, the last: as nearly always
    lines = event.replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def _with_payload(event: bytes, found: dict[str, Any]) -> bytes:
    """The event with other data; its other fields as they are. Raises StreamError."""
    if (payload := dumped(found)) is None:
        raise StreamError("an event is nested too deeply")
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    others = [line for line in lines if line and not line.startswith(b"data:")]
    return b"\n".join([*others, b"data: " + payload, b"", b""])


def _event_end(data: bytes | bytearray, start: int, carriage_returns: bool) -> int:
    """Where the event that begins at `start` ends, its blank line included; -1 if it is not complete."""
    if carriage_returns:
        found = _BLANK_LINE.search(data, start)
        return -1 if found is None else found.end()
    at = data.find(b"\n\n", start)
    return -1 if at == -1 else at + 2
