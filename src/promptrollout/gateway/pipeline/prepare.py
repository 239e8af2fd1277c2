"""Prepare a request: the assigned version's prompt and the caller's body become what the provider gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from promptrollout.gateway.assignment.assign import Assignment
from promptrollout.gateway.assignment.response_id import provider_tag
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.pipeline.conversation_pin import Pin
from promptrollout.gateway.pipeline.request import Prepared, ProviderRequest, Request
from promptrollout.gateway.rollouts.configuration import Arm, Target
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.llm.backends import route_to
from promptrollout.llm.errors import CallerError, PrepareError, Untranslatable
from promptrollout.llm.prompts.bounds import RenderError
from promptrollout.llm.prompts.prompt import VARIABLES, SystemMessageRefused
from promptrollout.llm.prompts.templates import MissingVariable
from promptrollout.llm.protocols.signed_reasoning import without_signed_reasoning

logger = logging.getLogger(__name__)


def provider_request(arm: Arm, request: Request, fallback: Target | None = None) -> ProviderRequest:
    """The request for this arm's provider, or for one of its fallbacks. Raises CallerError or PrepareError."""
    target = fallback or arm.own
    route = route_to(target.provider, request.protocol)
    body = request.body if fallback is None else without_signed_reasoning(request.body)
    if route.translation is not None:
        if arm.prompt.spec.output_schema is not None:
            body = request.protocol.without_format(body)
        body = route.translation.request(body)
    prompted = route.protocol.with_prompt(arm.prompt, body)
    return ProviderRequest(route, prompted if fallback is None else {**prompted, "model": target.model}, body)


def prepare(
    rollout: LiveRollout,
    request: Request,
    assignment: Assignment,
    *,
    pin: Pin | None = None,
    build: Callable[[Arm, Request], ProviderRequest] = provider_request,
    counts: bool = True,
    wall_clock: Callable[[], float] = time.time,
) -> Prepared:
    """The request for the assigned arm's provider. Raises CallerError.

    A request cannot be prepared if the template fails, or if the prompt allows no system messages. If both arms fail,
    the caller is at fault; if one does, its version is, and stable answers in a canary's place. `counts`: whether the
    request is evidence.
    """
    canary = rollout.canary
    arm = canary if assignment.on_canary and canary is not None else rollout.stable
    outcome = Outcome(shard=assignment.shard, price=arm.price)
    prepared = _try_build(rollout, arm, request, build)
    series = rollout.series(arm, assignment.variant)
    if isinstance(prepared, Exception):
        other = rollout.stable if arm is canary else canary
        instead = None if other is None else _try_build(rollout, other, request, build)
        of_the_caller = isinstance(prepared, MissingVariable | SystemMessageRefused | Untranslatable)
        if isinstance(instead, Exception) or (other is None and of_the_caller):
            raise _caller_error(prepared)
        outcome.error_type = prepared.error_type
        if other is not None and request.kept_by not in (None, provider_tag(other.provider.base_url)):
            instead = None  # its provider did not store the conversation
        if instead is None or arm is rollout.stable:
            if counts:
                series.count(outcome)
            raise _caller_error(prepared)
        arm, prepared = rollout.stable, instead
        outcome.price = arm.price
    if counts and request.protocol.compared:
        rollout.record_assignment(assignment)
    began_seconds = pin.began_seconds(arm) if pin is not None else None
    counted = series if counts else None
    return Prepared(request, rollout, arm, prepared, counted, outcome, began_seconds, wall_clock)


def _try_build(
    rollout: LiveRollout, arm: Arm, request: Request, build: Callable[[Arm, Request], ProviderRequest]
) -> ProviderRequest | PrepareError:
    """The arm's request, or why there is none. Raises CallerError."""
    try:
        with rollout.in_flight_mark(arm):
            return build(arm, request)
    except PrepareError as error:
        return error
    except CallerError:
        raise
    except Exception as error:
        logger.exception("version %s: preparing a request failed", arm.version)
        return RenderError(f"{type(error).__name__}: {error}")


def _caller_error(error: PrepareError) -> CallerError:
    """The caller's answer for a request that cannot be prepared."""
    if isinstance(error, SystemMessageRefused):
        message = "this prompt does not allow system or developer messages in requests: leave them out"
        return CallerError(400, "system_message_refused", message, "messages")
    if isinstance(error, MissingVariable):
        message = f"the prompt needs the variable {error.name!r}: set it in {VARIABLES}"
        return CallerError(400, "prompt_variable_missing", message, f"{VARIABLES}.{error.name}")
    if isinstance(error, Untranslatable):
        return CallerError(400, "untranslatable", f"{error.param}: {error}", error.param)
    return CallerError(400, "prompt_render_failed", f"the prompt cannot be rendered: {error}", VARIABLES)
