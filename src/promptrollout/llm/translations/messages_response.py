"""Anthropic's answers, whole and streamed, translated to OpenAI's Responses API."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Final

import orjson

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.messages import finish_of
from promptrollout.llm.protocols.signed_reasoning import TRANSLATED_PREFIX
from promptrollout.llm.translations.blocks import MAX_CHARACTERS
from promptrollout.llm.translations.fields import cached_input, count, dumped, dumped_in_stream, listed

_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete."""

ITEM_CHARACTERS: Final = 1000
"""Counted for each item of the output, besides its text."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of text item: its parts, and the events for them."""

    item: Body
    prefix: str
    """Prefix of its id."""
    parts: str
    """The item's field for its parts."""
    part: Body
    beside_text: Body
    """Further fields of events with text."""
    index: str
    events: tuple[str, str, str, str]
    """Names of the events: a part begins, some text, the whole text, the part ends."""


_MESSAGE: Final = _Kind(
    item={"type": "message", "role": "assistant"},
    prefix="msg_",
    parts="content",
    part={"type": "output_text", "annotations": [], "logprobs": []},
    beside_text={"logprobs": []},
    index="content_index",
    events=(
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
    ),
)
_REASONING: Final = _Kind(
    item={"type": "reasoning"},
    prefix=TRANSLATED_PREFIX,
    parts="summary",
    part={"type": "summary_text"},
    beside_text={},
    index="summary_index",
    events=(
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ),
)
_KINDS: Final = {
    "text": (_MESSAGE, "text"),
    "text_delta": (_MESSAGE, "text"),
    "thinking": (_REASONING, "thinking"),
    "thinking_delta": (_REASONING, "thinking"),
}
"""By the type of a block or a delta: its kind, and the field with its text."""


def answer(message_body: dict[str, Any], body: Body) -> dict[str, Any]:
    """A message as a response to this request. Raises ValueError."""
    output: list[Body] = []
    open_kind: _Kind | None = None
    for block in listed(message_body["content"]):
        kind, text = _text_of(block)
        if kind is not None and text:
            if kind is not open_kind:
                output.append(_text_item(kind, message_body.get("id"), len(output), "completed"))
            output[-1][kind.parts].append({**kind.part, "text": text})
            open_kind = kind
        elif block.get("type") == "tool_use":
            call = _call_item(block, message_body.get("id"), len(output), "completed")
            output.append(call | {"arguments": dumped(block.get("input"))})
            open_kind = None
    now = int(time.time())
    response = {**_frame(message_body, body, now), "output": output, "usage": _usage(message_body.get("usage"))}
    return response | _ended(message_body.get("stop_reason"), output, now)


