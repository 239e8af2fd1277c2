"""Second step of a request's way: the assigned version's prompt and the caller's request become the provider's."""

from __future__ import annotations

import logging
from collections.abc import Callable

from promptrollout.gateway.assignment.assign import Assignment
from promptrollout.gateway.assignment.response_id import provider_tag
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.pipeline.request import Filled, Prepared, Request
from promptrollout.gateway.rollouts.configuration import Arm, Target
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.llm.backends import way
from promptrollout.llm.errors import CallerError, Unfilled, Untranslatable
from promptrollout.llm.prompts.bounds import RenderError
from promptrollout.llm.prompts.prompt import VARIABLES, SystemMessageRefused
from promptrollout.llm.prompts.templates import MissingVariable
from promptrollout.llm.protocols.signed_reasoning import without_signed_reasoning

logger = logging.getLogger(__name__)


def fill(arm: Arm, request: Request, fallback: Target | None = None) -> Filled:
    """What this arm's provider is asked, or one of its fallbacks. Raises CallerError or Unfilled."""
    target = fallback or arm.own
    found = way(request.protocol, target.provider)
    asked = request.body if fallback is None else without_signed_reasoning(request.body)
    if found.translation is not None:
        if arm.prompt.spec.output_schema is not None:
            asked = request.protocol.without_format(asked)
        asked = found.translation.request(asked)
    body = found.protocol.fill(arm.prompt, asked)
    return Filled(found, body if fallback is None else {**body, "model": target.model}, asked)


Filling = Callable[[Arm, Request], Filled]


def prepare(
    serving: Serving, request: Request, assignment: Assignment, *, filling: Filling = fill, counts: bool = True
) -> Prepared:
    """The assigned arm's request. Who is at fault for a prompt that cannot be filled, or takes no system messages: the
    caller, if it is so in both arms; the version, if only in one. `counts`: whether the request is evidence at all."""
    canary = serving.canary
    arm = canary if assignment.on_canary and canary is not None else serving.stable
    outcome = Outcome(shard=assignment.shard, price=arm.price)
    filled = _filled(serving, arm, request, filling)
    counted_as = serving.series(arm, assignment.variant)
    if isinstance(filled, Exception):
        other = serving.stable if arm is canary else canary
        instead = None if other is None else _filled(serving, other, request, filling)
        of_the_caller = isinstance(filled, MissingVariable | SystemMessageRefused | Untranslatable)
        if isinstance(instead, Exception) or (other is None and of_the_caller):
            raise _unfilled(filled)
        outcome.error_type = filled.error_type
        if other is not None and request.kept_by not in (None, provider_tag(other.provider.base_url)):
            instead = None  # its provider does not know the conversation
        if instead is None or arm is serving.stable:
            if counts:
                counted_as.count(outcome)
            raise _unfilled(filled)
        arm, filled = serving.stable, instead
        outcome.price = arm.price
    if counts and request.protocol.compared:
        serving.assigned(assignment)
    return Prepared(request, serving, arm, filled, counted_as if counts else None, outcome)


def _filled(serving: Serving, arm: Arm, request: Request, filling: Filling) -> Filled | Unfilled:
    """The arm's request, or why there is none."""
    try:
        with serving.busy(arm):
            return filling(arm, request)
    except Unfilled as error:
        return error
    except CallerError:
        raise
    except Exception as error:
        logger.exception("version %s: its request cannot be put together", arm.version)
        return RenderError(f"{type(error).__name__}: {error}")


def _unfilled(error: Unfilled) -> CallerError:
    """What the caller is told about a prompt that cannot be filled."""
    if isinstance(error, SystemMessageRefused):
        message = "this prompt takes no system or developer messages of callers: leave them out"
        return CallerError(400, "system_message_refused", message, "messages")
    if isinstance(error, MissingVariable):
        message = f"the prompt needs the variable {error.name!r}: set it in {VARIABLES}"
        return CallerError(400, "prompt_variable_missing", message, f"{VARIABLES}.{error.name}")
    if isinstance(error, Untranslatable):
        return CallerError(400, "untranslatable", f"{error.param}: {error}", error.param)
    return CallerError(400, "prompt_render_failed", f"the prompt cannot be filled: {error}", VARIABLES)
