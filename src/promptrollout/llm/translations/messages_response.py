"""Anthropic's answers, whole and streamed, as OpenAI's Responses API says them."""

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
"""That an item of the output takes besides its text."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """An item of text: what its parts are, and the events that tell of them."""

    item: Body
    prefix: str
    """Of its id."""
    parts: str
    """The item's field."""
    part: Body
    beside_text: Body
    """What events with text have too."""
    index: str
    events: tuple[str, str, str, str]
    """A part begins, some text, the whole text, the part ends."""


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
"""By the type of a block or a delta of one: the kind, and where its text is."""


def answer(found: dict[str, Any], body: Body) -> dict[str, Any]:
    """A message as a response to this request. Raises ValueError."""
    output: list[Body] = []
    open_kind: _Kind | None = None
    for block in listed(found["content"]):
        kind, said = _text_of(block)
        if kind is not None and said:
            if kind is not open_kind:
                output.append(_text_item(kind, found.get("id"), len(output), "completed"))
            output[-1][kind.parts].append({**kind.part, "text": said})
            open_kind = kind
        elif block.get("type") == "tool_use":
            call = _call_item(block, found.get("id"), len(output), "completed")
            output.append(call | {"arguments": dumped(block.get("input"))})
            open_kind = None
    now = int(time.time())
    response = {**_frame(found, body, now), "output": output, "usage": _usage(found.get("usage"))}
    return response | _ending(found.get("stop_reason"), output, now)


