"""What OpenAI's APIs have in common: who calls, how a form of the answer is asked for, and errors."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Final

from promptrollout.llm.errors import error_object
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.base import OPENAI_CONVERSATION, OPENAI_USER, Fields, Protocol

_LOOSER: Final = ("text", "json_object")
"""Formats of an answer that say less than a version's schema does."""


class OpenAIProtocol(Protocol):
    """One of OpenAI's."""

    user_fields: ClassVar[Fields] = OPENAI_USER
    conversation_fields: ClassVar[Fields] = OPENAI_CONVERSATION

    @abstractmethod
    def asked_format(self, body: Body) -> Any:
        """The form of the answer that the caller asks for; None if for none."""

    def leaves_format(self, body: Body) -> bool:
        asked = self.asked_format(body)
        return asked is None or (isinstance(asked, dict) and asked.get("type") in _LOOSER)

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        return error_object(status, message, code, param)


def answer_schema(schema: dict[str, Any]) -> Body:
    """A version's output schema, as it is asked for."""
    return {"name": "answer", "strict": False, "schema": schema}
