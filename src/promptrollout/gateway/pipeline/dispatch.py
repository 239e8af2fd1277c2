"""Dispatch a prepared request: to the arm's provider, to its fallbacks, or to stable in the canary's place."""

from __future__ import annotations

import logging
from typing import Final

import orjson

from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.pipeline.conversation_pin import has_state, require_no_state
from promptrollout.gateway.pipeline.crowding import crowds_out
from promptrollout.gateway.pipeline.prepare import provider_request
from promptrollout.gateway.pipeline.request import Prepared, ProviderRequest
from promptrollout.gateway.rollouts.configuration import Target
from promptrollout.llm.answers.answer import Answer
from promptrollout.llm.errors import CallerError, PrepareError, ProviderError
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.chat import wants_usage, without_added_usage
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.endpoint import RETRY_AFTER_MAX_SECONDS
from promptrollout.llm.providers.failures import crowded

logger = logging.getLogger(__name__)

FALLBACK_PATIENCE_SECONDS: Final = 1.0
"""Where a fallback may answer, a provider that asks for a longer pause is not waited for."""


async def dispatch(prepared: Prepared, counters: Counters, places: int) -> Answer:
    """The answer of the version's provider, or of a fallback. While only the canary's provider is unreachable, stable
    answers in its place: an outage decides nothing. `places`: how many requests this pod answers at once now. Raises
    ProviderError, CallerError."""
    arm, stable = prepared.arm, prepared.rollout.stable
    if not prepared.request.protocol.sampled:
        # with a circuit of its own: the outcome says nothing about the arm's provider
        return await _send(prepared, arm.own, RETRY_AFTER_MAX_SECONDS, circuit=Circuit())
    arm.circuit.record_request()
    on_canary = arm is prepared.rollout.canary
    crowding = on_canary and crowds_out(arm.circuit, stable.circuit, counters, places)
    other_provider = on_canary and arm.provider.base_url != stable.provider.base_url
    if crowding and (not other_provider or arm.circuit.slow):
        return await _fall_back(prepared, crowded(arm.provider.name))
    if crowding:  # silent, and not known to be down yet: the requests that wait will show it
        return await _divert(prepared, counters, None)
    if other_provider:
        unreachable = None
        if not prepared.rollout.canary_provider_unreachable or arm.circuit.trial_due:
            try:
                return await _ask_arm(prepared, wait_unreachable=False)
            except ProviderError as error:
                if not error.unreachable:
                    raise
                unreachable = error
        return await _divert(prepared, counters, unreachable)
    return await _ask_arm(prepared)


async def _ask_arm(prepared: Prepared, *, wait_unreachable: bool = True) -> Answer:
    """The answer of the arm's own provider, or of a fallback; raises the own provider's error if none answers.

    With `wait_unreachable` off, an unreachable provider is neither waited for nor replaced by a fallback: the caller of
    this has stable to answer.
    """
    own, last = prepared.arm.own, prepared.arm.targets[-1]
    patience = RETRY_AFTER_MAX_SECONDS if own is last else FALLBACK_PATIENCE_SECONDS
    try:
        return await _send(prepared, own, patience, wait_unreachable=wait_unreachable)
    except ProviderError as error:
        # what is not compared (embeddings) is of no use from another model
        no_fallback = own is last or not prepared.request.protocol.compared
        if no_fallback or not error.another_may_answer or (error.unreachable and not wait_unreachable):
            raise
        failure = error
    return await _fall_back(prepared, failure)


async def _fall_back(prepared: Prepared, failure: ProviderError) -> Answer:
    """A fallback's answer after the arm's own provider failed; raises that failure if no fallback answers.

    The failure counts as an error of the arm though a fallback answers: a version that its model cannot answer must not
    look like one that it can.
    """
    arm, outcome = prepared.arm, prepared.outcome
    if has_state(prepared.request):
        raise failure  # the request continues what the arm's own provider stored
    for target in arm.targets[1:]:
        patience = RETRY_AFTER_MAX_SECONDS if target is arm.targets[-1] else FALLBACK_PATIENCE_SECONDS
        try:
            fallback = provider_request(arm, prepared.request, target)
            answer = await _send(prepared, target, patience, fallback)
        except (ProviderError, PrepareError) as error:
            logger.info("version %s: fallback %s failed too: %s", arm.version, target.provider.name, error)
            continue
        outcome.error_type = outcome.error_type or failure.error_type
        outcome.fallback, outcome.price = True, target.price
        prepared.provider_request, prepared.answered_by = fallback, target
        return answer
    raise failure


async def _divert(prepared: Prepared, counters: Counters, unreachable: ProviderError | None) -> Answer:
    """Stable's answer to a request of the canary; counted for neither arm, unless stable is unreachable too."""
    stable = prepared.rollout.stable
    require_no_state(prepared.request)
    try:
        instead = provider_request(stable, prepared.request, stable.own)
    except PrepareError as error:
        raise unreachable or ProviderError(
            "connection", 502, f"provider {prepared.arm.provider.name} cannot be reached", unreachable=True
        ) from error
    assigned = prepared.arm, prepared.provider_request, prepared.series
    prepared.arm, prepared.provider_request, prepared.series = stable, instead, None
    try:
        answer = await _ask_arm(prepared)
    except ProviderError as error:
        if error.unreachable:
            prepared.arm, prepared.provider_request, prepared.series = assigned
            return await _fall_back(prepared, unreachable or error)
        _count_diverted(prepared, counters)
        raise
    _count_diverted(prepared, counters)
    return answer


def _count_diverted(prepared: Prepared, counters: Counters) -> None:
    configuration = prepared.rollout.configuration
    counters.diverted[configuration.spec.rollout_uid, configuration.name] += 1


async def _send(
    prepared: Prepared,
    target: Target,
    patience_seconds: float,
    fallback: ProviderRequest | None = None,
    *,
    wait_unreachable: bool = True,
    circuit: Circuit | None = None,
) -> Answer:
    """The provider's answer. Its stream has no usage where the provider refuses to be asked for it. `fallback`: the
    request, if it is not the arm's own."""
    asked, headers = fallback or prepared.provider_request, prepared.forwarded_headers(fallback)
    provider, body = target.provider, asked.body

    async def send(body: Body) -> Answer:
        try:
            payload = orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise CallerError(400, "invalid_json", "the request is nested too deeply") from error
        return await provider.call(
            payload,
            target.config,
            headers,
            circuit or target.circuit,
            path=asked.route.path,
            since=prepared.request.started,
            wait_unreachable=wait_unreachable,
            patience_seconds=patience_seconds,
        )

    if "stream_options" not in body or wants_usage(asked.caller_body):
        return await send(body)
    if provider.supports_stream_options:
        try:
            return await send(body)
        except ProviderError as error:
            if not error.about_stream_options:
                raise
        provider.retries += 1
        answer = await send(without_added_usage(body, asked.caller_body))
        logger.warning("provider %s rejects stream_options: the cost of its streams is unknown", provider.name)
        provider.supports_stream_options = False
        return answer
    return await send(without_added_usage(body, asked.caller_body))
