"""A conversation stays with its version, by the id of its last answer: for a while, and never against a rollback."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from promptrollout.api.names import HEADER_PIN
from promptrollout.gateway.assignment.assign import Assignment
from promptrollout.gateway.assignment.response_id import MAX_REST, ResponseId, ResponseIds, parse, provider_tag
from promptrollout.gateway.pipeline.request import Request
from promptrollout.gateway.rollouts.configuration import Arm
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.llm.errors import CallerError
from promptrollout.llm.protocols.responses import RESPONSES
from promptrollout.llm.protocols.signed_reasoning import without_signed_reasoning

PREVIOUS: Final = "previous_response_id"
CONVERSATION: Final = "conversation"
"""Fields of the Responses API that refer to what the provider stored."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The last answer of a conversation, as the request names it."""

    response_id: ResponseId
    valid: bool
    """The conversation began less than `pinMaxAgeSeconds` ago."""
    needs_state: bool
    """The request continues what the provider stored of the conversation."""

    def began_seconds(self, arm: Arm) -> int | None:
        """When the conversation began that continues with this arm; None: with this arm it begins now."""
        pinned = self.valid and arm.version == self.response_id.version
        return self.response_id.began_seconds if pinned else None


def find_pin(rollout: LiveRollout, request: Request, now: float) -> Pin | None:
    """The pin of a request; None for one of another rollout or key. Restores the provider's own id in the request,
    since the provider knows no other. Raises CallerError for a header that cannot be a response id."""
    ids = rollout.response_ids
    if ids is None:
        return None
    body, header = request.body, request.headers.get(HEADER_PIN)
    previous = body.get(PREVIOUS)
    stored = ids.unwrap(previous, now) if isinstance(previous, str) else None
    if stored is not None:
        body[PREVIOUS] = stored.upstream
    # if there are two, the one that the provider continues from wins
    response_id = stored or (_from_header(ids, header.decode("latin-1"), now) if header else None)
    if response_id is None:
        return None
    max_age = rollout.configuration.spec.stickiness.pin_max_age_seconds
    return Pin(response_id, now - response_id.began_seconds < max_age, stored is not None)


def _from_header(ids: ResponseIds, header: str, now: float) -> ResponseId | None:
    """The header's response id. None: of another rollout, or an id so long that this gateway did not replace it."""
    if parse(header) is None and len(header) <= MAX_REST:
        message = f"header {HEADER_PIN}: use the `id` of an answer from this gateway unchanged, or leave the header out"
        raise CallerError(400, "invalid_pin", message, HEADER_PIN)
    return ids.unwrap(header, now)


def assign_conversation(rollout: LiveRollout, request: Request, pin: Pin | None, assignment: Assignment) -> Assignment:
    """The assignment, changed where the conversation has to stay with a version or with a provider."""
    if assignment.forced:
        return assignment
    if pin is None:
        return _stay_with_provider(rollout, request, assignment)
    return _stay_with_version(rollout, pin, assignment) if pin.valid else assignment


def _stay_with_provider(rollout: LiveRollout, request: Request, assignment: Assignment) -> Assignment:
    """One provider stores a `conversation`, and its id does not say which. Where the arms have different providers it
    stays on stable, outside the comparison, since the canary's provider would not know it."""
    canary = rollout.canary
    if canary is None or not has_state(request):
        return assignment
    other_provider = canary.provider.base_url != rollout.stable.provider.base_url
    stays = other_provider and PREVIOUS not in request.body
    return replace(assignment, variant="stable-outside") if stays else assignment


def _stay_with_version(rollout: LiveRollout, pin: Pin, assignment: Assignment) -> Assignment:
    """The pinned version's arm; outside the comparison where the assignment was another arm.

    With a canary, neither arm counts conversations that began before the present weight: the canary would lack those
    that its weight moved away, and stable would have them.
    """
    stable, canary, began_seconds = rollout.stable, rollout.canary, pin.response_id.began_seconds
    on_stable = pin.response_id.version == stable.version
    on_canary = canary is not None and pin.response_id.version == canary.version
    if on_stable and on_canary:
        return assignment
    weight = rollout.routing.weight
    if on_stable:
        earlier = weight > 0 and began_seconds < rollout.weight_since
        return replace(assignment, variant="stable-outside") if earlier or assignment.on_canary else assignment
    # not where the audience excludes it, and not after a rollback or under an override
    outside_audience = assignment.variant == "stable-outside" and not assignment.keyless
    if not on_canary or weight == 0 or outside_audience:
        return assignment
    earlier = began_seconds < rollout.weight_since
    return replace(assignment, variant="canary-outside") if earlier or not assignment.on_canary else assignment


def continue_conversation(rollout: LiveRollout, request: Request, pin: Pin | None, assignment: Assignment) -> None:
    """Leave out of the request what the arm's model cannot read. Raises CallerError if another provider than the arm's
    stores the conversation."""
    if pin is None:
        return
    arm = rollout.canary if assignment.on_canary and rollout.canary is not None else rollout.stable
    if pin.needs_state:
        request.kept_by = pin.response_id.provider
        if pin.response_id.provider != provider_tag(arm.provider.base_url):
            raise _conversation_elsewhere()
    if not _same_model(rollout, pin.response_id, arm):
        request.body = without_signed_reasoning(request.body)


def _same_model(rollout: LiveRollout, response_id: ResponseId, arm: Arm) -> bool:
    """Whether the arm's model gave the last answer, as far as that is known."""
    if response_id.provider != provider_tag(arm.provider.base_url):
        return False
    arms = [each for each in (rollout.stable, rollout.canary) if each and each.version == response_id.version]
    return any(each.model == arm.model for each in arms)


def has_state(request: Request) -> bool:
    """Whether the request continues what one provider stored."""
    body = request.body
    return body.get(PREVIOUS) is not None or (body.get(CONVERSATION) is not None and request.protocol is RESPONSES)


def require_no_state(request: Request) -> None:
    """Raises CallerError for a request that continues what one provider stored: another provider cannot answer it."""
    if has_state(request):
        raise _conversation_elsewhere()


def _conversation_elsewhere() -> CallerError:
    message = (
        f"{PREVIOUS}: the provider that stores this conversation cannot answer now. Send the conversation's messages "
        f"without {PREVIOUS}"
    )
    return CallerError(409, "conversation_elsewhere", message, PREVIOUS)
