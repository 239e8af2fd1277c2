"""A request's walk through the gateway: parse, assign, pin, prepare, dispatch, respond, account."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from promptrollout.gateway.assignment.assign import Assignment, Headers, assign
from promptrollout.gateway.http.exchange import MAX_ANSWERS_BYTES, Bodies, Reply
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.pipeline.account import AccountedOnExit, InFlight, account
from promptrollout.gateway.pipeline.conversation_pin import assign_conversation, continue_conversation, find_pin
from promptrollout.gateway.pipeline.dispatch import dispatch
from promptrollout.gateway.pipeline.prepare import prepare
from promptrollout.gateway.pipeline.request import Request, parse
from promptrollout.gateway.pipeline.respond import respond, respond_with_error
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.answers.schema_process import SchemaProcess
from promptrollout.llm.errors import CallerError, ProviderError
from promptrollout.llm.protocols.base import Protocol


class Requests:
    """Answers requests for rollouts, in any protocol."""

    def __init__(
        self,
        registry: Registry,
        counters: Counters,
        random_unit: Callable[[], bytes] = lambda: os.urandom(16),
        wall_clock: Callable[[], float] = time.time,
        places: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        """`places`: how many requests this pod answers at once now."""
        self._registry = registry
        self._counters = counters
        self._answers = Bodies(MAX_ANSWERS_BYTES)
        self._random_unit = random_unit
        self._wall_clock = wall_clock
        self._places = places
        self._schemas = SchemaProcess(counters.answers_not_judged)

    async def close(self) -> None:
        await self._schemas.close()

    async def answer(self, protocol: Protocol, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one request. Raises CallerError where nothing was sent yet."""
        request = parse(protocol, headers, payload, started=time.perf_counter())
        rollout = self._rollout(request)
        pin = find_pin(rollout, request, self._wall_clock())
        assignment = assign_conversation(rollout, request, pin, self._assign(rollout, request))
        continue_conversation(rollout, request, pin, assignment)
        prepared = prepare(rollout, request, assignment, pin=pin, counts=protocol.sampled, wall_clock=self._wall_clock)
        with InFlight(prepared), AccountedOnExit(prepared, reply), self._answers.share() as share:
            try:
                answer = await dispatch(prepared, self._counters, self._places())
                remainder = await respond(prepared, answer, reply, share, self._schemas)
            except ProviderError as error:
                remainder = respond_with_error(prepared, error)
            await remainder.begin(reply)
            account(prepared, reply)
            await remainder.send(reply)

    def _rollout(self, request: Request) -> LiveRollout:
        name = request.protocol.rollout(request.body)
        if (rollout := self._registry.find(name)) is None:
            message = f"this gateway serves no rollout {name[:253]!r}; see GET /v1/models"
            raise self._registry.refusal(name) or CallerError(404, "model_not_found", message, "model")
        return rollout

    def _assign(self, rollout: LiveRollout, request: Request) -> Assignment:
        protocol = request.protocol
        if not protocol.compared:
            return Assignment("stable-outside")
        fields = protocol.user_fields, protocol.conversation_fields
        return assign(rollout.routing, request.headers, request.body, self._random_unit, *fields)
