"""Anthropic's counting of tokens: `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from typing import ClassVar, Final

import orjson

from promptrollout.llm.answers.streams import StreamReader
from promptrollout.llm.prompts.prompt import Body, CompiledPrompt
from promptrollout.llm.protocols.base import ParsedAnswer, Protocol
from promptrollout.llm.protocols.messages import Messages

ONLY_TO_ANSWER: Final = frozenset(
    {"max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "metadata", "service_tier"}
    | {"container", "diagnostics", "inference_geo"}
)
"""Fields that say how to answer: they have no tokens, and the endpoint that counts tokens rejects them."""


class CountTokens(Messages):
    """The request as this user's arm would send it, but its tokens are counted and it is not answered."""

    name: ClassVar = "count_tokens"
    sampled: ClassVar = False

    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        request = super().with_prompt(prompt, body)
        return {name: value for name, value in request.items() if name not in ONLY_TO_ANSWER}

    def read(self, payload: bytes) -> ParsedAnswer | None:
        try:
            parsed = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return None
        counted = isinstance(parsed, dict) and isinstance(parsed.get("input_tokens"), int)
        return ParsedAnswer(parsed, [], None) if counted else None

    def reader(self, body: Body, *, collect_content: bool) -> StreamReader:
        return Protocol.reader(self, body, collect_content=collect_content)


COUNT_TOKENS: Final = CountTokens()
