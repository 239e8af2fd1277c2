"""OpenFeature's Remote Evaluation Protocol: its SDKs ask which prompt a user gets. Each rollout is a flag."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from promptrollout.api.names import HEADER_TENANT
from promptrollout.gateway.applications.render import PromptRenderer, RenderedPrompt
from promptrollout.gateway.assignment.assign import CONVERSATION_HEADER, USER_HEADER, Headers, Routing
from promptrollout.gateway.http.exchange import JSON, Reply
from promptrollout.gateway.http.json_body import read
from promptrollout.gateway.pipeline.request import Request
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import VARIABLES
from promptrollout.llm.protocols.chat import CHAT

ROOT: Final = "/ofrep/"
PATH: Final = "/ofrep/v1/evaluate/flags"
TARGETING_KEY: Final = "targetingKey"
Reason = Literal["SPLIT", "DEFAULT", "TARGETING_MATCH"]
"""Never STATIC, which SDKs may cache for ever."""
GENERAL: Final = "GENERAL"
CODES: Final = {
    "invalid_json": "PARSE_ERROR",
    "invalid_type": "INVALID_CONTEXT",
    "prompt_variable_missing": "INVALID_CONTEXT",
    "prompt_render_failed": "INVALID_CONTEXT",
    "system_message_refused": "INVALID_CONTEXT",
    "rollout_not_found": "FLAG_NOT_FOUND",
}
"""Our error codes as OpenFeature's; all others are GENERAL."""
_TURN: Final = 20
"""After so many evaluations of a bulk request, other requests run."""


class EvaluationContext(BaseModel):
    """The user and the request. A text under any other name is treated as a header of that name, for audiences."""

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
class OfrepErrors:
    """The format of errors under this protocol's paths."""

    key: str
    """The flag; empty: of the bulk request."""

    @staticmethod
    def of(path: str) -> OfrepErrors:
        return OfrepErrors(path[len(PATH) + 1 :] if path.startswith(f"{PATH}/") else "")

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        if status >= 500:
            return orjson.dumps({"errorDetails": message})
        return orjson.dumps({**({"key": self.key} if self.key else {}), **_failure(code, message)})


class Ofrep:
    """Evaluates one rollout, or all of them."""

    def __init__(self, registry: Registry, prompts: PromptRenderer) -> None:
        self._registry = registry
        self._prompts = prompts

    async def one(self, key: str, headers: Headers, payload: bytes, reply: Reply) -> None:
        """`POST …/flags/{key}`. Raises CallerError."""
        rollout = self._prompts.rollout(key)
        rendered = self._prompts.render(rollout, _request(rollout, headers, _context(payload)), counts=True)
        await reply.whole(200, {"content-type": JSON}, orjson.dumps(_evaluation(rendered)))

    async def all(self, headers: Headers, payload: bytes, reply: Reply) -> None:
        """`POST …/flags`. Clients cache these answers and ask again, so none of them is counted. Raises CallerError."""
        context = _context(payload)
        flags: list[dict[str, Any]] = []
        for number, name in enumerate(self._registry.names()):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            if (rollout := self._registry.find(name)) is None:
                continue
            try:
                request = _request(rollout, headers, context)
                flags.append(_evaluation(self._prompts.render(rollout, request, counts=False)))
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
    request = read(EvaluationRequest, payload, "invalid_type") if payload.strip() else EvaluationRequest()
    return request.context or EvaluationContext()


def _request(rollout: LiveRollout, headers: Headers, context: EvaluationContext) -> Request:
    """The context as a request: its texts become headers, its targeting key the stickiness unit. The tenant is that of
    the caller's key, whatever the context says."""
    texts = {name.lower(): value for name, value in (context.model_extra or {}).items() if isinstance(value, str)}
    if key := context.targeting_key:
        texts[_unit_header(rollout.routing)] = key
    texts.pop(HEADER_TENANT, None)
    merged = {**headers, **{name: text.encode() for name, text in texts.items()}}
    body = {"messages": context.messages, VARIABLES: context.prompt_variables}
    return Request(CHAT, merged, body, time.perf_counter(), traceparent="", trace_id="")  # no provider gets it


def _unit_header(routing: Routing) -> str:
    return {"User": USER_HEADER, "Conversation": CONVERSATION_HEADER}.get(routing.by, routing.header)


def _evaluation(rendered: RenderedPrompt) -> dict[str, Any]:
    configuration, arm = rendered.rollout.configuration, rendered.arm
    uid = configuration.spec.rollout_uid
    metadata: dict[str, Any] = {"version": arm.version, "digest": arm.digest, "rolloutUID": uid}
    if rendered.cache_seconds is not None:
        metadata["cacheSeconds"] = rendered.cache_seconds
    if rendered.token is not None:
        metadata["usageToken"] = rendered.token
    return {
        "key": configuration.name,
        "value": rendered.value,
        "variant": arm.variant,
        "reason": _reason(rendered),
        "metadata": metadata,
    }


def _reason(rendered: RenderedPrompt) -> Reason:
    if rendered.assignment.forced:
        return "TARGETING_MATCH"
    return "DEFAULT" if rendered.assignment.variant == "stable-outside" else "SPLIT"


def _failure(code: str | None, message: str) -> dict[str, str]:
    return {"errorCode": CODES.get(code or "", GENERAL), "errorDetails": message}


def _matches(wanted: str, tag: str) -> bool:
    """Whether If-None-Match names this tag, weak or not, or `*`."""
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in wanted.split(","))
