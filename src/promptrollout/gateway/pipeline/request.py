"""One request in the pipeline: as the caller sent it, as its provider gets it, and what is known of it so far."""

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
from promptrollout.gateway.metrics.in_flight import InFlightMark
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.series import Series
from promptrollout.gateway.rollouts.configuration import Arm, Target
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.llm.backends import BackendRoute
from promptrollout.llm.prompts.prompt import Body
from promptrollout.llm.protocols.base import Protocol

_random: Final = random.Random()
_FORWARDED: Final = ("tracestate", "x-client-request-id")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(slots=True)  # not frozen, like everything made per request: a frozen one costs a microsecond more
class Request:
    """A request as the caller sent it."""

    protocol: Protocol
    headers: Headers
    body: Body
    started: float
    """On `time.perf_counter`."""
    traceparent: str
    """The caller's, or one made here. https://www.w3.org/TR/trace-context/"""
    trace_id: str
    kept_by: bytes | None = None
    """Tag of the provider that stores the conversation which this request continues; None where that is not known."""


def parse(protocol: Protocol, headers: Headers, payload: bytes, started: float) -> Request:
    """The request with its body as an object. Raises CallerError."""
    body = json_body.load(payload)
    traceparent = _text(headers.get("traceparent", b""))
    if traceparent and _TRACEPARENT.fullmatch(traceparent):
        return Request(protocol, headers, body, started, traceparent, traceparent[3:35])
    trace_id = f"{_random.getrandbits(128) or 1:032x}"
    # a malformed one is forwarded as it came
    traceparent = traceparent or f"00-{trace_id}-{_random.getrandbits(64) or 1:016x}-00"
    return Request(protocol, headers, body, started, traceparent, trace_id)


def _text(header: bytes) -> str:
    """A header that an HTTP client writes as the same bytes; bytes that are not UTF-8 are left out."""
    return header.decode("utf-8", "ignore")


@dataclass(slots=True)
class ProviderRequest:
    """A request as a provider gets it."""

    route: BackendRoute
    body: Body
    """With the version's prompt."""
    caller_body: Body
    """The caller's body, translated to the provider's protocol, without the prompt."""


@dataclass(slots=True)
class Prepared:
    """A request that is ready to be sent."""

    request: Request
    rollout: LiveRollout
    arm: Arm
    """The arm that answers."""
    provider_request: ProviderRequest
    series: Series | None
    """The counters of the arm that the request was assigned to. None: not counted, because stable answers in the place
    of a canary whose provider cannot be reached, or because the protocol is not sampled."""
    outcome: Outcome
    began_seconds: int | None = None
    """Since the epoch: when the pinned conversation began. None: it begins with this request."""
    wall_clock: Callable[[], float] = time.time
    answered_by: Target | None = None
    """The fallback that answered. None: the arm's own provider did, or no provider did."""
    accounted: bool = False

    @property
    def target(self) -> Target:
        """The provider and model that answered, or would have answered."""
        return self.answered_by or self.arm.own

    @property
    def in_flight_mark(self) -> InFlightMark:
        """Entered while this process works on the answer of the arm without a pause."""
        return self.rollout.in_flight_mark(self.arm)

    def response_headers(self, provider_headers: dict[str, str], content_type: str) -> dict[str, str]:
        """All headers of the answer: the provider's, who answered, and the content type."""
        arm, target = self.arm, self.target
        return {
            **provider_headers,
            HEADER_ROLLOUT: self.rollout.configuration.name,
            HEADER_VERSION: arm.version,
            HEADER_VARIANT: arm.variant,
            HEADER_PROVIDER: target.provider.name,
            HEADER_MODEL: target.model,
            HEADER_TRACE: self.request.trace_id,
            "content-type": content_type,
        }

    def forwarded_headers(self, fallback: ProviderRequest | None = None) -> dict[str, str]:
        """The caller's headers that the provider gets: those of traces, and those that are part of the provider's own
        protocol. All others stay between caller and gateway. `fallback`: the request, if a fallback gets it."""
        headers, route = self.request.headers, (fallback or self.provider_request).route
        forwarded = {"traceparent": self.request.traceparent}
        for name in _FORWARDED if route.translation is not None else _FORWARDED + route.protocol.forwarded:
            if name in headers:
                forwarded[name] = _text(headers[name])
        return forwarded

    def answer_id(self) -> AnswerId | None:
        """The id that callers get instead of the provider's: they send it with feedback, hours later and to any pod."""
        ids = self.rollout.response_ids
        if ids is None:
            return None
        version: str = self.arm.version
        variant: Variant | None = None
        if self.series is not None:
            version, variant = self.series.version, self.series.variant
        provider = provider_tag(self.target.provider.base_url)
        return AnswerId(ids, version, variant, self.outcome.shard, provider, self.began_seconds, self.wall_clock)
