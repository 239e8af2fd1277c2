"""OpenFeature's Remote Evaluation Protocol, so that its SDKs ask which prompt a user gets: a rollout is a flag."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from promptrollout.gateway.errors import CallerError
from promptrollout.gateway.http import JSON, Reply
from promptrollout.gateway.prompts import Given, Prompts
from promptrollout.gateway.protocols.chat import CHAT
from promptrollout.gateway.registry import Registry, Serving
from promptrollout.gateway.render import VARIABLES
from promptrollout.gateway.request import Request
from promptrollout.gateway.route import CONVERSATION_HEADER, USER_HEADER, Headers, Routing

PATH: Final = "/ofrep/v1/evaluate/flags"
TARGETING_KEY: Final = "targetingKey"
_CODES: Final = {
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


class Errors:
    """The shape of errors under a path of this protocol."""

    def __init__(self, path: str) -> None:
        key = path.removeprefix(PATH).removeprefix("/")
        self._key = {"key": key} if key else {}

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
        if status >= 500:
            return orjson.dumps({"errorDetails": message})
        return orjson.dumps({**self._key, **_failure(code, message)})


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


def _context(payload: bytes) -> Mapping[str, Any]:
    """The evaluation context. Raises CallerError."""
    try:
        body = orjson.loads(payload) if payload.strip() else {}
    except orjson.JSONDecodeError as error:
        raise CallerError(400, "invalid_json", f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CallerError(400, "invalid_json", "the request must be a JSON object")
    context = body.get("context")
    if context is None:
        return {}
    if not isinstance(context, dict):
        raise CallerError(400, "invalid_type", "context must be an object", "context")
    key = context.get(TARGETING_KEY)
    if key is not None and not isinstance(key, str):
        raise CallerError(400, "invalid_type", f"context.{TARGETING_KEY} must be a text", f"context.{TARGETING_KEY}")
    return context


def _request(serving: Serving, headers: Headers, context: Mapping[str, Any]) -> Request:
    """The context as a request: its texts stand for headers of their names, its targeting key for the unit."""
    found = dict(headers)
    for name, value in context.items():
        if isinstance(value, str):
            found[name.lower()] = value.encode()
    if key := context.get(TARGETING_KEY):
        found[_unit_header(serving.routing)] = key.encode()
    body = {name: context[name] for name in ("messages", VARIABLES) if name in context}
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


def _reason(given: Given) -> str:
    """Never STATIC, which SDKs may keep for good."""
    if given.assignment.forced:
        return "TARGETING_MATCH"
    return "DEFAULT" if given.assignment.variant == "stable-outside" else "SPLIT"


def _failure(code: str | None, message: str) -> dict[str, str]:
    return {"errorCode": _CODES.get(code or "", "GENERAL"), "errorDetails": message}


def _matches(wanted: str, tag: str) -> bool:
    """If-None-Match: any of a list, weak or not, or `*`."""
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in wanted.split(","))