class ResponseStream:
    """Anthropic's events as those of a response, numbered."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._events = 0
        self._kept = 0
        self._frame: Body | None = None
        """What the response says from the beginning."""
        self._output: list[Body] = []
        self._kind: _Kind | None = None
        """Of the item of text that is open."""
        self._part: list[str] | None = None
        """Pieces of its part that is open."""
        self._place: Body = {}
        """Of that part."""
        self._call: list[str] | None = None
        """Pieces of the arguments of the call that is open."""
        self._input: Any = None
        """Of that call, as far as it was told at once."""
        self._stop_reason: Any = None
        self._usage: Body = {}

    def event(self, found: dict[str, Any]) -> bytes:
        kind = found.get("type")
        if kind == "ping":
            return b": ping\n\n"
        out: list[bytes] = []
        if self._frame is None:
            self._begin(found.get("message"), out)
        if kind == "content_block_delta":
            self._add(found.get("delta"), out)
        elif kind == "content_block_start":
            self._add(found.get("content_block"), out)
        elif kind == "content_block_stop":
            self._end_part(out)
        elif kind == "message_delta":
            delta = found.get("delta")
            self._stop_reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            self._count(found.get("usage"))
        return b"".join(out)

    def error(self, message: str, code: str) -> bytes:
        """Without our code: a response has those of OpenAI's list alone."""
        out: list[bytes] = []
        if self._frame is None:
            self._begin(None, out)
        if self._output and self._output[-1]["status"] == "in_progress":
            self._output[-1]["status"] = "incomplete"
        self._tell(out, "response.failed", response=self._response() | _failure(message))
        return b"".join(out)

    def end(self) -> bytes:
        out: list[bytes] = []
        if self._frame is None:
            self._begin(None, out)
        ending = _ending(self._stop_reason, self._output, int(time.time()))
        self._end_item(out)
        self._tell(out, f"response.{ending['status']}", response=self._response() | ending)
        return b"".join(out)

    def _begin(self, message: Any, out: list[bytes]) -> None:
        message = message if isinstance(message, dict) else {}
        self._count(message.get("usage"))
        self._frame = _frame(message, self._body, int(time.time()))
        response = {**self._frame, "output": [], "usage": None}
        self._tell(out, "response.created", response=response)
        self._tell(out, "response.in_progress", response=response)

    def _add(self, block: Any, out: list[bytes]) -> None:
        """A block, or a delta of one."""
        if not isinstance(block, dict):
            return
        kind, said = _text_of(block)
        if kind is not None:
            if said:
                self._say(kind, said, out)
        elif block.get("type") == "tool_use":
            item = _call_item(block, self._id, self._begin_item(out), "in_progress")
            self._call, self._input = [], block.get("input")
            self._add_item(item, out)
        elif block.get("type") == "input_json_delta" and self._call is not None:
            self._call_with(block.get("partial_json"), out)

    def _say(self, kind: _Kind, said: str, out: list[bytes]) -> None:
        if kind is not self._kind:
            item = _text_item(kind, self._id, self._begin_item(out), "in_progress")
            self._kind = kind
            self._add_item(item, out)
        begins, delta, _, _ = kind.events
        if self._part is None:
            self._part = []
            self._place = {**self._at, kind.index: len(self._output[-1][kind.parts])}
            self._tell(out, begins, **self._place, part={**kind.part, "text": ""})
        self._keep(len(said))
        self._part.append(said)
        self._tell(out, delta, **self._place, delta=said, **kind.beside_text)

    def _keep(self, characters: int) -> None:
        """The last event has all of it again. Raises StreamError for more than any answer has."""
        self._kept += characters
        if self._kept > MAX_CHARACTERS:
            raise StreamError(f"the answer is longer than {MAX_CHARACTERS} characters")

    def _end_part(self, out: list[bytes]) -> None:
        if self._kind is None or self._part is None:
            return
        said = "".join(self._part)
        part = {**self._kind.part, "text": said}
        _, _, whole, ends = self._kind.events
        self._tell(out, whole, **self._place, text=said, **self._kind.beside_text)
        self._tell(out, ends, **self._place, part=part)
        self._output[-1][self._kind.parts].append(part)
        self._part = None

    def _call_with(self, arguments: Any, out: list[bytes]) -> None:
        if self._call is not None and isinstance(arguments, str) and arguments:
            self._keep(len(arguments))
            self._call.append(arguments)
            self._tell(out, "response.function_call_arguments.delta", **self._at, delta=arguments)

    def _end_call(self, out: list[bytes]) -> None:
        if self._call is None:
            return
        if not self._call:  # told at once, or there are none
            self._call_with(dumped_in_stream(self._input), out)
        item = self._output[-1]
        item["arguments"] = "".join(self._call)
        done = {"arguments": item["arguments"], "name": item["name"]}
        self._tell(out, "response.function_call_arguments.done", **self._at, **done)
        self._call = None

    def _begin_item(self, out: list[bytes]) -> int:
        """Where in the output another item goes."""
        self._end_item(out)
        return len(self._output)

    def _add_item(self, item: Body, out: list[bytes]) -> None:
        self._keep(ITEM_CHARACTERS)
        self._output.append(item)
        self._tell(out, "response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _end_item(self, out: list[bytes]) -> None:
        """Not before something comes after it: only then it is known whether it was cut."""
        if self._kind is None and self._call is None:
            return
        self._end_part(out)
        self._end_call(out)
        self._kind = None
        item = self._output[-1]
        if item["status"] == "in_progress":
            item["status"] = "completed"
        self._tell(out, "response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _id(self) -> Any:
        return None if self._frame is None else self._frame["id"]

    @property
    def _at(self) -> Body:
        """Of the item that is open."""
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _response(self) -> Body:
        return {**(self._frame or {}), "output": self._output, "usage": _usage(self._usage)}

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage.update({name: value for name, value in usage.items() if value is not None})

    def _tell(self, out: list[bytes], kind: str, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": self._events, **fields}
        self._events += 1
        out.append(b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n")


def _frame(message: Body, body: Body, created: int) -> Body:
    """What a response says of itself and of its request: of the caller's own, not of what the version adds."""
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


def _ending(stop_reason: Any, output: list[Body], now: int) -> Body:
    """How a response ended; notes it in the last item, if that was cut."""
    reason = _REASONS.get(finish_of(stop_reason) or "")
    if reason is None:
        return {"status": "completed", "completed_at": now}
    if output:
        output[-1]["status"] = "incomplete"
    return {"status": "incomplete", "incomplete_details": {"reason": reason}}


def _failure(message: str) -> Body:
    return {"status": "failed", "error": {"code": "server_error", "message": message}}


def _text_of(block: Body) -> tuple[_Kind | None, str]:
    """What a block or a delta says, if it is one of text."""
    block_type = block.get("type")
    kind, name = _KINDS.get(block_type, (None, "")) if isinstance(block_type, str) else (None, "")
    said = block.get(name)
    return kind, said if isinstance(said, str) else ""


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
    """OpenAI, who may get the item back from the caller, takes at most 64 characters with this prefix."""
    return prefix + hashlib.blake2b(f"{answer_id}/{index}".encode(), digest_size=16).hexdigest()


def _usage(found: Any) -> Body | None:
    """Anthropic does not tell apart what was thought."""
    if not isinstance(found, dict) or not found:
        return None
    (prompt, read, written), completion = cached_input(found), count(found, "output_tokens")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
