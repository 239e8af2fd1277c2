"""What the gateway asks of a protocol: who calls, how a prompt gets into a request, what an answer says, its errors."""

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
"""Paths into a body, in the order in which they are looked at."""

# never `prompt_cache_key`, which users share
OPENAI_USER: Final[Fields] = (("safety_identifier",), ("user",), ("metadata", "user_id"))
OPENAI_CONVERSATION: Final[Fields] = (("conversation",), ("conversation", "id"), ("metadata", "conversation_id"))


@dataclass(slots=True)
class ParsedAnswer:
    """An answer that came as a whole, read."""

    body: dict[str, Any]
    choices: list[Choice]
    usage: Usage | None
    failure: str | None = None
    """The provider says in a 200 that it failed."""


class Protocol(ABC):
    """One wire format. Callers speak it to the gateway, providers to whom it is native speak it too."""

    name: ClassVar[str]
    """In the tables of providers and translations."""
    user_fields: ClassVar[Fields]
    """Where a body names its user; the first that is there counts."""
    conversation_fields: ClassVar[Fields]
    """Where a body names its conversation."""
    forwarded: ClassVar[tuple[str, ...]] = ()
    """Headers of the caller that a provider of the same protocol gets too."""
    compared: ClassVar[bool] = True
    """Whether requests take part in the rollout; else stable answers them, outside the analysis."""
    read_in_whole: ClassVar[bool] = True
    """Whether an answer that does not stream is read before it goes on; else a long one is not: see `usage_at`."""
    sampled: ClassVar[bool] = True
    """Whether requests are counted; else whichever arm is the user's is asked, and what becomes of it says nothing of
    the arm, nor of its provider."""

    def rollout(self, body: Body) -> str:
        """The rollout that a request names. Raises CallerError."""
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise CallerError(400, "model_missing", "model must name a rollout; see GET /v1/models", "model")
        return name

    @abstractmethod
    def overlay(self, spec: PromptSpec) -> Overlay:
        """What a version sets beside its messages. Raises Untranslatable for what this protocol cannot say."""

    @abstractmethod
    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        """The request with the version's prompt in it. Raises CallerError or Unfilled; leaves `body` as it is."""

    @abstractmethod
    def leaves_format(self, body: Body) -> bool:
        """Whether the caller left the format of the answer to the prompt: asked for none, or for none that says as much
        as a schema does. Such an answer has the version's, and is held against it."""

    def without_format(self, body: Body) -> Body:
        """The request without a format that the version's goes before; for providers that have no word for it."""
        return body

    @abstractmethod
    def read(self, payload: bytes) -> ParsedAnswer | None:
        """An answer as a whole; None if it is none of this protocol."""

    def events_of(self, whole: ParsedAnswer) -> bytes | None:
        """The stream that says the same as this answer; None where it cannot be made."""
        return None

    def usage_at(self, end: bytes) -> Usage | None:
        """What the last few kilobytes of a long answer say of its tokens."""
        return None

    def reader(self, body: Body, *, collect_content: bool) -> StreamReader:
        """For the stream that answers this request. Raises ProviderError where this protocol has no streams."""
        raise ProviderError("bad_response", 502, "the provider answered with a stream where there are none")

    @abstractmethod
    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        """What an error answer has for a body."""

    def error_event(self, status: int, message: str, code: str | None, events: int) -> bytes:
        """What a stream that has begun ends with where it fails; `events` were seen before."""
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
    """The JSON object of an answer, which has a list in this field; None if it is none."""
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
