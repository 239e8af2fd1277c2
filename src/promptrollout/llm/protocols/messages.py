"""Anthropic's Messages API: `POST /v1/messages`."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import orjson

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.provider_support import unsupported
from promptrollout.llm.answers.choices import Choice
from promptrollout.llm.answers.streams import StreamReader
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.prompts.prompt import (
    SYSTEM_ROLES,
    Body,
    CompiledPrompt,
    Overlay,
    messages_of,
    parameters_of,
    taken_from,
    takes_system,
)
from promptrollout.llm.protocols.anthropic_schema import supported_schema
from promptrollout.llm.protocols.base import Fields, OneChoiceReader, ParsedAnswer, Protocol, parsed_answer
from promptrollout.llm.protocols.chat import history_of

ANTHROPIC_HEADER: Final = "anthropic-version"
"""Anthropic's clients send this header with each request."""
DEFAULT_MAX_TOKENS: Final = 4096
"""Anthropic requires a limit in each request: this one, if neither version nor caller sets one."""
_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Messages(Protocol):
    """A request is `system` and turns of blocks; an answer is one turn, with a reason why it stopped."""

    name: ClassVar = "messages"
    user_fields: ClassVar[Fields] = (("metadata", "user_id"),)
    conversation_fields: ClassVar[Fields] = ()
    forwarded: ClassVar = ("anthropic-version", "anthropic-beta")

    def overlay(self, spec: PromptSpec) -> Overlay:
        for where, reason in unsupported(spec, "Anthropic"):
            raise Untranslatable(where, reason)
        fields = parameters_of(spec, "temperature", "top_p", "max_tokens", "stop")
        if (stop := fields.pop("stop", None)) is not None:
            fields["stop_sequences"] = stop
        fields["model"] = spec.model
        if spec.tools is not None:
            fields["tools"] = [tool_of(tool, f"tools[{index}]") for index, tool in enumerate(spec.tools)]
        unwanted = fields.get("output_config") == {}  # set by versions whose model has no structured outputs
        schema = None if spec.output_schema is None or unwanted else supported_schema(spec.output_schema)
        answer_format = None if schema is None else {"type": "json_schema", "schema": schema}
        if unwanted:
            del fields["output_config"]
        return Overlay(fields, defaults={"max_tokens": DEFAULT_MAX_TOKENS}, answer_format=answer_format)

    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        before, after = messages_of(prompt, body)
        overlay = prompt.overlay(self.name, self.overlay)
        request = overlay.over(body)
        own = [message["content"] for message in (*before, *after) if message["role"] in SYSTEM_ROLES]
        system = _system(prompt, own, body.get("system"))
        if system:
            request["system"] = system
        else:
            request.pop("system", None)
        request["messages"] = [
            *(message for message in before if message["role"] not in SYSTEM_ROLES),
            *taken_from(prompt, history_of(body)),
            *(message for message in after if message["role"] not in SYSTEM_ROLES),
        ]
        if overlay.answer_format is not None and self.leaves_format(body) and _allows_format(request):
            config = request.get("output_config")
            beside = config if isinstance(config, dict) else {}
            request["output_config"] = {**beside, "format": overlay.answer_format}
        return request

    def leaves_format(self, body: Body) -> bool:
        config = body.get("output_config")
        return not (isinstance(config, dict) and config.get("format")) and not body.get("output_format")

    def read(self, payload: bytes) -> ParsedAnswer | None:
        parsed = parsed_answer(payload, "content")
        if parsed is None:
            return None
        choice = Choice()
        for block in parsed["content"]:
            if isinstance(block, dict):
                choice.add(_as_message(block), None, collect=True)
        choice.add(None, finish_of(parsed.get("stop_reason")), collect=True)
        return ParsedAnswer(parsed, [choice], usage_of(parsed.get("usage")))

    def reader(self, body: Body, *, collect_content: bool) -> StreamReader:
        return MessagesReader(collect_content=collect_content)

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})

    def error_event(self, status: int, message: str, code: str | None, events: int) -> bytes:
        return b"event: error\ndata: " + self.error_body(status, message) + b"\n\n"


class MessagesReader(OneChoiceReader):
    """Reads events; usage comes in two parts, at the beginning and at the end."""

    def __init__(self, *, collect_content: bool) -> None:
        super().__init__(collect_content=collect_content)
        self._usage: Body = {}

    def read_event(self, event: dict[str, Any]) -> bool:
        kind = event.get("type")
        if kind == "content_block_delta":
            delta = event.get("delta")
            if isinstance(delta, dict):
                self._add(_as_message(delta))
        elif kind == "content_block_start":
            block = event.get("content_block")
            if isinstance(block, dict):
                self._add(_as_message(block))
        elif kind == "message_start":
            message = event.get("message")
            self._count(message.get("usage") if isinstance(message, dict) else None)
        elif kind == "message_delta":
            delta = event.get("delta")
            reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            self._choice.add(None, finish_of(reason), collect=False)
            self._count(event.get("usage"))
        elif kind == "message_stop":
            self.done = True
        return True

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._usage.update({name: value for name, value in usage.items() if value is not None})
            self.usage = usage_of(self._usage)


def tool_of(tool: Any, path: str) -> Body:
    """A tool of OpenAI's chat API as one of Anthropic's. Raises Untranslatable."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        if isinstance(tool, dict) and "input_schema" in tool:
            return tool  # in Anthropic's format already
        raise Untranslatable(path, "Anthropic's API supports only functions as tools")
    translated: Body = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    for name in ("description", "strict"):
        if function.get(name) is not None:
            translated[name] = function[name]
    return translated


def finish_of(stop_reason: Any) -> str | None:
    """The stop reason, as the chat API names it."""
    return _FINISH.get(stop_reason, stop_reason) if isinstance(stop_reason, str) else None


def usage_of(usage: Any) -> Usage | None:
    """Anthropic counts cached tokens separately from `input_tokens`."""
    if not isinstance(usage, dict) or (usage.get("input_tokens") is None and usage.get("output_tokens") is None):
        return None
    cache_read, cache_written = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
    return Usage.with_separate_cache(usage.get("input_tokens"), cache_read, cache_written, usage.get("output_tokens"))


def _system(prompt: CompiledPrompt, own: list[str], theirs: Any) -> Any:
    """The version's system messages and the caller's, as the prompt's `callerSystemMessage` says."""
    if theirs is not None and not isinstance(theirs, str | list):
        raise CallerError(400, "invalid_type", "system must be a text or a list of blocks", "system")
    if theirs and not takes_system(prompt):
        theirs = None
    if isinstance(theirs, list) and theirs:
        return [*({"type": "text", "text": text} for text in own if text), *theirs]
    return "\n\n".join([*own, theirs] if theirs else own)


def _allows_format(request: Body) -> bool:
    """Whether a form of the answer can be asked for: not beside one, nor of an answer whose beginning is given."""
    messages = request["messages"]
    return MESSAGES.leaves_format(request) and not (messages and messages[-1].get("role") == "assistant")


def _as_message(block: Body) -> Body:
    """A block or a delta as a message of the chat API."""
    kind = block.get("type")
    if kind in ("text", "text_delta"):
        return {"content": block.get("text")}
    if kind in ("thinking", "thinking_delta", "redacted_thinking", "signature_delta", "citations_delta"):
        return {"reasoning": block.get("thinking")}
    return {"tool_calls": True}


MESSAGES: Final = Messages()
