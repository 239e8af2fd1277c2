"""OpenAI's Responses API: `POST /v1/responses`."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import orjson
from pydantic.alias_generators import to_camel

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.answers.choices import Choice
from promptrollout.llm.answers.streams import StreamReader
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.prompts.prompt import (
    Body,
    CompiledPrompt,
    Overlay,
    leading,
    messages_of,
    parameters_of,
    taken_from,
    takes_system,
)
from promptrollout.llm.protocols.base import OneChoiceReader, ParsedAnswer, objects_of, parsed_answer
from promptrollout.llm.protocols.openai import OpenAIProtocol, answer_schema
from promptrollout.llm.protocols.signed_reasoning import without_translated_reasoning

_UNSUPPORTED: Final = ("seed", "stop", "presence_penalty", "frequency_penalty")
_ENDED: Final = ("response.completed", "response.incomplete")
_FINISH: Final = {"max_output_tokens": "length", "content_filter": "content_filter"}


class Responses(OpenAIProtocol):
    """A request is `instructions` and items of input; an answer is items of output."""

    name: ClassVar = "responses"

    def overlay(self, spec: PromptSpec) -> Overlay:
        for name in _UNSUPPORTED:
            if spec.parameters is not None and getattr(spec.parameters, name) is not None:
                raise Untranslatable(
                    f"parameters.{to_camel(name)}", "the prompt sets it, but the Responses API does not support it"
                )
        fields = parameters_of(spec, "temperature", "top_p", "max_tokens")
        if (longest := fields.pop("max_tokens", None)) is not None:
            fields["max_output_tokens"] = longest
        fields["model"] = spec.model
        if spec.tools is not None:
            fields["tools"] = [_tool(tool) for tool in spec.tools]
        return Overlay(fields)

    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        require_foreground(body)
        body = without_translated_reasoning(body)
        before, after = messages_of(prompt, body)
        request = prompt.overlay(self.name, self.overlay).over(body)
        own = leading(before)
        instructions = [message["content"] for message in before[:own]]
        # a conversation that the provider stored already begins with the version's examples
        items = [] if body.get("previous_response_id") or body.get("conversation") else before[own:]
        _with_messages(request, prompt, instructions, items, after)
        if prompt.spec.output_schema is not None and self.leaves_format(request):
            text = request.get("text")
            schema = {"type": "json_schema", **answer_schema(prompt.spec.output_schema)}
            request["text"] = {**(text if isinstance(text, dict) else {}), "format": schema}
        return request

    def asked_format(self, body: Body) -> Any:
        text = body.get("text")
        return text.get("format") if isinstance(text, dict) else None

    def without_format(self, body: Body) -> Body:
        text = body.get("text")
        if not isinstance(text, dict) or "format" not in text or not self.leaves_format(body):
            return body
        return {**body, "text": {name: value for name, value in text.items() if name != "format"}}

    def read(self, payload: bytes) -> ParsedAnswer | None:
        parsed = parsed_answer(payload, "output")
        if parsed is None:
            return None
        failure = _message_of(parsed.get("error")) if parsed.get("status") == "failed" else None
        return ParsedAnswer(parsed, [_choice_of(parsed)], _usage(parsed.get("usage")), failure)

    def reader(self, body: Body, *, collect_content: bool) -> StreamReader:
        return ResponsesReader(collect_content=collect_content)

    def error_event(self, status: int, message: str, code: str | None, events: int) -> bytes:
        event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": events}
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"


class ResponsesReader(OneChoiceReader):
    """Reads events; the last one carries the response as a whole."""

    def read_event(self, event: dict[str, Any]) -> bool:
        kind = event.get("type")
        if kind == "response.output_text.delta":
            self._add({"content": event.get("delta")})
        elif kind == "response.refusal.delta":
            self._add({"refusal": event.get("delta")})
        elif kind in _ENDED:
            response = event.get("response")
            if isinstance(response, dict):
                self.usage = _usage(response.get("usage"))
                self._choice.add(None, _finish_of(response), collect=False)
            self.done = True
        elif kind == "response.output_item.added":
            item = event.get("item")
            if isinstance(item, dict) and str(item.get("type", "")).endswith("_call"):
                self._add({"tool_calls": True})
        elif isinstance(kind, str) and kind.endswith(".delta"):
            self.begun = True  # reasoning, arguments, audio
        return True

    def failure_of(self, event: dict[str, Any]) -> str | None:
        kind = event.get("type")
        if kind == "error":
            return _message_of(event)
        if kind == "response.failed":
            response = event.get("response")
            return _message_of(response.get("error") if isinstance(response, dict) else None)
        return super().failure_of(event)


def require_foreground(body: Body) -> None:
    """Raises CallerError for a background answer, which would have to be fetched later."""
    if body.get("background"):
        message = "this gateway does not support background answers: leave background out"
        raise CallerError(400, "unsupported_value", message, "background")


def instructions_of(body: Body) -> str | None:
    """Raises CallerError."""
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise CallerError(400, "invalid_type", "instructions must be a text", "instructions")
    return instructions


def _with_messages(
    request: Body, prompt: CompiledPrompt, instructions: list[str], before: list[Body], after: list[Body]
) -> None:
    """Put in the version's messages; the caller's system messages as the prompt's `callerSystemMessage` says."""
    theirs = instructions_of(request)
    value = request.get("input")
    items = items_of(value)
    if theirs and not takes_system(prompt):
        theirs = None
    kept = taken_from(prompt, items)
    if kept is not items:
        value = items = kept
    joined = "\n\n".join([*instructions, theirs] if theirs else instructions)
    if joined:
        request["instructions"] = joined
    else:
        request.pop("instructions", None)
    if before or after:
        first = leading(items)
        request["input"] = [*items[:first], *before, *items[first:], *after]
    elif value is not None:
        request["input"] = value


def items_of(value: Any) -> list[Body]:
    """The request's input as a list. Raises CallerError."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise CallerError(400, "invalid_type", "input must be a text or a list of items", "input")
    return objects_of(value, "input")


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool of the chat API as a tool of this API."""
    function = tool.get("function")
    return {"type": "function", **function} if isinstance(function, dict) else tool


def _choice_of(response: dict[str, Any]) -> Choice:
    choice = Choice()
    for item in response["output"]:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "message":
            parts = item.get("content")
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    message = {"content": part.get("text"), "refusal": part.get("refusal")}
                    choice.add(message, None, collect=True)
        elif isinstance(kind, str) and kind.endswith("_call"):
            choice.add({"tool_calls": True}, None, collect=True)
    choice.add(None, _finish_of(response), collect=True)
    return choice


def _finish_of(response: dict[str, Any]) -> str:
    """The finish reason, as the chat API names it."""
    if response.get("status") == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return _FINISH.get(str(reason), "length")
    output = response.get("output")
    called = isinstance(output, list) and any(
        isinstance(item, dict) and item.get("type") in ("function_call", "custom_tool_call") for item in output
    )
    return "tool_calls" if called else "stop"


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict) or (usage.get("input_tokens") is None and usage.get("output_tokens") is None):
        return None
    return Usage.of(usage.get("input_tokens"), usage.get("input_tokens_details"), usage.get("output_tokens"))


def _message_of(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "the provider reported a failure without a message")


RESPONSES: Final = Responses()
