"""`POST /v1/feedback` and `POST /v1/scores`: feedback and scores for an answer, by its response id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from promptrollout.api.slo import LabelValue
from promptrollout.gateway.assignment.assign import Headers
from promptrollout.gateway.assignment.response_id import MAX_CHARACTERS, ResponseId
from promptrollout.gateway.http.exchange import JSON, Reply
from promptrollout.gateway.http.json_body import read
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.metrics.series import Series
from promptrollout.gateway.metrics.votes import Rating, age_of
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.errors import CallerError

FEEDBACK_PATH: Final = "/v1/feedback"
SCORES_PATH: Final = "/v1/scores"
MAX_OTHER_SCORES: Final = 16
"""Per version, scores that no objective uses: each has five label sets, and any caller may send a new name."""
MAX_REMEMBERED: Final = 100_000
"""So many votes are recognized when they come again; about 10 MB."""
MAX_SCORE: Final = 1e9

INVALID_VOTE: Final = "invalid_vote"
NotCounted = Literal["already_counted", "too_old", "version_retired", "not_compared", "key_retired"]

_Id = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


def _required(name: str, kind: str) -> dict[str, Any]:
    """In JSON Schema: the field is present, and not null."""
    return {"required": [name], "properties": {name: {"type": kind}}}


class _Vote(BaseModel):
    """Unknown fields (a comment, say) are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class Feedback(_Vote):
    """A rating, or whether the answer was edited before it was used: at least one of the two."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [_required("rating", "string"), _required("edited", "boolean")]}
    )

    response_id: _Id
    """`id` of the answer, unchanged; or the `usage_token` of a rendered prompt."""
    rating: Rating | None = None
    edited: Annotated[bool, Field(strict=True)] | None = None
    """Without a rating: an answer that was edited counts as negative, one used unchanged as positive."""

    @property
    def rating_or_edited(self) -> Rating | None:
        if self.rating is None and self.edited is not None:
            return "negative" if self.edited else "positive"
        return self.rating


class Score(_Vote):
    """A number for an answer, or for a conversation: send either of the two ids, not both."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [_required("response_id", "string"), _required("conversation_id", "string")]}
    )

    name: LabelValue
    """Name of the score. Besides those of the objectives a version has a limited number: `too_many_scores`."""
    value: Annotated[float, Field(strict=True, ge=0, le=MAX_SCORE, allow_inf_nan=False)]
    """Not below 0: sums of scores are counters, which never fall."""
    response_id: _Id | None = None
    """`id` of the answer, unchanged."""
    conversation_id: _Id | None = None
    """The response id of any of the conversation's answers: it says which version answered, and when."""


class VoteCounting:
    """Counts a vote for the version and arm that its response id names, in whichever pod it arrives."""

    def __init__(self, registry: Registry, counters: Counters, wall_clock: Callable[[], float]) -> None:
        self._registry = registry
        self._counters = counters
        self._wall_clock = wall_clock
        self._remembered: dict[int, None] = {}
        """Hashes of counted votes, oldest first."""

    async def feedback(self, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one feedback request. Raises CallerError."""
        vote = read(Feedback, payload, INVALID_VOTE)
        rating_or_edited = vote.rating_or_edited
        if rating_or_edited is None:
            raise CallerError(
                400, INVALID_VOTE, "send rating (positive or negative) or edited (true or false)", "rating"
            )
        rollout, answer = self._of(vote.response_id, "response_id")

        def count(series: Series, age: int) -> None:
            series.rate(rating_or_edited, age, answer.shard)

        await _answer(reply, "feedback", self._count(rollout, answer, vote.response_id, "feedback", count))

    async def score(self, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one score request. Raises CallerError."""
        vote = read(Score, payload, INVALID_VOTE)
        if (vote.response_id is None) == (vote.conversation_id is None):
            raise CallerError(400, INVALID_VOTE, "send either response_id or conversation_id, not both", "response_id")
        field = "response_id" if vote.conversation_id is None else "conversation_id"
        text = vote.response_id or vote.conversation_id or ""
        rollout, answer = self._of(text, field)

        def count(series: Series, age: int) -> None:
            _require_room(series, vote.name)
            series.score(vote.name, vote.value, age, answer.shard)

        await _answer(reply, "score", self._count(rollout, answer, text, f"{field}:{vote.name}", count))

    def _of(self, text: str, field: str) -> tuple[LiveRollout, ResponseId]:
        """The rollout of an answer, and the answer's id. Raises CallerError."""
        try:
            candidates = self._registry.find_by_response_id(text)
        except ValueError as error:
            message = (
                f"{field}: use the `id` of an answer from this gateway unchanged, for a conversation that of any answer"
            )
            raise CallerError(400, "invalid_response_id", message, field) from error
        if not candidates:
            message = f"{field}: no rollout of this gateway gave this answer"
            raise CallerError(404, "response_not_found", message, field)
        for rollout in candidates:
            assert rollout.response_ids is not None
            if answer := rollout.response_ids.unwrap(text, self._wall_clock()):
                return rollout, answer
        message = f"{field}: it was changed, was signed with a key that is no longer used, or has a future time"
        raise CallerError(400, "invalid_response_id", message, field)

    def _count(
        self, rollout: LiveRollout, answer: ResponseId, text: str, kind: str, count: Callable[[Series, int], None]
    ) -> NotCounted | None:
        """Count a vote once; returns the reason if it is not counted."""
        age = age_of(max(0.0, self._wall_clock() - answer.at_seconds))
        series = None if answer.variant is None else rollout.series_of_vote(answer.version, answer.variant)
        vote = hash((text, kind))
        reason: NotCounted | None = None
        if answer.readable:
            reason = "key_retired"
        elif answer.variant is None:
            reason = "not_compared"
        elif age is None:
            reason = "too_old"
        elif series is None:
            reason = "version_retired"
        elif vote in self._remembered:
            reason = "already_counted"
        else:
            count(series, age)
            self._remembered[vote] = None
            if len(self._remembered) > MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        if reason is not None:
            self._counters.votes_not_counted[reason] += 1
        return reason


def _require_room(series: Series, name: str) -> None:
    """Raises CallerError if the version has too many names of scores."""
    known = series.votes.scores
    if name not in known and len(known.keys() - series.expected_scores) >= MAX_OTHER_SCORES:
        others = ", ".join(sorted(known))[:500]
        message = (
            f"name: a version has at most {MAX_OTHER_SCORES} scores besides those of its objectives. "
            f"Add an objective with `score: {name}` to the PromptSLO, or use one of: {others}"
        )
        raise CallerError(400, "too_many_scores", message, "name")


async def _answer(reply: Reply, kind: str, reason: NotCounted | None) -> None:
    body: dict[str, object] = {"object": kind, "counted": reason is None}
    if reason is not None:
        body["reason"] = reason
    await reply.whole(200, {"content-type": JSON}, orjson.dumps(body))
