"""One request on its way: what the caller sent, what the provider is asked, what is known of it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from promptrollout.api.names import (
    HEADER_MODEL,
    HEADER_PROVIDER,
    HEADER_ROLLOUT,
    HEADER_TRACE,
    HEADER_VARIANT,
    HEADER_VERSION,
)
from promptrollout.gateway.assignment.answer_id import AnswerId
from promptrollout.gateway.assignment.assign import Headers, Variant
from promptrollout.gateway.assignment.response_id import provider_tag
from promptrollout.gateway.http import json_body
from promptrollout.gateway.http.exchange import Reply
from promptrollout.gateway.metrics.in_flight import Busy
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.series import Series
from promptrollout.gateway.rollouts.configuration import Arm, Target
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.llm.backends import Way
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.base import Protocol

_random: Final = random.Random()
_FORWARDED: Final = ("tracestate", "x-client-request-id")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(slots=True)  # not frozen, as nothing that is made per request: that costs a microsecond each
class Request:
    """As the caller sent it."""

    protocol: Protocol
    headers: Headers
    body: Body
    started: float
    """On `time.perf_counter`."""
    traceparent: str
    """The caller's, or one made here. https://www.w3.org/TR/trace-context/"""
    trace_id: str
    kept_by: bytes | None = None
    """The tag of the provider that keeps the conversation which this goes on, where that is known."""


def parse(protocol: Protocol, headers: Headers, payload: bytes, started: float) -> Request:
    """The request, its body an object. Raises CallerError."""
    body = json_body.load(payload)
    given = _text(headers.get("traceparent", b""))
    if given and _TRACEPARENT.fullmatch(given):
        return Request(protocol, headers, body, started, given, given[3:35])
    trace_id = f"{_random.getrandbits(128) or 1:032x}"
    traceparent = given or f"00-{trace_id}-{_random.getrandbits(64) or 1:016x}-00"
    return Request(protocol, headers, body, started, traceparent, trace_id)


def _text(header: bytes) -> str:
    """That a client writes as the same bytes; without those that are no UTF-8, which it could not write."""
    return header.decode("utf-8", "ignore")


@dataclass(slots=True)
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
    answered_by: Target | None = None
    """None: the arm's own provider, or nobody."""
    accounted: bool = False
    began_seconds: int | None = None
    """Since the epoch: when the conversation began that the request is pinned with."""
    wall_clock: Callable[[], float] = time.time

    @property
    def target(self) -> Target:
        """That answers, or would have."""
        return self.answered_by or self.arm.own

    @property
    def busy(self) -> Busy:
        """With the answer of the arm that answers."""
        return self.serving.busy(self.arm)

    def about(self) -> dict[str, str]:
        """Headers that say what answered."""
        arm, target = self.arm, self.target
        return {
            HEADER_ROLLOUT: self.serving.configuration.name,
            HEADER_VERSION: arm.version,
            HEADER_VARIANT: arm.variant,
            HEADER_PROVIDER: target.provider.name,
            HEADER_MODEL: target.model,
            HEADER_TRACE: self.request.trace_id,
        }

    def forwarded(self, filled: Filled | None = None) -> dict[str, str]:
        """The caller's headers that go on. Traces should not end here; all else is between caller and gateway, but for
        what the provider's own protocol says in headers. `filled`: for another provider than the arm's own."""
        headers, way = self.request.headers, (filled or self.filled).way
        found = {"traceparent": self.request.traceparent}
        for name in _FORWARDED if way.translation is not None else _FORWARDED + way.protocol.forwarded:
            if name in headers:
                found[name] = _text(headers[name])
        return found

    def answer_id(self) -> AnswerId | None:
        """What callers get in the place of the provider's id: by it they vote, hours later and to any pod."""
        ids = self.serving.response_ids
        if ids is None:
            return None
        version: str = self.arm.version
        variant: Variant | None = None
        if self.counted is not None:
            version, variant = self.counted.version, self.counted.variant
        provider = provider_tag(self.target.provider.base_url)
        return AnswerId(ids, version, variant, self.outcome.shard, provider, self.began_seconds, self.wall_clock)

    def account(self, reply: Reply) -> None:
        """Count it: it is over."""
        self.accounted = True
        self.outcome.over(max(0.0, time.perf_counter() - self.request.started - reply.blocked_seconds))
        if self.counted is not None:
            self.counted.count(self.outcome)
