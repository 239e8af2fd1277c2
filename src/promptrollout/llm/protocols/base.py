"""A protocol of callers and providers: its stickiness fields, prompts, answers, streams and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.answers.choices import Choice
from promptrollout.llm.answers.streams import StreamReader
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.errors import CallerError, ProviderError
from promptrollout.llm.prompts.prompt import Body, CompiledPrompt, Overlay

Fields = tuple[tuple[str, ...], ...]
"""Paths into a body, in order of precedence."""

# never `prompt_cache_key`, which users share
OPENAI_USER: Final[Fields] = (("safety_identifier",), ("user",), ("metadata", "user_id"))
OPENAI_CONVERSATION: Final[Fields] = (("conversation",), ("conversation", "id"), ("metadata", "conversation_id"))


@dataclass(slots=True)
class ParsedAnswer:
    """An answer that did not stream, parsed."""

    body: dict[str, Any]
    choices: list[Choice]
    usage: Usage | None
    failure: str | None = None
    """The error that the provider reported in a 200."""


class Protocol(ABC):
    """One wire format, of callers and of the providers to which it is native."""

    name: ClassVar[str]
    """Its name in the tables of providers and translations."""
    user_fields: ClassVar[Fields]
    """Where a body names its user; the first one present counts."""
    conversation_fields: ClassVar[Fields]
    """Where a body names its conversation."""
    forwarded: ClassVar[tuple[str, ...]] = ()
    """Headers of the caller that are forwarded to a provider of the same protocol."""
    compared: ClassVar[bool] = True
    """Whether requests take part in the rollout. If not, stable answers them, outside the analysis."""
    read_in_whole: ClassVar[bool] = True
    """Whether an answer that does not stream is read before it is sent. If not, a long one is passed through."""
    sampled: ClassVar[bool] = True
    """Whether requests are counted. If not, the user's arm answers, but the outcome says nothing about the arm or its
    provider."""

    def rollout(self, body: Body) -> str:
        """The rollout that a request names. Raises CallerError."""
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise CallerError(400, "model_missing", "model must name a rollout; see GET /v1/models", "model")
        return name

    @abstractmethod
    def overlay(self, spec: PromptSpec) -> Overlay:
        """What a version sets besides its messages. Raises Untranslatable for what this protocol does not support."""

    @abstractmethod
    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        """The request with the version's prompt. Raises CallerError or PrepareError; does not change `body`."""

    @abstractmethod
    def leaves_format(self, body: Body) -> bool:
        """Whether the caller left the answer's format to the prompt: it asked for none, or for one without a schema.
        The answer then has the version's schema, and is checked against it."""

    def without_format(self, body: Body) -> Body:
        """The request without a format that the version's schema replaces, for providers that do not support it."""
        return body

    @abstractmethod
    def read(self, payload: bytes) -> ParsedAnswer | None:
        """Parse a whole answer; None if it is not one of this protocol."""

    def as_stream(self, whole: ParsedAnswer) -> bytes | None:
        """This answer as a stream; None if it cannot be expressed as one."""
        return None

    def usage_at(self, end: bytes) -> Usage | None:
        """The usage in the last kilobytes of a long answer."""
        return None

    def reader(self, body: Body, *, collect_content: bool) -> StreamReader:
        """A reader for the stream that answers this request. Raises ProviderError if this protocol has no streams."""
        raise ProviderError("bad_response", 502, "the provider sent an event stream where a JSON answer is expected")

    @abstractmethod
    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        """The body of an error answer."""

    def error_event(self, status: int, message: str, code: str | None, events: int) -> bytes:
        """The last event of a stream that fails after `events` events."""
        return b"data: " + self.error_body(status, message, code) + b"\n\n"


class OneChoiceReader(StreamReader):
    """Of streams that carry one choice, and say themselves when it is whole."""

    def __init__(self, *, collect_content: bool) -> None:
        super().__init__()
        self._collect_content = collect_content
        self._choice = Choice()

    @property
    def complete(self) -> bool:
        return self.done

    def choices(self) -> list[Choice]:
        return [self._choice]

    def _add(self, message: Body) -> None:
        if self._choice.add(message, None, collect=self._collect_content):
            self.begun = True


def parsed_answer(payload: bytes, field: str) -> Body | None:
    """The JSON object of an answer, which has a list in this field; None for anything else."""
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get(field), list) else None


def objects_of(given: list[Any], field: str) -> list[Body]:
    """What a request has in this field. Raises CallerError unless all of it are objects."""
    for index, each in enumerate(given):
        if not isinstance(each, dict):
            raise CallerError(400, "invalid_type", f"{field}[{index}] must be an object", f"{field}[{index}]")
    return given
