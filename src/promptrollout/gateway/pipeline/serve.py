"""A request's way through the gateway, top to bottom: parse, assign, fill, call, check, account."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

from promptrollout.gateway.assignment.assign import Assignment, Headers, assign
from promptrollout.gateway.http.exchange import MAX_ANSWERS_BYTES, Bodies, Reply
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.pipeline.account import Accounted
from promptrollout.gateway.pipeline.conversation_pin import carry, hold, keep, pin_of
from promptrollout.gateway.pipeline.dispatch import UnderWay, call
from promptrollout.gateway.pipeline.prepare import prepare
from promptrollout.gateway.pipeline.request import Request, parse
from promptrollout.gateway.pipeline.respond import check, failed
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.answers.schema_process import SchemaProcess
from promptrollout.llm.errors import CallerError, ProviderError
from promptrollout.llm.protocols.base import Protocol

logger = logging.getLogger(__name__)


class Requests:
    """Answers requests for rollouts, whatever protocol they come in."""

    def __init__(
        self,
        registry: Registry,
        counters: Counters,
        random_unit: Callable[[], bytes] = lambda: os.urandom(16),
        wall_clock: Callable[[], float] = time.time,
        places: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._answers = Bodies(MAX_ANSWERS_BYTES)
        self._random_unit = random_unit
        self._wall_clock = wall_clock
        self._places = places
        """So many requests at once does this pod take now."""
        self._schemas = SchemaProcess(counters.answers_not_judged)

    async def close(self) -> None:
        await self._schemas.close()

    async def answer(self, protocol: Protocol, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one request. Raises CallerError where nothing was sent yet."""
        request = parse(protocol, headers, payload, started=time.perf_counter())
        serving = self._serving(request)
        pin = pin_of(serving, request, self._wall_clock())
        assignment = keep(serving, request, pin, hold(serving, pin, self._assign(serving, request)))
        carry(serving, pin, assignment, request)
        prepared = prepare(serving, request, assignment, counts=protocol.sampled)
        prepared.wall_clock = self._wall_clock
        prepared.began_seconds = pin.began_of(prepared.arm) if pin else None
        with UnderWay(prepared), Accounted(prepared, reply), self._answers.share() as share:
            try:
                answer = await call(self._counters, serving, prepared, self._places())
                ending = await check(prepared, answer, reply, share, self._schemas)
            except ProviderError as error:
                ending = failed(prepared, error)
            await ending.begin(reply)
            prepared.account(reply)
            await ending.send(reply)

    def _serving(self, request: Request) -> Serving:
        name = request.protocol.rollout(request.body)
        if (serving := self._registry.find(name)) is None:
            nobody = CallerError(404, "model_not_found", f"no rollout {name[:253]!r} here; see GET /v1/models", "model")
            raise self._registry.refusal(name) or nobody
        return serving

    def _assign(self, serving: Serving, request: Request) -> Assignment:
        protocol = request.protocol
        if not protocol.compared:
            return Assignment("stable-outside")
        fields = protocol.user_fields, protocol.conversation_fields
        return assign(serving.routing, request.headers, request.body, self._random_unit, *fields)
