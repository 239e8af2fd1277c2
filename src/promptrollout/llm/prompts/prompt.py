"""A version's prompt: compiled once when its configuration loads, then filled with each request's variables."""

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
    """The request brings system messages, and the prompt takes none."""

    error_type: ErrorType = "system_message"


@dataclass(frozen=True, slots=True)
class Part:
    """One message of the prompt."""

    role: str
    render: Renderer


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a version sets in the requests of one protocol, beside its messages."""

    fields: Mapping[str, Any]
    """They win over the request's own."""
    removed: frozenset[str] = frozenset()
    """Fields of the request that one of ours takes the place of."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Where the request has none of its own."""
    answer_format: Mapping[str, Any] | None = None
    """The form of the answer, for protocols that have a field inside of another for it."""

    def over(self, body: Body) -> Body:
        """The request with the version's fields in it, the template's variables taken out."""
        request = {name: value for name, value in body.items() if name != VARIABLES and name not in self.removed}
        request.update(self.fields)
        for name, value in self.defaults.items():
            if request.get(name) is None:
                request[name] = value
        return request


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A version, ready to be filled."""

    spec: PromptSpec
    before: tuple[Part, ...]
    """In front of the request's own messages."""
    after: tuple[Part, ...]
    contract: Contract | None
    """What answers are held against."""
    overlays: dict[str, Overlay] = field(default_factory=dict)
    """By protocol, as far as they were asked for."""

    def overlay(self, protocol: str, make: Callable[[PromptSpec], Overlay]) -> Overlay:
        """What the version sets in this protocol's requests, made once."""
        found = self.overlays.get(protocol)
        if found is None:
            found = self.overlays[protocol] = make(self.spec)
        return found


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
    contract = None
    if spec.output_schema is not None:
        try:
            contract = make_contract(spec.output_schema)
        except ValueError as error:
            raise ValueError(f"outputSchema: {error}") from error
    try:
        # found per request, it would look like the caller's fault; in a request, all stands a few levels deeper
        orjson.dumps([[[[spec.tools, spec.parameters and spec.parameters.extra, spec.output_schema]]]])
    except orjson.JSONEncodeError as error:
        raise ValueError(f"tools, parameters.extra or outputSchema cannot be sent as JSON: {error}") from error
    return CompiledPrompt(spec=spec, before=tuple(parts[:split]), after=tuple(parts[split:]), contract=contract)


def messages_of(prompt: CompiledPrompt, body: Body) -> tuple[list[Body], list[Body]]:
    """The version's messages, filled: those before and those after the request's own. Raises CallerError, Unfilled."""
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
    """Those of the version's parameters, as JSON has them, over its `extra`."""
    parameters = spec.parameters
    if parameters is None:
        return {}
    found: dict[str, Any] = dict(parameters.extra or {})
    for name in names:
        value = getattr(parameters, name)
        if value is not None:
            found[name] = value if isinstance(value, int | list) else float(value)
    return found


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
    """How many system messages stand at the beginning."""
    for index, message in enumerate(messages):
        if message.get("role") not in SYSTEM_ROLES:
            return index
    return len(messages)
