"""A conversation keeps its version: by the id of the answer before, for a while, and never against a rollback."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from promptrollout.api.names import HEADER_PIN
from promptrollout.gateway.assignment.assign import Assignment
from promptrollout.gateway.assignment.response_id import MAX_REST, ResponseId, ResponseIds, parse, provider_tag
from promptrollout.gateway.pipeline.request import Request
from promptrollout.gateway.rollouts.configuration import Arm
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.llm.errors import CallerError
from promptrollout.llm.protocols.responses import RESPONSES
from promptrollout.llm.protocols.signed_reasoning import without_signed_reasoning

PREVIOUS: Final = "previous_response_id"
CONVERSATION: Final = "conversation"
"""Of the Responses API."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The answer before, as the request names it."""

    given: ResponseId
    young: bool
    """The conversation began less than `pinMaxAgeSeconds` ago."""
    needs_state: bool
    """The request goes on from what the provider keeps of the conversation."""

    def began_of(self, arm: Arm) -> int | None:
        """When the conversation began that goes on with this arm; None where it begins anew."""
        return self.given.began_seconds if self.young and arm.version == self.given.version else None


def pin_of(serving: Serving, request: Request, now: float) -> Pin | None:
    """The pin that a request brings; one of another rollout or key is ignored. Has the provider's own id put
    back into the request, since the provider knows no other. Raises CallerError for a header that is no pin at all."""
    ids = serving.response_ids
    if ids is None:
        return None
    body, header = request.body, request.headers.get(HEADER_PIN)
    previous = body.get(PREVIOUS)
    before = ids.unwrap(previous, now) if isinstance(previous, str) else None
    if before is not None:
        body[PREVIOUS] = before.upstream
    # of two, the one that the provider goes on from
    given = before or (_of_header(ids, header.decode("latin-1"), now) if header else None)
    if given is None:
        return None
    max_age = serving.configuration.spec.stickiness.pin_max_age_seconds
    return Pin(given, now - given.began_seconds < max_age, before is not None)


def _of_header(ids: ResponseIds, header: str, now: float) -> ResponseId | None:
    """What the header says; None: nothing about this rollout, or an id so long that it was passed on as it was."""
    if parse(header) is None and len(header) <= MAX_REST:
        message = (
            f"header {HEADER_PIN}: take the `id` of an answer of this conversation, as this gateway gave it (a prefix "
            "such as `chatcmpl-`, then `P` and 39 characters, then the rest of the provider's id), or leave it out"
        )
        raise CallerError(400, "invalid_pin", message, HEADER_PIN)
    return ids.unwrap(header, now)


def keep(serving: Serving, request: Request, pin: Pin | None, assignment: Assignment) -> Assignment:
    """A `conversation` is kept by one provider, and nobody says by which: where the arms have different ones it stays
    on stable, outside the comparison, since the canary's would not know it."""
    canary = serving.canary
    if canary is None or pin is not None or assignment.forced or not has_state(request):
        return assignment
    elsewhere = canary.provider.base_url != serving.stable.provider.base_url
    return replace(assignment, variant="stable-outside") if elsewhere and PREVIOUS not in request.body else assignment


def hold(serving: Serving, pin: Pin | None, assignment: Assignment) -> Assignment:
    """The assignment, or the pinned version's arm in its place: outside the comparison where the two differ.

    While a canary takes part, neither arm counts conversations that began before the weight of now: those that it
    moved would be missing from the canary, and the others would be there.
    """
    if pin is None or not pin.young or assignment.forced:
        return assignment
    stable, canary = serving.stable, serving.canary
    held_by_stable = pin.given.version == stable.version
    held_by_canary = canary is not None and pin.given.version == canary.version
    if held_by_stable and held_by_canary:
        return assignment
    weight = serving.routing.weight
    if held_by_stable:
        before = weight > 0 and pin.given.began_seconds < serving.weight_since
        return replace(assignment, variant="stable-outside") if before or assignment.on_canary else assignment
    # not where the audience excludes it, and not after a rollback or under an override
    outside_audience = assignment.variant == "stable-outside" and not assignment.keyless
    if not held_by_canary or weight == 0 or outside_audience:
        return assignment
    before = pin.given.began_seconds < serving.weight_since
    return replace(assignment, variant="canary-outside") if before or not assignment.on_canary else assignment


def carry(serving: Serving, pin: Pin | None, assignment: Assignment, request: Request) -> None:
    """Have the request hold what the arm can take. Raises CallerError where another provider keeps the conversation
    than the one that is to be asked."""
    if pin is None:
        return
    arm = serving.canary if assignment.on_canary and serving.canary is not None else serving.stable
    if pin.needs_state:
        request.kept_by = pin.given.provider
        if pin.given.provider != provider_tag(arm.provider.base_url):
            raise _elsewhere()
    if not _same_model(serving, pin.given, arm):
        request.body = without_signed_reasoning(request.body)


def _same_model(serving: Serving, given: ResponseId, arm: Arm) -> bool:
    """Whether the arm's model gave the answer before, as far as that is known."""
    if given.provider != provider_tag(arm.provider.base_url):
        return False
    known = [each for each in (serving.stable, serving.canary) if each is not None and each.version == given.version]
    return any(each.model == arm.model for each in known)


def has_state(request: Request) -> bool:
    """Whether the request goes on from what one provider keeps."""
    body = request.body
    return body.get(PREVIOUS) is not None or (body.get(CONVERSATION) is not None and request.protocol is RESPONSES)


def require_no_state(request: Request) -> None:
    """Raises CallerError where it does, and another provider is to be asked."""
    if has_state(request):
        raise _elsewhere()


def _elsewhere() -> CallerError:
    message = (
        f"{PREVIOUS}: the provider that keeps this conversation does not answer for this rollout now; send the "
        f"conversation's messages again, without {PREVIOUS}"
    )
    return CallerError(409, "conversation_elsewhere", message, PREVIOUS)
