"""OpenFeature's Remote Evaluation Protocol, so that its SDKs ask which prompt a user gets: a rollout is a flag."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from promptrollout.api.names import HEADER_TENANT
from promptrollout.gateway.applications.render import Given, Prompts
from promptrollout.gateway.assignment.assign import CONVERSATION_HEADER, USER_HEADER, Headers, Routing
from promptrollout.gateway.http.exchange import JSON, Reply
from promptrollout.gateway.http.json_body import read
from promptrollout.gateway.pipeline.request import Request
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import VARIABLES
from promptrollout.llm.protocols.chat import CHAT

ROOT: Final = "/ofrep/"
PATH: Final = "/ofrep/v1/evaluate/flags"
TARGETING_KEY: Final = "targetingKey"
Reason = Literal["SPLIT", "DEFAULT", "TARGETING_MATCH"]
"""Never STATIC, which SDKs may keep for good."""
GENERAL: Final = "GENERAL"
CODES: Final = {
    "invalid_json": "PARSE_ERROR",
    "invalid_type": "INVALID_CONTEXT",
    "prompt_variable_missing": "INVALID_CONTEXT",
    "prompt_render_failed": "INVALID_CONTEXT",
    "system_message_refused": "INVALID_CONTEXT",
    "rollout_not_found": "FLAG_NOT_FOUND",
}
"""Ours to OpenFeature's; all others are GENERAL."""
_TURN: Final = 20
"""Evaluations of a bulk between which others have their turn."""


class EvaluationContext(BaseModel):
    """Who asks, and what for. Texts under any other name stand for headers of that name: audiences see them."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    targeting_key: Annotated[str | None, Field(alias=TARGETING_KEY)] = None
    """The stickiness unit, whatever the rollout's `stickiness.by` names."""
    messages: list[dict[str, Any]] | None = None
    """What follows the version's own messages."""
    prompt_variables: dict[str, Any] | None = None
    """Values for the variables of the version's templates."""


class EvaluationRequest(BaseModel):
    """OFREP's request."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    context: EvaluationContext | None = None


@dataclass(frozen=True, slots=True)
class Errors:
    """The shape of errors under a path of this protocol."""

    key: str
    """Of the flag; empty: of none."""

    @staticmethod
    def of(path: str) -> Errors:
        return Errors(path[len(PATH) + 1 :] if path.startswith(f"{PATH}/") else "")

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        if status >= 500:
            return orjson.dumps({"errorDetails": message})
        return orjson.dumps({**({"key": self.key} if self.key else {}), **_failure(code, message)})


class Ofrep:
    """Evaluates one rollout, or all of them."""

    def __init__(self, registry: Registry, prompts: Prompts) -> None:
        self._registry = registry
        self._prompts = prompts

    async def one(self, key: str, headers: Headers, payload: bytes, reply: Reply) -> None:
        """`POST …/flags/{key}`. Raises CallerError."""
        serving = self._prompts.serving(key)
        given = self._prompts.give(serving, _request(serving, headers, _context(payload)), counts=True)
        await reply.whole(200, {"content-type": JSON}, orjson.dumps(_evaluation(given)))

    async def all(self, headers: Headers, payload: bytes, reply: Reply) -> None:
        """`POST …/flags`. Whoever asks so keeps the answers and asks again: none of them counts. Raises CallerError."""
        context = _context(payload)
        flags: list[dict[str, Any]] = []
        for number, name in enumerate(self._registry.names()):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            if (serving := self._registry.find(name)) is None:
                continue
            try:
                request = _request(serving, headers, context)
                flags.append(_evaluation(self._prompts.give(serving, request, counts=False)))
            except CallerError as error:
                flags.append({"key": name, **_failure(error.code, str(error))})
        body = orjson.dumps({"flags": flags})
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if _matches(headers.get("if-none-match", b"").decode("latin-1"), tag):
            await reply.begin(304, {"etag": tag})
            await reply.end()
        else:
            await reply.whole(200, {"content-type": JSON, "etag": tag}, body)


def _context(payload: bytes) -> EvaluationContext:
    """The evaluation context. Raises CallerError."""
    asked = read(EvaluationRequest, payload, "invalid_type") if payload.strip() else EvaluationRequest()
    return asked.context or EvaluationContext()


def _request(serving: Serving, headers: Headers, context: EvaluationContext) -> Request:
    """The context as a request: its texts stand for headers of their names, its targeting key for the unit. The tenant
    is that of the caller's key, whatever the context says."""
    texts = {name.lower(): value for name, value in (context.model_extra or {}).items() if isinstance(value, str)}
    if key := context.targeting_key:
        texts[_unit_header(serving.routing)] = key
    texts.pop(HEADER_TENANT, None)
    found = {**headers, **{name: text.encode() for name, text in texts.items()}}
    body = {"messages": context.messages, VARIABLES: context.prompt_variables}
    return Request(CHAT, found, body, time.perf_counter(), traceparent="", trace_id="")  # nobody else is asked


def _unit_header(routing: Routing) -> str:
    return {"User": USER_HEADER, "Conversation": CONVERSATION_HEADER}.get(routing.by, routing.header)


def _evaluation(given: Given) -> dict[str, Any]:
    configuration, arm = given.serving.configuration, given.arm
    uid = configuration.spec.rollout_uid
    metadata: dict[str, Any] = {"version": arm.version, "digest": arm.digest, "rolloutUID": uid}
    if given.cache_seconds is not None:
        metadata["cacheSeconds"] = given.cache_seconds
    if given.token is not None:
        metadata["usageToken"] = given.token
    return {
        "key": configuration.name,
        "value": given.value,
        "variant": arm.variant,
        "reason": _reason(given),
        "metadata": metadata,
    }


def _reason(given: Given) -> Reason:
    if given.assignment.forced:
        return "TARGETING_MATCH"
    return "DEFAULT" if given.assignment.variant == "stable-outside" else "SPLIT"


def _failure(code: str | None, message: str) -> dict[str, str]:
    return {"errorCode": CODES.get(code or "", GENERAL), "errorDetails": message}


def _matches(wanted: str, tag: str) -> bool:
    """If-None-Match: any of a list, weak or not, or `*`."""
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in wanted.split(","))
