"""A version's prompt: compiled when its configuration loads, then rendered with each request's variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.answers.contract import Contract, make_contract
from promptrollout.llm.errors import CallerError, ErrorType, PrepareError
from promptrollout.llm.prompts.templates import Renderer, compile_renderer

Body = dict[str, Any]

VARIABLES: Final = "prompt_variables"
SYSTEM_ROLES: Final = ("system", "developer")


class SystemMessageRefused(PrepareError):
    """The request has system messages, and the prompt does not allow any."""

    error_type: ErrorType = "system_message"


@dataclass(frozen=True, slots=True)
class Part:
    """One message of the prompt."""

    role: str
    render: Renderer


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a version sets in the requests of one protocol, besides its messages."""

    fields: Mapping[str, Any]
    """They replace the request's own."""
    removed: frozenset[str] = frozenset()
    """Fields of the request that one of the version's replaces."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """For fields that the request does not have."""
    answer_format: Mapping[str, Any] | None = None
    """The answer's format, for protocols that have it in a nested field."""

    def over(self, body: Body) -> Body:
        """The request with the version's fields, and without the template's variables."""
        request = {name: value for name, value in body.items() if name != VARIABLES and name not in self.removed}
        request.update(self.fields)
        for name, value in self.defaults.items():
            if request.get(name) is None:
                request[name] = value
        return request


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A version, ready to be rendered."""

    spec: PromptSpec
    before: tuple[Part, ...]
    """Before the request's own messages."""
    after: tuple[Part, ...]
    contract: Contract | None
    """What answers are checked against."""
    overlays: dict[str, Overlay] = field(default_factory=dict)
    """By protocol; made when first used."""

    def overlay(self, protocol: str, make: Callable[[PromptSpec], Overlay]) -> Overlay:
        """What the version sets in this protocol's requests; made once."""
        overlay = self.overlays.get(protocol)
        if overlay is None:
            overlay = self.overlays[protocol] = make(self.spec)
        return overlay


def compile_prompt(spec: PromptSpec) -> CompiledPrompt:
    """Compile and check everything in a prompt. Raises ValueError, which names the place."""
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
    contract = None
    if spec.output_schema is not None:
        try:
            contract = make_contract(spec.output_schema)
        except ValueError as error:
            raise ValueError(f"outputSchema: {error}") from error
    try:
        # detected in a request, it would look like the caller's error; there everything is nested a few levels deeper
        orjson.dumps([[[[spec.tools, spec.parameters and spec.parameters.extra, spec.output_schema]]]])
    except orjson.JSONEncodeError as error:
        raise ValueError(f"tools, parameters.extra or outputSchema cannot be sent as JSON: {error}") from error
    return CompiledPrompt(spec=spec, before=tuple(parts[:split]), after=tuple(parts[split:]), contract=contract)


def messages_of(prompt: CompiledPrompt, body: Body) -> tuple[list[Body], list[Body]]:
    """The version's rendered messages: before and after the request's own. Raises CallerError, PrepareError."""
    variables = variables_of(body)
    return (
        [{"role": part.role, "content": part.render(variables)} for part in prompt.before],
        [{"role": part.role, "content": part.render(variables)} for part in prompt.after],
    )


def variables_of(body: Body) -> Mapping[str, Any]:
    """The request's template variables. Raises CallerError."""
    variables = body.get(VARIABLES)
    if variables is None:
        return {}
    if not isinstance(variables, dict):
        raise CallerError(400, "invalid_type", f"{VARIABLES} must be an object of names and values", VARIABLES)
    return variables


def parameters_of(spec: PromptSpec, *names: str) -> dict[str, Any]:
    """These parameters of the version as JSON values, on top of its `extra`."""
    parameters = spec.parameters
    if parameters is None:
        return {}
    values: dict[str, Any] = dict(parameters.extra or {})
    for name in names:
        value = getattr(parameters, name)
        if value is not None:
            values[name] = value if isinstance(value, int | list) else float(value)
    return values


def takes_system(prompt: CompiledPrompt) -> bool:
    """Whether the caller's system messages are added to the version's; else they are left out. Raises
    SystemMessageRefused."""
    choice = prompt.spec.caller_system_message or "Append"
    if choice == "Refuse":
        raise SystemMessageRefused
    return choice == "Append"


def taken_from(prompt: CompiledPrompt, messages: list[Body]) -> list[Body]:
    """The caller's messages, with system messages only where the prompt takes them. Raises SystemMessageRefused."""
    if not any(message.get("role") in SYSTEM_ROLES for message in messages) or takes_system(prompt):
        return messages
    return [message for message in messages if message.get("role") not in SYSTEM_ROLES]


def leading(messages: list[Body]) -> int:
    """The number of system messages at the beginning."""
    for index, message in enumerate(messages):
        if message.get("role") not in SYSTEM_ROLES:
            return index
    return len(messages)
