"""The simulated model's APIs on the wire: OpenAI's chat, Responses and embeddings, Anthropic's Messages."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
import time
from abc import ABC, abstractmethod
from typing import Any

import orjson

from promptrollout.sandbox.model.answers import Reply
from promptrollout.sandbox.model.request import (
    ModelRequest,
    parse_chat,
    parse_embeddings,
    parse_messages,
    parse_responses,
)

_OPENAI_ERRORS = {401: "invalid_request_error", 403: "invalid_request_error", 429: "rate_limit_error"}
_ANTHROPIC_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_ANTHROPIC_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Wire(ABC):
    """One request's answer in one API."""

    def __init__(self, request: ModelRequest, reply: Reply, seed: int) -> None:
        self.request = request
        self.reply = reply
        self.seed = seed

    @staticmethod
    @abstractmethod
    def parse(body: bytes) -> ModelRequest:
        """Raises RequestError."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""

    def head(self) -> bytes:
        """The events before the first text."""
        return b""

    def piece(self, text: str) -> bytes:
        """The event that carries some of the answer's text, or of its call's arguments."""
        return b""

    def end(self) -> bytes:
        """The events after the last text."""
        return b""

    @staticmethod
    def error(status: int, code: str | None, message: str, param: str | None) -> dict[str, Any]:
        kind = _OPENAI_ERRORS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ChatWire(Wire):
    """OpenAI's chat API."""

    @staticmethod
    def parse(body: bytes) -> ModelRequest:
        return parse_chat(body)

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
        if reply.call is not None:
            message["tool_calls"] = [self._call(reply.arguments)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": reply.usage.as_openai()}

    def head(self) -> bytes:
        delta: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if self.reply.call is not None:
            delta = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **self._call("")}]}
        return self._event(delta)

    def piece(self, text: str) -> bytes:
        if self.reply.call is not None:
            return self._event({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})
        return self._event({"refusal" if self.reply.refusal is not None else "content": text})

    def end(self) -> bytes:
        end = self._event({}, self.reply.finish_reason)
        if self.request.include_usage:
            usage = {**self._frame("chat.completion.chunk"), "choices": [], "usage": self.reply.usage.as_openai()}
            end += b"data: " + orjson.dumps(usage) + b"\n\n"
        return end + b"data: [DONE]\n\n"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.reply.request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.request.model,
            "system_fingerprint": "fp_simulated",
        }

    def _call(self, arguments: str) -> dict[str, Any]:
        function = {"name": self.reply.call, "arguments": arguments}
        return {"id": f"call_{self.reply.request_id}", "type": "function", "function": function}

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {**self._frame("chat.completion.chunk"), "choices": [choice]}
        if self.request.include_usage:
            chunk["usage"] = None
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


class ResponsesWire(Wire):
    """OpenAI's Responses API: one item of output, a message or a call."""

    def __init__(self, request: ModelRequest, reply: Reply, seed: int) -> None:
        super().__init__(request, reply, seed)
        self._sequence = 0

    @staticmethod
    def parse(body: bytes) -> ModelRequest:
        return parse_responses(body)

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        cut = reply.finish_reason == "length"
        usage = reply.usage
        return {
            **self._response("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(reply.text, done=True)],
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.completion,
            },
        }

    def head(self) -> bytes:
        started = self._response("in_progress")
        events = [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started),
            self._event("response.output_item.added", output_index=0, item=self._item("", done=False)),
        ]
        if self.reply.call is None:
            events.append(self._event("response.content_part.added", **self._place(), part=self._part("")))
        return b"".join(events)

    def piece(self, text: str) -> bytes:
        if self.reply.call is not None:
            item = {"item_id": self._item_id, "output_index": 0}
            return self._event("response.function_call_arguments.delta", **item, delta=text)
        if self.reply.refusal is not None:
            return self._event("response.refusal.delta", **self._place(), delta=text)
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def end(self) -> bytes:
        reply, text = self.reply, self.reply.text
        item = {"item_id": self._item_id, "output_index": 0}
        if reply.call is not None:
            events = [self._event("response.function_call_arguments.done", **item, name=reply.call, arguments=text)]
        else:
            if reply.refusal is not None:
                events = [self._event("response.refusal.done", **self._place(), refusal=text)]
            else:
                events = [self._event("response.output_text.done", **self._place(), text=text, logprobs=[])]
            events.append(self._event("response.content_part.done", **self._place(), part=self._part(text)))
        events.append(self._event("response.output_item.done", output_index=0, item=self._item(text, done=True)))
        whole = self.whole()
        events.append(self._event(f"response.{whole['status']}", response=whole))
        return b"".join(events)

    @property
    def _item_id(self) -> str:
        return f"{'fc' if self.reply.call is not None else 'msg'}_{self.reply.request_id}"

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": f"resp_{self.reply.request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.request.messages[0],
            "model": self.request.model,
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }

    def _item(self, text: str, *, done: bool) -> dict[str, Any]:
        status = "completed" if done else "in_progress"
        if self.reply.call is not None:
            call = {"call_id": f"call_{self.reply.request_id}", "name": self.reply.call, "arguments": text}
            return {"id": self._item_id, "type": "function_call", "status": status, **call}
        content = [self._part(text)] if done else []
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        if self.reply.refusal is not None:
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


