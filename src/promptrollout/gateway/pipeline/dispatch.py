"""Third step of a request's way: the arm's provider is called, or stable's where the canary's cannot be reached."""

from __future__ import annotations

import logging
from typing import Final

import orjson

from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.pipeline.conversation_pin import has_state, require_no_state
from promptrollout.gateway.pipeline.crowding import crowds_out
from promptrollout.gateway.pipeline.prepare import fill
from promptrollout.gateway.pipeline.request import Filled, Prepared
from promptrollout.gateway.rollouts.configuration import Target
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.llm.answers.answer import Answer
from promptrollout.llm.errors import CallerError, ProviderError, Unfilled
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.chat import wants_usage, without_added_usage
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.endpoint import RETRY_AFTER_MAX_SECONDS
from promptrollout.llm.providers.failures import crowded

logger = logging.getLogger(__name__)

FALLBACK_PATIENCE_SECONDS: Final = 1.0
"""A provider that asks for a longer pause is not waited for where a fallback may answer now."""


async def call(counters: Counters, serving: Serving, prepared: Prepared, places: int) -> Answer:
    """The answer of the version's provider, or of its fallbacks. While only the canary's provider is down, stable's
    answers in its place: an outage decides nothing, and a canary that waits for its provider harms nobody. `places`: so
    many requests at once does this pod take now."""
    arm = prepared.arm
    if not prepared.request.protocol.sampled:
        # with a circuit of its own, which nobody looks at
        return await _send(prepared, arm.own, RETRY_AFTER_MAX_SECONDS, circuit=Circuit())
    arm.circuit.came()
    crowding = arm is serving.canary and crowds_out(arm.circuit, serving.stable.circuit, counters, places)
    elsewhere = arm is serving.canary and arm.provider.base_url != serving.stable.provider.base_url
    if crowding and (not elsewhere or arm.circuit.slow):
        return await _fall_back(prepared, crowded(arm.provider.name))
    if crowding:  # silent, and nobody knows yet whether it is down: those who wait will tell
        return await _divert(counters, serving, prepared, None)
    if elsewhere:
        if not serving.canary_provider_unreachable or arm.circuit.may_find_out:
            try:
                return await _answer(prepared, wait_unreachable=False)
            except ProviderError as error:
                if not error.unreachable:
                    raise
                unreachable: ProviderError | None = error
        else:
            unreachable = None
        return await _divert(counters, serving, prepared, unreachable)
    return await _answer(prepared)


async def _answer(prepared: Prepared, *, wait_unreachable: bool = True) -> Answer:
    """The first answer of the arm's targets; raises the own provider's error where there is none.

    With `wait_unreachable` off, nobody stands in for a provider that is out of reach: the caller of this knows somebody
    better.
    """
    own, last = prepared.arm.own, prepared.arm.targets[-1]
    patience = RETRY_AFTER_MAX_SECONDS if own is last else FALLBACK_PATIENCE_SECONDS
    try:
        return await _send(prepared, own, patience, wait_unreachable=wait_unreachable)
    except ProviderError as error:
        # what is not compared (embeddings) is of no use from another model
        alone = own is last or not prepared.request.protocol.compared
        if alone or not error.another_may_answer or (error.unreachable and not wait_unreachable):
            raise
        failure = error
    return await _fall_back(prepared, failure)


async def _fall_back(prepared: Prepared, failure: ProviderError) -> Answer:
    """A fallback's answer to what the arm's own provider failed at; raises the failure where none answers.

    The failure is an error of the arm though a fallback answers: a version that its model cannot answer must not look
    like one that it can.
    """
    arm, outcome = prepared.arm, prepared.outcome
    if has_state(prepared.request):
        raise failure  # it goes on from what the arm's own provider keeps
    for target in arm.targets[1:]:
        patience = RETRY_AFTER_MAX_SECONDS if target is arm.targets[-1] else FALLBACK_PATIENCE_SECONDS
        try:
            filled = fill(arm, prepared.request, target)
            answer = await _send(prepared, target, patience, filled)
        except (ProviderError, Unfilled) as error:
            logger.info("fallback %s of version %s failed too: %s", target.provider.name, arm.version, error)
            continue
        outcome.error_type = outcome.error_type or failure.error_type
        outcome.fallback, outcome.price = True, target.price
        prepared.filled, prepared.answered_by = filled, target
        return answer
    raise failure


async def _divert(
    counters: Counters,
    serving: Serving,
    prepared: Prepared,
    unreachable: ProviderError | None,
) -> Answer:
    """Stable's answer to a request of the canary; counted for neither, unless stable cannot be reached either."""
    stable = serving.stable
    require_no_state(prepared.request)
    try:
        filled = fill(stable, prepared.request, stable.own)
    except Unfilled as error:
        raise unreachable or ProviderError(
            "connection", 502, f"provider {prepared.arm.provider.name} cannot be reached", unreachable=True
        ) from error
    assigned = prepared.arm, prepared.filled, prepared.counted
    prepared.arm, prepared.filled, prepared.counted = stable, filled, None
    try:
        answer = await _answer(prepared)
    except ProviderError as error:
        if error.unreachable:
            prepared.arm, prepared.filled, prepared.counted = assigned
            return await _fall_back(prepared, unreachable or error)
        _count_diverted(counters, serving)
        raise
    _count_diverted(counters, serving)
    return answer


def _count_diverted(counters: Counters, serving: Serving) -> None:
    counters.diverted[serving.configuration.spec.rollout_uid, serving.configuration.name] += 1


class UnderWay:
    """While a request is under way its series are not dropped, nor its providers' connections closed."""

    def __init__(self, prepared: Prepared) -> None:
        self._counted = prepared.counted
        arm, stable = prepared.arm, prepared.serving.stable
        # stable may answer in the canary's place
        self._targets = arm.targets if arm is stable else (*arm.targets, *stable.targets)

    def __enter__(self) -> None:
        for target in self._targets:
            target.provider.in_flight += 1
        if self._counted is not None:
            self._counted.in_flight += 1

    def __exit__(self, *exc_info: object) -> None:
        for target in self._targets:
            target.provider.in_flight -= 1
        if self._counted is not None:
            self._counted.in_flight -= 1


async def _send(
    prepared: Prepared,
    target: Target,
    patience_seconds: float,
    fallback: Filled | None = None,
    *,
    wait_unreachable: bool = True,
    circuit: Circuit | None = None,
) -> Answer:
    """The provider's answer; without usage in streams where a provider refuses to be asked for it. `fallback`: what it
    is asked, if it is not the arm's own."""
    filled, forwarded = fallback or prepared.filled, prepared.forwarded(fallback)
    provider, request = target.provider, filled.body

    async def send(request: Body) -> Answer:
        try:
            payload = orjson.dumps(request)
        except orjson.JSONEncodeError as error:
            raise CallerError(400, "invalid_json", "the request is nested too deeply") from error
        return await provider.call(
            payload,
            target.config,
            forwarded,
            circuit or target.circuit,
            path=filled.way.path,
            since=prepared.request.started,
            wait_unreachable=wait_unreachable,
            patience_seconds=patience_seconds,
        )

    if "stream_options" not in request or wants_usage(filled.asked):
        return await send(request)
    if provider.takes_stream_options:
        try:
            return await send(request)
        except ProviderError as error:
            if not error.about_stream_options:
                raise
        provider.retries += 1
        answer = await send(without_added_usage(request, filled.asked))
        logger.warning("provider %s refuses stream_options: the cost of its streams is unknown", provider.name)
        provider.takes_stream_options = False
        return answer
    return await send(without_added_usage(request, filled.asked))
