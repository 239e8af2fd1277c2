"""Answers of OpenAI's chat API, whole and streamed, translated to Anthropic's Messages API."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.messages import MESSAGES
from promptrollout.llm.translations.blocks import Blocks, event
from promptrollout.llm.translations.fields import arguments, count, listed

_STOPS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def answer(completion: dict[str, Any], _: Body) -> dict[str, Any]:
    """The first choice as a message. Raises ValueError."""
    choice = next(iter(listed(completion["choices"])), {})
    choice_message = choice.get("message")
    message: Body = choice_message if isinstance(choice_message, dict) else {}
    content: list[Body] = []
    for text in (message.get("content"), message.get("refusal")):
        if isinstance(text, str) and text:
            content.append({"type": "text", "text": text})
    for call in listed(message.get("tool_calls")):
        function = call.get("function")
        if not isinstance(function, dict):
            raise ValueError("a tool call has no function")
        parsed = arguments(function.get("arguments"))
        content.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": parsed})
    stop_reason = "refusal" if message.get("refusal") else _STOPS.get(str(choice.get("finish_reason")), "end_turn")
    return {
        "id": completion.get("id"),
        "type": "message",
        "role": "assistant",
        "model": completion.get("model"),
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": _usage(completion.get("usage")),
    }


class MessagesStream:
    """Chunks of a chat completion as Anthropic's events. Of several choices only the first is translated."""

    def __init__(self, body: Body) -> None:
        self._started = False
        self._blocks = Blocks()
        self._stop_reason = "end_turn"
        self._refused = False
        self._usage: Body = _usage(None)

    def event(self, event: dict[str, Any]) -> bytes:
        out = [] if self._started else [self._start(event)]
        if isinstance(event.get("usage"), dict):
            self._usage = _usage(event["usage"])
        for choice in listed(event.get("choices")):
            if not choice.get("index"):
                self._choice(choice, out)
        return b"".join(out)

    def error(self, message: str, code: str) -> bytes:
        return MESSAGES.error_event(502, message, code, 0)

    def end(self) -> bytes:
        out = [] if self._started else [self._start({})]
        self._blocks.close(out)
        delta = {"stop_reason": "refusal" if self._refused else self._stop_reason, "stop_sequence": None}
        out.append(event("message_delta", delta=delta, usage=self._usage))
        out.append(event("message_stop"))
        return b"".join(out)

    def _start(self, chunk: dict[str, Any]) -> bytes:
        self._started = True
        message: Body = {
            "id": chunk.get("id"),
            "type": "message",
            "role": "assistant",
            "model": chunk.get("model"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(None),  # OpenAI's comes at the end
        }
        return event("message_start", message=message)

    def _choice(self, choice: Body, out: list[bytes]) -> None:
        parsed = choice.get("delta")
        delta = parsed if isinstance(parsed, dict) else {}
        for name in ("content", "refusal"):
            if isinstance(text := delta.get(name), str) and text:
                self._refused = self._refused or name == "refusal"
                self._blocks.text(text, out)
        for call in listed(delta.get("tool_calls")):
            self._blocks.call(call, out)
        if reason := choice.get("finish_reason"):
            self._stop_reason = _STOPS.get(str(reason), "end_turn")


def _usage(usage: Any) -> Body:
    """OpenAI counts cached tokens within `prompt_tokens`, Anthropic separately from `input_tokens`."""
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    prompt = count(usage, "prompt_tokens")
    read = min(prompt, count(details, "cached_tokens"))
    written = min(prompt - read, count(details, "cache_write_tokens"))
    return {
        "input_tokens": prompt - read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": count(usage, "completion_tokens"),
    }
