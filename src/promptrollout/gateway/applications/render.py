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
from promptrollout.gateway.pipeline.request import Prepared, ProviderRequest, Request, parse
from promptrollout.gateway.rollouts.configuration import Arm
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.backends import BackendRoute
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import VARIABLES, Body
from promptrollout.llm.protocols.chat import CHAT

PREFIX: Final = "/v1/prompts/"
SUFFIX: Final = "/render"
# only these fields of the caller's body get into a rendered prompt; the others say who the user is
_RENDERED: Final[tuple[str, ...]] = ("messages", VARIABLES)
_CHAT: Final = BackendRoute(CHAT, "", None)


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt rendered for one user."""

    rollout: LiveRollout
    arm: Arm
    assignment: Assignment
    value: Body
    """Model, messages, parameters and so on, as OpenAI's chat API names them, whatever the provider."""
    token: str | None
    """Its signed id, for the usage report and feedback. None: it is not counted, or was counted already."""

    @property
    def cache_seconds(self) -> int | None:
        reporting = self.rollout.configuration.spec.reporting
        return None if reporting is None else reporting.cache_seconds


class PromptRenderer:
    """Renders prompts, and remembers those whose use has to be reported."""

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
        rendered = self.render(self.rollout(rollout), request, counts=True)
        configuration, arm = rendered.rollout.configuration, rendered.arm
        body = {
            "object": "prompt",
            "rollout": configuration.name,
            "version": arm.version,
            "digest": arm.digest,
            "variant": arm.variant,
            **rendered.value,
            "usage_token": rendered.token,
            "cache_seconds": rendered.cache_seconds,
        }
        await reply.whole(200, _headers(rendered), orjson.dumps(body))

    def rollout(self, name: str) -> LiveRollout:
        """Raises CallerError."""
        if (rollout := self._registry.find(name)) is None:
            message = f"this gateway serves no rollout {name[:253]!r}; see GET /v1/models"
            raise self._registry.refusal(name) or CallerError(404, "rollout_not_found", message)
        return rollout

    def render(self, rollout: LiveRollout, request: Request, *, counts: bool) -> RenderedPrompt:
        """The prompt for this request's user. `counts`: it will be used, so it needs a report where the rollout has
        reporting. Raises CallerError."""
        reporting = rollout.configuration.spec.reporting
        counts = counts and reporting is not None
        assignment = assign(rollout.routing, request.headers, request.body, self._random_unit)
        prepared = prepare(rollout, request, assignment, build=_rendered, counts=counts)
        token = self._track(prepared, reporting.settle_seconds) if counts and reporting else None
        return RenderedPrompt(rollout, prepared.arm, assignment, _value(prepared), token)

    def _track(self, prepared: Prepared, settle_seconds: int) -> str | None:
        """Wait for the report of a render; its signed id."""
        series, outcome = prepared.series, prepared.outcome
        ids = prepared.rollout.response_ids
        if series is None or ids is None:
            return None
        if outcome.error_type is not None:
            # the assigned version's prompt cannot be rendered: that is its outcome, whatever happens to stable's
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


def _headers(rendered: RenderedPrompt) -> Mapping[str, str]:
    """Headers of the answer: which prompt it is."""
    arm = rendered.arm
    return {
        HEADER_ROLLOUT: rendered.rollout.configuration.name,
        HEADER_VERSION: arm.version,
        HEADER_VARIANT: arm.variant,
        "cache-control": "private, no-cache",
        "content-type": JSON,
    }


def _rendered(arm: Arm, request: Request) -> ProviderRequest:
    """Raises CallerError or PrepareError."""
    body = {name: request.body[name] for name in _RENDERED if name in request.body}
    return ProviderRequest(_CHAT, CHAT.with_prompt(arm.prompt, body), body)


def _value(prepared: Prepared) -> dict[str, Any]:
    parameters = dict(prepared.provider_request.body)
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
