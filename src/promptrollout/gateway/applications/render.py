"""`POST /v1/prompts/{rollout}/render`: the prompt that a user gets, for applications that call the model themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from promptrollout.api.names import HEADER_ROLLOUT, HEADER_VARIANT, HEADER_VERSION
from promptrollout.gateway.assignment.assign import Assignment, Headers, assign
from promptrollout.gateway.assignment.render_id import RenderId
from promptrollout.gateway.assignment.response_id import ResponseId, provider_tag
from promptrollout.gateway.http.exchange import JSON, Reply
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.pipeline.prepare import prepare
from promptrollout.gateway.pipeline.request import Filled, Prepared, Request, parse
from promptrollout.gateway.rollouts.configuration import Arm
from promptrollout.gateway.rollouts.live_rollout import Serving
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.backends import Way
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import VARIABLES, Body
from promptrollout.llm.protocols.chat import CHAT

PREFIX: Final = "/v1/prompts/"
SUFFIX: Final = "/render"
# of the caller's body only these get into a rendered prompt; the rest says whose it is
_RENDERED: Final[tuple[str, ...]] = ("messages", VARIABLES)
_CHAT: Final = Way(CHAT, "", None)


@dataclass(frozen=True, slots=True)
class Given:
    """A user's prompt."""

    serving: Serving
    arm: Arm
    assignment: Assignment
    value: Body
    """Model, messages, parameters and so on, in OpenAI's words whatever the provider."""
    token: str | None
    """Its signed id, to report with, and to vote on. None: it counts for nothing, or is counted already."""

    @property
    def cache_seconds(self) -> int | None:
        reporting = self.serving.configuration.spec.reporting
        return None if reporting is None else reporting.cache_seconds


class Prompts:
    """Renders prompts, and notes those whose use has to be reported."""

    def __init__(
        self,
        registry: Registry,
        counters: Counters,
        pod_ip: str,
        admin_port: int,
        random_unit: Callable[[], bytes] = lambda: os.urandom(16),
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._pod_ip = pod_ip
        self._admin_port = admin_port
        self._random_unit = random_unit

    async def answer(self, rollout: str, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one request. Raises CallerError."""
        request = parse(CHAT, headers, payload, started=time.perf_counter())
        given = self.give(self.serving(rollout), request, counts=True)
        configuration, arm = given.serving.configuration, given.arm
        body = {
            "object": "prompt",
            "rollout": configuration.name,
            "version": arm.version,
            "digest": arm.digest,
            "variant": arm.variant,
            **given.value,
            "usage_token": given.token,
            "cache_seconds": given.cache_seconds,
        }
        await reply.whole(200, {**about(given), "content-type": JSON}, orjson.dumps(body))

    def serving(self, rollout: str) -> Serving:
        """Raises CallerError."""
        if (serving := self._registry.find(rollout)) is None:
            raise self._registry.refusal(rollout) or CallerError(
                404, "rollout_not_found", f"no rollout {rollout[:253]!r} here; see GET /v1/models"
            )
        return serving

    def give(self, serving: Serving, request: Request, *, counts: bool) -> Given:
        """The prompt of this request's user. `counts`: it is going to be used, and so waits for a report where the
        rollout wants one. Raises CallerError."""
        reporting = serving.configuration.spec.reporting
        counts = counts and reporting is not None
        assignment = assign(serving.routing, request.headers, request.body, self._random_unit)
        prepared = prepare(serving, request, assignment, filling=_filled, counts=counts)
        token = self._noted(prepared, reporting.settle_seconds) if counts and reporting else None
        return Given(serving, prepared.arm, assignment, _value(prepared), token)

    def _noted(self, prepared: Prepared, settle_seconds: int) -> str | None:
        """The signed id of a render that waits for its report."""
        series, outcome = prepared.counted, prepared.outcome
        ids = prepared.serving.response_ids
        if series is None or ids is None:
            return None
        if outcome.error_type is not None:
            # the assigned version's prompt cannot be filled: whatever stable makes of it, that is known already
            series.count(outcome)
            return None
        number = self._registry.renders.add(series, outcome, settle_seconds)
        if number is None:
            return None
        render = RenderId(self._counters.process, number, self._pod_ip, self._admin_port)
        provider, now = provider_tag(prepared.arm.provider.base_url), int(time.time())
        return ids.wrap(
            ResponseId(
                str(render),
                series.version,
                series.variant,
                outcome.shard,
                now,
                provider,
                began_seconds=now,
                rendered=True,
            )
        )


def about(given: Given) -> Mapping[str, str]:
    """Headers that say which prompt it is."""
    arm = given.arm
    return {
        HEADER_ROLLOUT: given.serving.configuration.name,
        HEADER_VERSION: arm.version,
        HEADER_VARIANT: arm.variant,
        "cache-control": "private, no-cache",
    }


def _filled(arm: Arm, request: Request) -> Filled:
    """Raises CallerError or Unfilled."""
    asked = {name: request.body[name] for name in _RENDERED if name in request.body}
    return Filled(_CHAT, CHAT.fill(arm.prompt, asked), asked)


def _value(prepared: Prepared) -> dict[str, Any]:
    parameters = dict(prepared.filled.body)
    value: dict[str, Any] = {
        "provider": prepared.arm.provider.name,
        "model": parameters.pop("model"),
        "messages": parameters.pop("messages"),
    }
    for name in ("tools", "response_format"):
        if name in parameters:
            value[name] = parameters.pop(name)
    value["parameters"] = parameters
    return value
