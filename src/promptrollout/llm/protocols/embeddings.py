"""OpenAI's embeddings: `POST /v1/embeddings`, passed through to stable's provider under stable's model."""

from __future__ import annotations

import re
from typing import ClassVar, Final

import orjson

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.errors import error_object
from promptrollout.llm.prompts.prompt import Body, CompiledPrompt, Overlay
from promptrollout.llm.protocols.base import (
    OPENAI_CONVERSATION,
    OPENAI_USER,
    Fields,
    ParsedAnswer,
    Protocol,
    parsed_answer,
)

# nothing else after the vectors has braces
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


class Embeddings(Protocol):
    """Has no prompt, so there is nothing to compare: stable answers, outside the analysis."""

    name: ClassVar = "embeddings"
    user_fields: ClassVar[Fields] = OPENAI_USER
    conversation_fields: ClassVar[Fields] = OPENAI_CONVERSATION
    compared: ClassVar = False
    read_in_whole: ClassVar = False

    def overlay(self, spec: PromptSpec) -> Overlay:
        return Overlay({"model": spec.model})

    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        return prompt.overlay(self.name, self.overlay).over(body)

    def leaves_format(self, body: Body) -> bool:
        return False

    def read(self, payload: bytes) -> ParsedAnswer | None:
        parsed = parsed_answer(payload, "data")
        return None if parsed is None else ParsedAnswer(parsed, [], Usage.read(parsed.get("usage")))

    def usage_at(self, end: bytes) -> Usage | None:
        """After the vectors, where all known servers have it."""
        match = _USAGE.search(end)
        try:
            return Usage.read(orjson.loads(match[1])) if match else None
        except orjson.JSONDecodeError:
            return None

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        return error_object(status, message, code, param)


EMBEDDINGS: Final = Embeddings()
