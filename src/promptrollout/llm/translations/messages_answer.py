"""Anthropic's answers, whole and streamed, translated to OpenAI's chat API."""

from __future__ import annotations

import time
from typing import Any, Final

import orjson

from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.chat import CHAT, wants_usage
from promptrollout.llm.protocols.messages import finish_of
from promptrollout.llm.translations.fields import cached_input, count, dumped, dumped_in_stream, listed

_REASONS: Final = ("stop", "length", "tool_calls", "content_filter")


def answer(message_body: dict[str, Any], _: Body) -> dict[str, Any]:
    """A message as a chat completion with one choice."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Body] = []
    for block in listed(message_body["content"]):
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text") or ""))
        elif kind == "thinking":
            reasoning.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": dumped(block.get("input"))}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
    message: Body = {"role": "assistant", "content": "".join(texts) if texts or not calls else None, "refusal": None}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _finish_reason(message_body.get("stop_reason")),
    }
    return {
        "id": message_body.get("id"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": message_body.get("model"),
        "choices": [choice],
        "usage": _usage(message_body.get("usage")),
    }


class ChatStream:
    """Anthropic's events as chunks of a chat completion."""

    def __init__(self, body: Body) -> None:
        self._usage_wanted = wants_usage(body)
        self._frame: Body = {}
        self._calls: dict[str, int] = {}
        """Numbers of the tool calls, by the index of their block."""
        self._pending_inputs: dict[str, Any] = {}
        """Arguments of tool calls without deltas so far, by the same index."""
        self._usage: Body = {}

    def event(self, event: dict[str, Any]) -> bytes:
        kind = event.get("type")
        if kind == "content_block_delta":
            return self._delta(event)
        if kind == "content_block_start":
            return self._block(event)
        if kind == "content_block_stop" and (index := str(event.get("index"))) in self._pending_inputs:
            return self._arguments(index, dumped_in_stream(self._pending_inputs.pop(index)))
        if kind == "message_start":
            message = event.get("message")
            message = message if isinstance(message, dict) else {}
            self._count(message.get("usage"))
            self._frame = {
                "id": message.get("id"),
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": message.get("model"),
            }
            return self._chunk({"role": "assistant", "content": ""})
        if kind == "message_delta":
            self._count(event.get("usage"))
            delta = event.get("delta")
            reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            return self._chunk({}, _finish_reason(reason)) if reason else b""
        return b": ping\n\n" if kind == "ping" else b""

    def error(self, message: str, code: str) -> bytes:
        return CHAT.error_event(502, message, code, 0)

    def end(self) -> bytes:
        last = b""
        if self._usage_wanted:
            last = _sent({**self._frame, "choices": [], "usage": _usage(self._usage)})
        return last + b"data: [DONE]\n\n"

    def _block(self, event: dict[str, Any]) -> bytes:
        block = event.get("content_block")
        if not isinstance(block, dict):
            return b""
        if block.get("type") == "tool_use":
            index = str(event.get("index"))
            number = self._calls.setdefault(index, len(self._calls))
            self._pending_inputs[index] = block.get("input")
            call = {"index": number, "id": block.get("id"), "type": "function"}
            return self._chunk({"tool_calls": [{**call, "function": {"name": block.get("name"), "arguments": ""}}]})
        return self._chunk({"content": block["text"]}) if block.get("text") else b""

    def _delta(self, event: dict[str, Any]) -> bytes:
        delta = event.get("delta")
        kind = delta.get("type") if isinstance(delta, dict) else None
        if not isinstance(delta, dict):
            return b""
        if kind == "text_delta":
            return self._chunk({"content": delta.get("text")})
        if kind == "thinking_delta":
            return self._chunk({"reasoning_content": delta.get("thinking")})
        if kind == "input_json_delta" and (index := str(event.get("index"))) in self._calls:
            if delta.get("partial_json"):
                self._pending_inputs.pop(index, None)
            return self._arguments(index, delta.get("partial_json"))
        return b""

    def _arguments(self, index: str, arguments: Any) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls[index], "function": {"arguments": arguments}}]})

    def _chunk(self, delta: Body, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _sent({**self._frame, "choices": [choice]})

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage.update({name: value for name, value in usage.items() if value is not None})


def _finish_reason(stop_reason: Any) -> str:
    reason = finish_of(stop_reason)
    return reason if reason in _REASONS else "stop"


def _usage(usage: Any) -> Body | None:
    if not isinstance(usage, dict) or not usage:
        return None
    (prompt, read, written), completion = cached_input(usage), count(usage, "output_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }


def _sent(chunk: Body) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
