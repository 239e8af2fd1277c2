"""Second step of a request's way: the version's prompt and the caller's request become the provider's request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import orjson

from promptrollout.api.prompt import Parameters, PromptSpec
from promptrollout.api.template import answer_validator
from promptrollout.gateway.errors import CallerError, ErrorType, Unfilled
from promptrollout.gateway.templates import Renderer, compile_renderer

Body = dict[str, Any]

VARIABLES = "prompt_variables"
_SYSTEM_ROLES = ("system", "developer")
# parameters that mean the same: ours replaces either
_RIVALS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class SystemMessageRefused(Unfilled):
    """The request brings system messages, and the prompt takes none."""

    error_type: ErrorType = "system_message"


@dataclass(frozen=True, slots=True)
class Part:
    """One message of the prompt."""

    role: str
    render: Renderer


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A version, ready to be filled."""

    spec: PromptSpec
    before: tuple[Part, ...]
    """In front of the request's own messages."""
    after: tuple[Part, ...]
    overrides: Mapping[str, Any]
    removed: frozenset[str]
    """Fields of the request that an override takes the place of."""
    response_format: Mapping[str, Any] | None
    validator: jsonschema_rs.Validator | None


def compile_prompt(spec: PromptSpec) -> CompiledPrompt:
    """Parse everything that can be wrong. Raises ValueError naming the place."""
    parts: list[Part] = []
    history_at: int | None = None
    for index, message in enumerate(spec.messages):
        if message.placeholder is not None:
            history_at = len(parts)
            continue
        try:
            parts.append(Part(message.role or "system", compile_renderer(message.content or "")))
        except ValueError as error:
            raise ValueError(f"messages[{index}].content: {error}") from error
    split = len(parts) if history_at is None else history_at
    overrides = _overrides(spec.parameters)
    overrides["model"] = spec.model
    if spec.tools is not None:
        overrides["tools"] = spec.tools
    validator = None
    response_format = None
    if spec.output_schema is not None:
        try:
            validator = answer_validator(spec.output_schema)
        except ValueError as error:
            raise ValueError(f"outputSchema: {error}") from error
        response_format = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": False, "schema": spec.output_schema},
        }
    try:
        # found per request, it would look like the caller's fault
        orjson.dumps([overrides, response_format])
    except orjson.JSONEncodeError as error:
        raise ValueError(f"tools, parameters.extra or outputSchema cannot be sent as JSON: {error}") from error
    return CompiledPrompt(
        spec=spec,
        before=tuple(parts[:split]),
        after=tuple(parts[split:]),
        overrides=overrides,
        removed=frozenset(_RIVALS[name] for name in overrides if name in _RIVALS and _RIVALS[name] not in overrides),
        response_format=response_format,
        validator=validator,
    )


def variables_of(body: Body) -> Mapping[str, Any]:
    """The request's template variables. Raises CallerError."""
    variables = body.get(VARIABLES)
    if variables is None:
        return {}
    if not isinstance(variables, dict):
        raise CallerError(400, "invalid_type", f"{VARIABLES} must be an object of names and values", VARIABLES)
    return variables


def history_of(body: Body) -> list[Body]:
    """The request's own messages. Raises CallerError."""
    messages = body.get("messages")
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise CallerError(400, "invalid_type", "messages must be a list of messages", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise CallerError(400, "invalid_type", f"messages[{index}] must be an object", f"messages[{index}]")
    return messages


def fill(prompt: CompiledPrompt, body: Body) -> Body:
    """The provider's request. Raises CallerError or Unfilled; leaves `body` as it is."""
    variables = variables_of(body)
    history = history_of(body)
    before = [{"role": part.role, "content": part.render(variables)} for part in prompt.before]
    after = [{"role": part.role, "content": part.render(variables)} for part in prompt.after]
    request = {name: value for name, value in body.items() if name != VARIABLES and name not in prompt.removed}
    request.update(prompt.overrides)
    request["messages"] = _with_history(prompt, before, history, after)
    if prompt.response_format is not None and body.get("response_format") is None:
        request["response_format"] = prompt.response_format
    if body.get("stream") is True:
        options = body.get("stream_options")
        request["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return request


def without_added_usage(request: Body, body: Body) -> Body:
    """A stream's request with the caller's own `stream_options`, if any, for a provider that does not know ours."""
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
    if not any(message.get("role") in _SYSTEM_ROLES for message in history):
        return [*before, *history, *after]
    choice = prompt.spec.caller_system_message or "Append"
    if choice == "Refuse":
        raise SystemMessageRefused
    if choice == "Replace":
        return [*before, *(message for message in history if message.get("role") not in _SYSTEM_ROLES), *after]
    # Append: those that lead the request follow our own leading ones, because several providers take system messages
    # at the beginning only; those in mid-conversation stay where they are
    own, theirs = _leading(before), _leading(history)
    return [*before[:own], *history[:theirs], *before[own:], *history[theirs:], *after]


def _leading(messages: list[Body]) -> int:
    """How many system messages stand at the beginning."""
    for index, message in enumerate(messages):
        if message.get("role") not in _SYSTEM_ROLES:
            return index
    return len(messages)


def _overrides(parameters: Parameters | None) -> dict[str, Any]:
    """The provider's fields that the prompt sets, as JSON numbers."""
    if parameters is None:
        return {}
    found: dict[str, Any] = dict(parameters.extra or {})
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value = getattr(parameters, name)
        if value is not None:
            found[name] = float(value)
    for name in ("max_tokens", "seed", "stop"):
        value = getattr(parameters, name)
        if value is not None:
            found[name] = value
    return found
