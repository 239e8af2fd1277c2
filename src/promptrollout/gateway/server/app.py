"""The serving port: its paths, its limits on requests, and the one place where errors become answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import orjson

from promptrollout.api.gateway import Limits as Limits
from promptrollout.gateway.applications import ofrep, render, usage
from promptrollout.gateway.applications.feedback import FEEDBACK_PATH, SCORES_PATH, VoteCounting
from promptrollout.gateway.applications.ofrep import Ofrep
from promptrollout.gateway.applications.render import PromptRenderer
from promptrollout.gateway.applications.usage import UsageReports
from promptrollout.gateway.assignment.assign import Headers
from promptrollout.gateway.auth.authenticate import Authenticator
from promptrollout.gateway.auth.caller_keys import ANONYMOUS, CALLER, Caller
from promptrollout.gateway.http.errors import ClientGone, MethodNotAllowed
from promptrollout.gateway.http.exchange import (
    JSON,
    Bodies,
    Receive,
    Reply,
    Scope,
    Send,
    headers_of,
    read_body,
    unless_gone,
)
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.openapi import document
from promptrollout.gateway.pipeline.serve import Requests
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.gateway.server.admission import Admission, RateLimiter
from promptrollout.gateway.server.error_format import ErrorFormat, error_format_of
from promptrollout.llm.errors import CallerError
from promptrollout.llm.protocols import PROTOCOLS
from promptrollout.llm.protocols.messages import ANTHROPIC_HEADER

logger = logging.getLogger(__name__)

MODELS_PATH: Final = "/v1/models"

Endpoint = Callable[[Headers, bytes, Reply], Awaitable[None]]


class ServingApp:
    """ASGI application of the port that callers use."""

    def __init__(
        self,
        registry: Registry,
        counters: Counters,
        limits: Limits,
        pod_ip: str = "",
        admin_port: int = 0,
        wall_clock: Callable[[], float] = time.time,
        authenticator: Authenticator | None = None,
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._limits = limits
        self._authenticator = authenticator or Authenticator()
        self.admission = Admission(
            counters, limits.max_concurrent_requests, limits.max_queued_requests, limits.max_queue_milliseconds / 1000
        )
        self._bodies = Bodies()
        rate = limits.requests_per_minute_per_key
        self._rates = None if rate is None else RateLimiter(rate, limits.burst_per_key)
        self.draining = False
        """The pod is stopping: answers close their connection, so that callers connect to another pod."""
        self._requests = Requests(
            registry, counters, wall_clock=wall_clock, places=lambda: self.admission.concurrency.limit
        )
        votes = VoteCounting(registry, counters, wall_clock)
        self._endpoints: dict[str, Endpoint] = {FEEDBACK_PATH: votes.feedback, SCORES_PATH: votes.score}
        self._prompts = PromptRenderer(registry, counters, pod_ip, admin_port)
        self._ofrep = Ofrep(registry, self._prompts)
        self.reports = UsageReports(registry, counters)

    async def close(self) -> None:
        await self.reports.close()
        await self._requests.close()

    def overloaded(self) -> int:
        """Whether the server must refuse a request before it is read: 0 if not, else the seconds of Retry-After."""
        if not self.admission.refuses():
            return 0
        self._counters.rejected["overloaded"] += 1
        return self.admission.retry_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reply = Reply(send, last=self.draining)
        try:
            await self._dispatch(scope, receive, reply)
        except CallerError as error:
            self._counters.rejected[error.code] += 1
            body = _error_format(scope).error_body(error.status, str(error), error.code, error.param)
            await reply.whole(error.status, {**error.headers, "content-type": JSON}, body)
        except ClientGone:
            self._counters.disconnects += 1
        except Exception:
            # an error of the gateway: answered if that is still possible, logged with its trace, and counted
            logger.exception("%s %s failed", scope["method"], scope["path"])
            self._counters.rejected["internal"] += 1
            if not reply.begun:
                body = _error_format(scope).error_body(500, "internal error of the gateway; see its log", "internal")
                await reply.whole(500, {"content-type": JSON}, body)

    async def _dispatch(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        method, path = scope["method"], scope["path"]
        headers = headers_of(scope)
        caller = await self._authenticator.caller(headers)
        CALLER.set(caller)
        if protocol := PROTOCOLS.get(path):
            _require(method, "POST")
            await self._answer(partial(self._requests.answer, protocol), caller, headers, receive, reply)
        elif endpoint := self._endpoints.get(path) or self._application_endpoint(path):
            _require(method, "POST")
            await self._answer(endpoint, caller, headers, receive, reply)
        elif path == MODELS_PATH:
            _require(method, "GET")
            await reply.whole(200, {"content-type": JSON}, orjson.dumps(_models(self._registry.names(), scope)))
        elif path.startswith(f"{MODELS_PATH}/"):
            _require(method, "GET")
            name = path.removeprefix(f"{MODELS_PATH}/")
            if self._registry.find(name) is None:
                raise CallerError(
                    404,
                    "model_not_found",
                    f"this gateway serves no rollout {name[:253]!r}; see GET {MODELS_PATH}",
                    "model",
                )
            await reply.whole(200, {"content-type": JSON}, orjson.dumps(_model(name, scope)))
        elif path == document.PATH:
            _require(method, "GET")
            await reply.whole(200, {"content-type": JSON}, document.DOCUMENT)
        else:
            raise CallerError(404, "unknown_url", f"unknown request URL: {method} {path[:200]}")

    def _application_endpoint(self, path: str) -> Endpoint | None:
        """The endpoint of a path for applications that call the model themselves."""
        if path.startswith(render.PREFIX) and path.endswith(render.SUFFIX):
            return partial(self._prompts.answer, path[len(render.PREFIX) : -len(render.SUFFIX)])
        if path == usage.PATH:
            return self.reports.answer
        if path == ofrep.PATH:
            return self._ofrep.all
        if path.startswith(f"{ofrep.PATH}/"):
            return partial(self._ofrep.one, path[len(ofrep.PATH) + 1 :])
        return None

    async def _answer(
        self, endpoint: Endpoint, caller: Caller, headers: dict[str, bytes], receive: Receive, reply: Reply
    ) -> None:
        if self._rates is not None and caller is not ANONYMOUS:
            self._rates.spend(caller.name)
        with self._bodies.share() as share:
            payload = await read_body(headers, receive, self._limits.max_request_bytes, share)
            async with self.admission:
                await unless_gone(endpoint(headers, payload, reply), receive, reply)


def _require(method: str, wanted: str) -> None:
    if method != wanted:
        raise MethodNotAllowed(method, wanted)


def _models(names: Iterable[str], scope: Scope) -> dict[str, object]:
    models = [_model(name, scope) for name in names]
    if not _uses_anthropic(scope):
        return {"object": "list", "data": models}
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]} if models else {"first_id": None, "last_id": None}
    return {"data": models, "has_more": False, **ends}


def _model(name: str, scope: Scope) -> dict[str, object]:
    if _uses_anthropic(scope):
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {"id": name, "object": "model", "created": 0, "owned_by": "promptrollout"}


def _error_format(scope: Scope) -> ErrorFormat:
    return error_format_of(scope["path"], scope["headers"])


def _uses_anthropic(scope: Scope) -> bool:
    """Whether the caller uses Anthropic's protocol, on a path that both have."""
    return ANTHROPIC_HEADER in headers_of(scope)
