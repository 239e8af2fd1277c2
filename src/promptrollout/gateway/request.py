"""One request on its way: what the caller sent, what the provider is asked, what is known of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson

from promptrollout.api.names import HEADER_ROLLOUT, HEADER_VARIANT, HEADER_VERSION
from promptrollout.gateway.account import Outcome
from promptrollout.gateway.answer_id import AnswerId
from promptrollout.gateway.configuration import Arm
from promptrollout.gateway.errors import CallerError, ClientGone
from promptrollout.gateway.http import Reply
from promptrollout.gateway.protocols.base import Protocol
from promptrollout.gateway.registry import Serving
from promptrollout.gateway.render import Body
from promptrollout.gateway.response_id import provider_tag
from promptrollout.gateway.route import Headers, Variant
from promptrollout.gateway.series import Series
from promptrollout.gateway.ways import Way


@dataclass(frozen=True, slots=True)
class Request:
    """As the caller sent it."""

    protocol: Protocol
    headers: Headers
    body: Body
    started: float
    """On `time.perf_counter`."""


def parse(protocol: Protocol, headers: Headers, payload: bytes, started: float) -> Request:
    """The request, its body an object. Raises CallerError."""
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise CallerError(400, "invalid_json", f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CallerError(400, "invalid_json", "the request must be a JSON object")
    return Request(protocol, headers, body, started)


@dataclass(frozen=True, slots=True)
class Filled:
    """What a provider is asked."""

    way: Way
    body: Body
    """With the version's prompt in it."""
    asked: Body
    """The caller's, in the provider's protocol, without the prompt."""


@dataclass(slots=True)
class Prepared:
    """A request that is ready to be sent."""

    request: Request
    serving: Serving
    arm: Arm
    """That answers."""
    filled: Filled
    counted: Series | None
    """Of the arm that it was assigned to. None: answered by stable in the place of an unreachable canary."""
    outcome: Outcome
    accounted: bool = False
    began_seconds: int | None = None
    """Since the epoch: when the conversation began that the request is pinned with."""
    wall_clock: Callable[[], float] = time.time

    def about(self) -> dict[str, str]:
        """Headers that say what answered."""
        name, arm = self.serving.configuration.name, self.arm
        return {HEADER_ROLLOUT: name, HEADER_VERSION: arm.version, HEADER_VARIANT: arm.variant}

    def answer_id(self) -> AnswerId | None:
        """What callers get in the place of the provider's id: by it they vote, hours later and to any pod."""
        ids = self.serving.response_ids
        if ids is None:
            return None
        version: str = self.arm.version
        variant: Variant | None = None
        if self.counted is not None:
            version, variant = self.counted.version, self.counted.variant
        provider = provider_tag(self.arm.provider.base_url)
        return AnswerId(ids, version, variant, self.outcome.shard, provider, self.began_seconds, self.wall_clock)

    def account(self, reply: Reply) -> None:
        """Count it: it is over."""
        self.accounted = True
        self.outcome.over(max(0.0, time.perf_counter() - self.request.started - reply.blocked_seconds))
        if self.counted is not None:
            self.counted.count(self.outcome)


class Accounted:
    """No request leaves without being counted: neither by a fault of ours nor by its caller's hanging up."""

    def __init__(self, prepared: Prepared, reply: Reply) -> None:
        self._prepared = prepared
        self._reply = reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        prepared = self._prepared
        if prepared.accounted:
            return
        if isinstance(error, Exception) and not isinstance(error, CallerError | ClientGone):
            # a fault of ours that only one version provokes must not look like a version that is not asked
            prepared.outcome.error_type = prepared.outcome.error_type or "internal"
            prepared.account(self._reply)
        elif self._reply.gone:
            prepared.outcome.abandoned = True
            prepared.account(self._reply)