class MessagesWire(Wire):
    """Anthropic's Messages API: one block of content, a text or a call."""

    @staticmethod
    def parse(body: bytes) -> ModelRequest:
        return parse_messages(body)

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        if reply.call is not None:
            content = [{**self._block(), "input": orjson.loads(reply.arguments)}]
        else:
            content = [{"type": "text", "text": reply.text}] if reply.text else []
        return {**self._message(), "content": content, "stop_reason": self._stop_reason, "usage": self._usage()}

    def head(self) -> bytes:
        message = {**self._message(), "usage": {**self._usage(), "output_tokens": 1}}
        return self._event("message_start", message=message) + (
            self._event("content_block_start", index=0, content_block=self._block()) + self._event("ping")
        )

    def piece(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        if self.reply.call is not None:
            delta = {"type": "input_json_delta", "partial_json": text}
        return self._event("content_block_delta", index=0, delta=delta)

    def end(self) -> bytes:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": None}
        usage = {"output_tokens": self.reply.usage.completion}
        return (
            self._event("content_block_stop", index=0)
            + self._event("message_delta", delta=delta, usage=usage)
            + self._event("message_stop")
        )

    @staticmethod
    def error(status: int, code: str | None, message: str, param: str | None) -> dict[str, Any]:
        kind = _ANTHROPIC_ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_simulated"}

    @property
    def _stop_reason(self) -> str:
        return "refusal" if self.reply.refusal is not None else _ANTHROPIC_STOPS[self.reply.finish_reason]

    def _message(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.reply.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _block(self) -> dict[str, Any]:
        if self.reply.call is None:
            return {"type": "text", "text": ""}
        return {"type": "tool_use", "id": f"toolu_{self.reply.request_id}", "name": self.reply.call, "input": {}}

    def _usage(self) -> dict[str, int]:
        usage = self.reply.usage
        return {
            "input_tokens": usage.prompt - usage.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.completion,
        }

    @staticmethod
    def _event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


class EmbeddingsWire(Wire):
    """OpenAI's embeddings API: unit vectors that depend on seed, model and text."""

    @staticmethod
    def parse(body: bytes) -> ModelRequest:
        return parse_embeddings(body)

    def whole(self) -> dict[str, Any]:
        request = self.request
        found = [
            {"object": "embedding", "index": index, "embedding": self._vector(text)}
            for index, text in enumerate(request.messages)
        ]
        tokens = self.reply.usage.prompt
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": found, "model": request.model, "usage": usage}

    def _vector(self, text: str) -> list[float] | str:
        size = self.request.dimensions
        identity = orjson.dumps([self.seed, self.request.model, text])
        stream = hashlib.shake_128(identity).digest(4 * size)
        raw = [word / 2**31 - 1 for word in struct.unpack(f"<{size}I", stream)]
        length = math.sqrt(sum(value * value for value in raw)) or 1.0
        vector = [value / length for value in raw]
        return base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if self.request.base64 else vector


WIRES: dict[str, type[Wire]] = {
    "/chat/completions": ChatWire,
    "/responses": ResponsesWire,
    "/messages": MessagesWire,
    "/embeddings": EmbeddingsWire,
}
"""By path, with or without `/v1`."""