class ResponseStream:
    """Anthropic's events as those of a response, numbered."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._events = 0
        self._characters = 0
        self._frame: Body | None = None
        """The fields of the response that are known from the beginning."""
        self._output: list[Body] = []
        self._kind: _Kind | None = None
        """The kind of the open text item."""
        self._part: list[str] | None = None
        """Pieces of its open part."""
        self._place: Body = {}
        """Where that part is."""
        self._call: list[str] | None = None
        """Pieces of the arguments of the open tool call."""
        self._input: Any = None
        """The input of that call, if it came without deltas."""
        self._stop_reason: Any = None
        self._usage: Body = {}

    def event(self, event: dict[str, Any]) -> bytes:
        kind = event.get("type")
        if kind == "ping":
            return b": ping\n\n"
        out: list[bytes] = []
        if self._frame is None:
            self._begin(event.get("message"), out)
        if kind == "content_block_delta":
            self._add(event.get("delta"), out)
        elif kind == "content_block_start":
            self._add(event.get("content_block"), out)
        elif kind == "content_block_stop":
            self._end_part(out)
        elif kind == "message_delta":
            delta = event.get("delta")
            self._stop_reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            self._count(event.get("usage"))
        return b"".join(out)

    def error(self, message: str, code: str) -> bytes:
        """The code is left out: a response may only have OpenAI's own codes."""
        out: list[bytes] = []
        if self._frame is None:
            self._begin(None, out)
        if self._output and self._output[-1]["status"] == "in_progress":
            self._output[-1]["status"] = "incomplete"
        self._emit(out, "response.failed", response=self._response() | _failure(message))
        return b"".join(out)

    def end(self) -> bytes:
        out: list[bytes] = []
        if self._frame is None:
            self._begin(None, out)
        ending = _ended(self._stop_reason, self._output, int(time.time()))
        self._end_item(out)
        self._emit(out, f"response.{ending['status']}", response=self._response() | ending)
        return b"".join(out)

    def _begin(self, message: Any, out: list[bytes]) -> None:
        message = message if isinstance(message, dict) else {}
        self._count(message.get("usage"))
        self._frame = _frame(message, self._body, int(time.time()))
        response = {**self._frame, "output": [], "usage": None}
        self._emit(out, "response.created", response=response)
        self._emit(out, "response.in_progress", response=response)

    def _add(self, block: Any, out: list[bytes]) -> None:
        """Add a block, or a delta of one."""
        if not isinstance(block, dict):
            return
        kind, text = _text_of(block)
        if kind is not None:
            if text:
                self._add_text(kind, text, out)
        elif block.get("type") == "tool_use":
            item = _call_item(block, self._id, self._begin_item(out), "in_progress")
            self._call, self._input = [], block.get("input")
            self._add_item(item, out)
        elif block.get("type") == "input_json_delta" and self._call is not None:
            self._add_arguments(block.get("partial_json"), out)

    def _add_text(self, kind: _Kind, text: str, out: list[bytes]) -> None:
        if kind is not self._kind:
            item = _text_item(kind, self._id, self._begin_item(out), "in_progress")
            self._kind = kind
            self._add_item(item, out)
        begins, delta, _, _ = kind.events
        if self._part is None:
            self._part = []
            self._place = {**self._at, kind.index: len(self._output[-1][kind.parts])}
            self._emit(out, begins, **self._place, part={**kind.part, "text": ""})
        self._count_characters(len(text))
        self._part.append(text)
        self._emit(out, delta, **self._place, delta=text, **kind.beside_text)

    def _count_characters(self, characters: int) -> None:
        """Count characters that are kept for the last event. Raises StreamError if there are too many."""
        self._characters += characters
        if self._characters > MAX_CHARACTERS:
            raise StreamError(f"the answer is longer than {MAX_CHARACTERS} characters")

    def _end_part(self, out: list[bytes]) -> None:
        if self._kind is None or self._part is None:
            return
        text = "".join(self._part)
        part = {**self._kind.part, "text": text}
        _, _, whole, ends = self._kind.events
        self._emit(out, whole, **self._place, text=text, **self._kind.beside_text)
        self._emit(out, ends, **self._place, part=part)
        self._output[-1][self._kind.parts].append(part)
        self._part = None

    def _add_arguments(self, arguments: Any, out: list[bytes]) -> None:
        if self._call is not None and isinstance(arguments, str) and arguments:
            self._count_characters(len(arguments))
            self._call.append(arguments)
            self._emit(out, "response.function_call_arguments.delta", **self._at, delta=arguments)

    def _end_call(self, out: list[bytes]) -> None:
        if self._call is None:
            return
        if not self._call:  # told at once, or there are none
            self._add_arguments(dumped_in_stream(self._input), out)
        item = self._output[-1]
        item["arguments"] = "".join(self._call)
        done = {"arguments": item["arguments"], "name": item["name"]}
        self._emit(out, "response.function_call_arguments.done", **self._at, **done)
        self._call = None

    def _begin_item(self, out: list[bytes]) -> int:
        """The index of the next item."""
        self._end_item(out)
        return len(self._output)

    def _add_item(self, item: Body, out: list[bytes]) -> None:
        self._count_characters(ITEM_CHARACTERS)
        self._output.append(item)
        self._emit(out, "response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _end_item(self, out: list[bytes]) -> None:
        """End the open item. Only when something follows is it known that it was not cut."""
        if self._kind is None and self._call is None:
            return
        self._end_part(out)
        self._end_call(out)
        self._kind = None
        item = self._output[-1]
        if item["status"] == "in_progress":
            item["status"] = "completed"
        self._emit(out, "response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _id(self) -> Any:
        return None if self._frame is None else self._frame["id"]

    @property
    def _at(self) -> Body:
        """Fields that identify the open item."""
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _response(self) -> Body:
        return {**(self._frame or {}), "output": self._output, "usage": _usage(self._usage)}

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage.update({name: value for name, value in usage.items() if value is not None})

    def _emit(self, out: list[bytes], kind: str, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": self._events, **fields}
        self._events += 1
        out.append(b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n")


def _frame(message: Body, body: Body, created: int) -> Body:
    """The fields of a response about itself and the caller's request, without what the version adds."""
    return {
        "id": message.get("id"),
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": message.get("model"),
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "store": False,
        "temperature": body.get("temperature"),
        "text": {"format": {"type": "text"}, **(body.get("text") or {})},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "user": body.get("user"),
    }


def _ended(stop_reason: Any, output: list[Body], now: int) -> Body:
    """How a response ended. Marks the last item if it was cut."""
    reason = _REASONS.get(finish_of(stop_reason) or "")
    if reason is None:
        return {"status": "completed", "completed_at": now}
    if output:
        output[-1]["status"] = "incomplete"
    return {"status": "incomplete", "incomplete_details": {"reason": reason}}


def _failure(message: str) -> Body:
    return {"status": "failed", "error": {"code": "server_error", "message": message}}


def _text_of(block: Body) -> tuple[_Kind | None, str]:
    """The kind and the text of a block or a delta; no kind if it has no text."""
    block_type = block.get("type")
    kind, name = _KINDS.get(block_type, (None, "")) if isinstance(block_type, str) else (None, "")
    text = block.get(name)
    return kind, text if isinstance(text, str) else ""


def _text_item(kind: _Kind, answer_id: Any, index: int, status: str) -> Body:
    return {"id": _item_id(kind.prefix, answer_id, index), **kind.item, kind.parts: [], "status": status}


def _call_item(block: Body, answer_id: Any, index: int, status: str) -> Body:
    return {
        "id": _item_id("fc_", answer_id, index),
        "type": "function_call",
        "call_id": block.get("id"),
        "name": block.get("name"),
        "arguments": "",
        "status": status,
    }


def _item_id(prefix: str, answer_id: Any, index: int) -> str:
    """At most 64 characters with this prefix: OpenAI requires that when the caller sends the item back."""
    return prefix + hashlib.blake2b(f"{answer_id}/{index}".encode(), digest_size=16).hexdigest()


def _usage(usage: Any) -> Body | None:
    """Anthropic does not count reasoning separately."""
    if not isinstance(usage, dict) or not usage:
        return None
    (prompt, read, written), completion = cached_input(usage), count(usage, "output_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
