"""A request's way through the gateway, top to bottom: parse, assign, fill, call, check, account."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

import orjson

from promptrollout.gateway.check import check, failed
from promptrollout.gateway.configuration import Arm
from promptrollout.gateway.counters import Counters
from promptrollout.gateway.errors import CallerError, ProviderError, Unfilled
from promptrollout.gateway.fill import fill, prepare
from promptrollout.gateway.http import Reply
from promptrollout.gateway.pin import hold, pin_of, require_no_state, require_state
from promptrollout.gateway.protocols.base import Protocol
from promptrollout.gateway.protocols.chat import wants_usage, without_added_usage
from promptrollout.gateway.providers.endpoint import Answer
from promptrollout.gateway.registry import Registry, Serving
from promptrollout.gateway.render import Body
from promptrollout.gateway.request import Accounted, Filled, Prepared, Request, parse
from promptrollout.gateway.route import Assignment, Headers, assign

logger = logging.getLogger(__name__)

# of the caller's headers only these go on: traces should not end here; everything else is between caller and gateway
_FORWARDED = ("traceparent", "tracestate", "x-client-request-id")


class Requests:
    """Answers requests for rollouts, whatever protocol they come in."""

    def __init__(
        self,
        registry: Registry,
        counters: Counters,
        random_unit: Callable[[], bytes] = lambda: os.urandom(16),
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._random_unit = random_unit
        self._wall_clock = wall_clock

    async def answer(self, protocol: Protocol, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one request. Raises CallerError where nothing was sent yet."""
        request = parse(protocol, headers, payload, started=time.perf_counter())
        serving = self._serving(request)
        pin = pin_of(serving, request, self._wall_clock())
        assignment = hold(serving, pin, self._assign(serving, request))
        require_state(serving, pin, assignment)
        prepared = prepare(serving, request, assignment, self._counters)
        prepared.wall_clock = self._wall_clock
        prepared.began_seconds = pin.began_of(prepared.arm) if pin else None
        with _UnderWay(prepared), Accounted(prepared, reply):
            try:
                answer = await self._call(serving, prepared)
                ending = await check(prepared, answer, reply)
            except ProviderError as error:
                ending = failed(prepared, error)
            prepared.account(reply)
            await ending.send(reply)

    def _serving(self, request: Request) -> Serving:
        name = request.protocol.rollout(request.body)
        if (serving := self._registry.find(name)) is None:
            raise CallerError(404, "model_not_found", f"no rollout {name[:253]!r} here; see GET /v1/models", "model")
        return serving

    def _assign(self, serving: Serving, request: Request) -> Assignment:
        protocol = request.protocol
        fields = protocol.user_fields, protocol.conversation_fields
        return assign(serving.routing, request.headers, request.body, self._random_unit, *fields)

    async def _call(self, serving: Serving, prepared: Prepared) -> Answer:
        """The provider's answer. While only the canary's provider is down, stable's answers in its place."""
        headers = prepared.request.headers
        forwarded = {name: headers[name].decode("latin-1") for name in _FORWARDED if name in headers}
        arm = prepared.arm
        if arm is serving.canary and arm.provider.base_url != serving.stable.provider.base_url:
            if not serving.canary_provider_unreachable or arm.provider.may_try():
                try:
                    return await _send(arm, prepared.filled, forwarded, wait_unreachable=False)
                except ProviderError as error:
                    if not error.unreachable:
                        raise
                    unreachable: ProviderError | None = error
            else:
                unreachable = None
            return await self._divert(serving, prepared, forwarded, unreachable)
        return await _send(arm, prepared.filled, forwarded)

    async def _divert(
        self,
        serving: Serving,
        prepared: Prepared,
        forwarded: Mapping[str, str],
        unreachable: ProviderError | None,
    ) -> Answer:
        """Stable's answer to a request of the canary; counted for neither, unless stable cannot be reached either."""
        stable = serving.stable
        require_no_state(prepared.request)
        try:
            filled = fill(stable, prepared.request)
        except Unfilled as error:
            raise unreachable or ProviderError(
                "connection", 502, f"provider {prepared.arm.provider.name} cannot be reached", unreachable=True
            ) from error
        counted = prepared.counted
        prepared.arm, prepared.filled, prepared.counted = stable, filled, None
        try:
            answer = await _send(stable, filled, forwarded)
        except ProviderError as error:
            if error.unreachable:
                prepared.counted = counted
            else:
                self._count_diverted(serving)
            raise
        self._count_diverted(serving)
        return answer

    def _count_diverted(self, serving: Serving) -> None:
        self._counters.diverted[serving.configuration.spec.rollout_uid, serving.configuration.name] += 1


class _UnderWay:
    """While a request is under way its series are not dropped, nor its provider's connections closed."""

    def __init__(self, prepared: Prepared) -> None:
        self._counted = prepared.counted
        self._provider = prepared.arm.provider

    def __enter__(self) -> None:
        self._provider.in_flight += 1
        if self._counted is not None:
            self._counted.in_flight += 1

    def __exit__(self, *exc_info: object) -> None:
        self._provider.in_flight -= 1
        if self._counted is not None:
            self._counted.in_flight -= 1


async def _send(arm: Arm, filled: Filled, forwarded: Mapping[str, str], *, wait_unreachable: bool = True) -> Answer:
    """The provider's answer; without usage in streams where a provider refuses to be asked for it."""
    provider = arm.provider
    request, path = filled.body, filled.way.path
    added = "stream_options" in request and not wants_usage(filled.asked)
    if added and provider.takes_stream_options:
        try:
            return await _call(arm, path, request, forwarded, wait_unreachable)
        except ProviderError as error:
            if not error.about_stream_options:
                raise
        provider.retries += 1
        answer = await _call(arm, path, without_added_usage(request, filled.asked), forwarded, wait_unreachable)
        logger.warning("provider %s refuses stream_options: the cost of its streams is unknown", provider.name)
        provider.takes_stream_options = False
        return answer
    request = without_added_usage(request, filled.asked) if added else request
    return await _call(arm, path, request, forwarded, wait_unreachable)


async def _call(arm: Arm, path: str, request: Body, forwarded: Mapping[str, str], wait_unreachable: bool) -> Answer:
    try:
        payload = orjson.dumps(request)
    except orjson.JSONEncodeError as error:
        raise CallerError(400, "invalid_json", "the request is nested too deeply") from error
    provider = arm.provider
    return await provider.call(payload, arm.provider_config, forwarded, path=path, wait_unreachable=wait_unreachable)
