"""OpenAI's chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.answers.choices import MAX_CHOICES, MAX_COLLECTED, Choice, choices_of
from promptrollout.llm.answers.json_text import dumped
from promptrollout.llm.answers.streams import StreamError, StreamReader
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import (
    Body,
    CompiledPrompt,
    Overlay,
    leading,
    messages_of,
    parameters_of,
    taken_from,
)
from promptrollout.llm.protocols.base import (
    ParsedAnswer,
    objects_of,
    parsed_answer,
)
from promptrollout.llm.protocols.openai import OpenAIProtocol, answer_schema

# parameters with the same meaning: the version's replaces either
_RIVALS: Final = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}

_ABOUT: Final = ("id", "created", "model", "service_tier", "system_fingerprint")
"""Fields of the answer that each event of a stream has too."""


class Chat(OpenAIProtocol):
    """A request is a list of messages; an answer is a list of choices; a stream ends with `[DONE]`."""

    name: ClassVar = "chat"

    def overlay(self, spec: PromptSpec) -> Overlay:
        fields = parameters_of(
            spec, "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed", "stop"
        )
        fields["model"] = spec.model
        if spec.tools is not None:
            fields["tools"] = spec.tools
        removed = frozenset(_RIVALS[name] for name in fields if name in _RIVALS and _RIVALS[name] not in fields)
        if spec.output_schema is None:
            return Overlay(fields, removed)
        schema = answer_schema(spec.output_schema)
        return Overlay(fields, removed, answer_format={"type": "json_schema", "json_schema": schema})

    def with_prompt(self, prompt: CompiledPrompt, body: Body) -> Body:
        before, after = messages_of(prompt, body)
        history = history_of(body)
        overlay = prompt.overlay(self.name, self.overlay)
        request = overlay.over(body)
        if overlay.answer_format is not None and self.leaves_format(request):
            request["response_format"] = overlay.answer_format
        request["messages"] = _with_history(prompt, before, history, after)
        if body.get("stream") is True:
            options = body.get("stream_options")
            request["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return request

    def asked_format(self, body: Body) -> Any:
        return body.get("response_format")

    def without_format(self, body: Body) -> Body:
        kept = "response_format" not in body or not self.leaves_format(body)
        return body if kept else {name: value for name, value in body.items() if name != "response_format"}

    def read(self, payload: bytes) -> ParsedAnswer | None:
        parsed = parsed_answer(payload, "choices")
        if parsed is None:
            return None
        return ParsedAnswer(parsed, choices_of(parsed), Usage.read(parsed.get("usage")))

    def as_stream(self, whole: ParsedAnswer) -> bytes | None:
        answer = whole.body
        about = {name: answer[name] for name in _ABOUT if name in answer} | {"object": "chat.completion.chunk"}
        events: list[Body] = []
        for number, choice in enumerate(each for each in answer["choices"] if isinstance(each, dict)):
            index = choice.get("index", number)
            delta = _delta_of(choice.get("message"))
            begun = {"index": index, "delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None}
            ended = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}
            events += ({**about, "choices": [begun]}, {**about, "choices": [ended]})
        if answer.get("usage"):
            events.append({**about, "choices": [], "usage": answer["usage"]})
        pieces = [dumped(event) for event in events]
        if None in pieces:
            return None
        return b"".join(b"data: %s\n\n" % piece for piece in (*pieces, b"[DONE]"))

    def reader(self, body: Body, *, collect_content: bool) -> StreamReader:
        return ChatReader(forward_usage=wants_usage(body), collect_content=collect_content)


class ChatReader(StreamReader):
    """Reads chunks. One with only the usage is not forwarded unless the caller asked for it: the gateway did."""

    def __init__(self, *, forward_usage: bool, collect_content: bool) -> None:
        super().__init__()
        self._forward_usage = forward_usage
        self._collect_content = collect_content
        self._choices: dict[int, Choice] = {}

    @property
    def complete(self) -> bool:
        """The end marker was seen, or each choice has a finish reason."""
        return self.done or (bool(self._choices) and all(c.finish_reason for c in self._choices.values()))

    def choices(self) -> list[Choice]:
        return list(self._choices.values())

    def read_event(self, event: dict[str, Any]) -> bool:
        if usage := Usage.read(event.get("usage")):
            self.usage = usage
        choices = event.get("choices")
        if not choices:
            return self._forward_usage or not event.get("usage")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._add(choice)
        return True

    def _add(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        number = index if isinstance(index, int) else 0
        known = self._choices.get(number)
        if known is None:
            if len(self._choices) >= MAX_CHOICES:
                raise StreamError(f"the answer has more than {MAX_CHOICES} choices")
            known = self._choices[number] = Choice()
            if len(self._choices) > MAX_COLLECTED:
                known.skip()
        if known.add(choice.get("delta"), choice.get("finish_reason"), collect=self._collect_content):
            self.begun = True


def _delta_of(message: Any) -> Body:
    """A whole message as one delta."""
    delta = dict(message) if isinstance(message, dict) else {}
    if isinstance(calls := delta.get("tool_calls"), list):
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls) if isinstance(call, dict)]
    return delta


def history_of(body: Body) -> list[Body]:
    """The request's own messages. Raises CallerError."""
    messages = body.get("messages")
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise CallerError(400, "invalid_type", "messages must be a list of messages", "messages")
    return objects_of(messages, "messages")


def without_added_usage(request: Body, body: Body) -> Body:
    """A stream's request with the caller's `stream_options` only, for a provider that rejects the gateway's."""
    plain = {name: value for name, value in request.items() if name != "stream_options"}
    if "stream_options" in body:
        plain["stream_options"] = body["stream_options"]
    return plain


def wants_usage(body: Body) -> bool:
    """Whether the caller of a stream asked for its usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _with_history(prompt: CompiledPrompt, before: list[Body], history: list[Body], after: list[Body]) -> list[Body]:
    """All messages in order; the caller's system messages as the prompt wants them."""
    history = taken_from(prompt, history)
    # those that lead the request follow our own leading ones, because several providers take system messages at the
    # beginning only; those in mid-conversation stay where they are
    own, theirs = leading(before), leading(history)
    return [*before[:own], *history[:theirs], *before[own:], *history[theirs:], *after]


CHAT: Final = Chat()
