"""Third step of a request's way: the arm's provider is called, or stable's where the canary's cannot be reached."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import orjson

from promptrollout.gateway.configuration import Arm
from promptrollout.gateway.counters import Counters
from promptrollout.gateway.errors import CallerError, ProviderError, Unfilled
from promptrollout.gateway.fill import fill
from promptrollout.gateway.protocols.chat import wants_usage, without_added_usage
from promptrollout.gateway.providers.endpoint import Answer
from promptrollout.gateway.registry import Serving
from promptrollout.gateway.render import Body
from promptrollout.gateway.request import Filled, Prepared

logger = logging.getLogger(__name__)


async def call(counters: Counters, serving: Serving, prepared: Prepared) -> Answer:
    """The provider's answer. While only the canary's provider is down, stable's answers in its place."""
    forwarded = prepared.forwarded()
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
        return await _divert(counters, serving, prepared, forwarded, unreachable)
    return await _send(arm, prepared.filled, forwarded)


async def _divert(
    counters: Counters,
    serving: Serving,
    prepared: Prepared,
    forwarded: Mapping[str, str],
    unreachable: ProviderError | None,
) -> Answer:
    """Stable's answer to a request of the canary; counted for neither, unless stable cannot be reached either."""
    stable = serving.stable
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
            _count_diverted(counters, serving)
        raise
    _count_diverted(counters, serving)
    return answer


def _count_diverted(counters: Counters, serving: Serving) -> None:
    counters.diverted[serving.configuration.spec.rollout_uid, serving.configuration.name] += 1


class UnderWay:
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
