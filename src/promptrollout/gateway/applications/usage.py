"""`POST /v1/usage`: an application reports the outcome of a rendered prompt."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field

from promptrollout.gateway.assignment.assign import Headers
from promptrollout.gateway.assignment.render_id import RenderId
from promptrollout.gateway.assignment.response_id import MAX_CHARACTERS, ResponseId
from promptrollout.gateway.http.exchange import JSON, Reply
from promptrollout.gateway.http.json_body import read
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.errors import CallerError
from promptrollout.llm.protocols import messages

logger = logging.getLogger(__name__)

PATH: Final = "/v1/usage"
POD_PATH: Final = "/usage"
"""On the admin port: reports that other pods forward."""
MAX_BYTES: Final = 65_536
_FORWARD_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 0.5
_ORPHANS: Final = 10_000
"""So many reports on renders of pods that are gone are remembered, so that none is counted twice."""
_MAX_SECONDS: Final = 86_400.0

NotCounted = Literal["already_reported", "too_late", "version_retired"]

Seconds = Annotated[float, Field(strict=True, ge=0, le=_MAX_SECONDS, allow_inf_nan=False)]


class Report(BaseModel):
    """The outcome of a rendered prompt. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    token: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    """`usage_token` of the rendered prompt."""
    outcome: Literal["success", "error", "refusal", "truncated", "empty", "abandoned"] = "success"
    """`abandoned`: it was not sent to a model, or its answer was not awaited."""
    usage: dict[str, Any] | None = None
    """The provider's `usage`, unchanged: OpenAI's or Anthropic's."""
    latency_seconds: Seconds | None = None
    """To the last byte of the model's answer. Absent: the time since the prompt was rendered."""
    first_token_seconds: Seconds | None = None
    """To its first piece. Absent: not known."""
    contract_kept: Annotated[bool, Field(strict=True)] | None = None
    """Whether the answer kept the version's `outputSchema`; absent: not checked."""

    def into(self, outcome: Outcome, since_seconds: float) -> None:
        """Write the report into the outcome."""
        outcome.error_type = "reported" if self.outcome == "error" else None
        outcome.refused = self.outcome == "refusal"
        outcome.truncated = self.outcome == "truncated"
        outcome.empty = self.outcome == "empty"
        outcome.abandoned = self.outcome == "abandoned"
        outcome.usage = usage_of(self.usage)
        outcome.contract_kept = self.contract_kept
        outcome.first_token_seconds = self.first_token_seconds
        outcome.over(since_seconds if self.latency_seconds is None else self.latency_seconds)


class OtherPodSilent(CallerError):
    """The pod that rendered the prompt did not answer: it may have counted the report or not."""

    def __init__(self) -> None:
        super().__init__(
            503, "other_pod_silent", "the pod that rendered the prompt does not answer: send the report again"
        )
        self.headers["retry-after"] = "1"


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The content of a token, and its rollout."""

    rollout: LiveRollout
    response_id: ResponseId
    render: RenderId


class UsageReports:
    """Counts each render once: in the pod that rendered it, or if that is gone in the pod that gets the report."""

    def __init__(self, registry: Registry, counters: Counters) -> None:
        self._registry = registry
        self._counters = counters
        self._orphans: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._session: aiohttp.ClientSession | None = None

    async def answer(self, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer an application's report. Raises CallerError."""
        report = _parse(payload)
        rendered = self._rendered(report.token)
        ours = rendered.render.process == self._counters.process
        reason = self._here(rendered, report) if ours else await self._elsewhere(rendered, report, payload)
        await _answer(reason, reply)

    async def answer_pod(self, payload: bytes, reply: Reply) -> None:
        """Answer a report that another pod forwarded; it is not forwarded again. Raises CallerError."""
        report = _parse(payload)
        rendered = self._rendered(report.token)
        if rendered.render.process != self._counters.process:
            raise CallerError(409, "other_pod", "token: this pod did not render the prompt", "token")
        await _answer(self._here(rendered, report), reply)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _rendered(self, token: str) -> _Rendered:
        try:
            rollouts = self._registry.find_by_response_id(token)
        except ValueError:
            rollouts = []
        for rollout in rollouts:
            assert rollout.response_ids is not None
            response_id = rollout.response_ids.unwrap(token, time.time())
            if response_id is None or not response_id.rendered:
                continue
            render = RenderId.read(response_id.upstream)
            if render is not None and not (response_id.readable and self._is_forged(rollout, render)):
                return _Rendered(rollout, response_id, render)
        raise CallerError(400, "invalid_token", "token: use usage_token of the rendered prompt unchanged", "token")

    def _is_forged(self, rollout: LiveRollout, render: RenderId) -> bool:
        """Whether a token signed with a readable key names a render whose token was signed with another key."""
        since = self._registry.renders.since(render.number) if render.process == self._counters.process else None
        return since is not None and since >= rollout.unreadable_since

    def _here(self, rendered: _Rendered, report: Report) -> NotCounted | None:
        """Count the report; returns the reason if it is not counted."""
        renders, number = self._registry.renders, rendered.render.number
        already = renders.was_reported(number)
        render_state = renders.report(number)
        if render_state is None:
            return "already_reported" if already else "too_late"
        report.into(render_state.outcome, renders.clock() - render_state.since)
        render_state.count()
        return None

    async def _elsewhere(self, rendered: _Rendered, report: Report, payload: bytes) -> NotCounted | None:
        """Forward the report to the admin port of the pod that waits for it. The caller was authorized here, and its
        credentials are not forwarded. If that pod is gone, count the report here."""
        if url := rendered.render.url:
            if self._session is None:
                timeout = aiohttp.ClientTimeout(total=_FORWARD_SECONDS, sock_connect=_CONNECT_SECONDS)
                self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=64))
            try:
                async with self._session.post(f"{url}{POD_PATH}", data=payload, allow_redirects=False) as answer:
                    body = await answer.read()
                    if answer.status == 200:
                        return _reason_of(orjson.loads(body))
            except aiohttp.ConnectionTimeoutError as error:
                logger.info("forwarding a usage report to %s failed: %s", url, error)
            except TimeoutError as error:
                # it may have counted the report, so no other pod may
                raise OtherPodSilent() from error
            except (aiohttp.ClientError, OSError, orjson.JSONDecodeError, AttributeError) as error:
                logger.info("forwarding a usage report to %s failed: %s", url, error)
        return self._orphan(rendered, report)

    def _orphan(self, rendered: _Rendered, report: Report) -> NotCounted | None:
        """Count the report for the arm that has the rendered version now, if there is one."""
        rollout, response_id = rendered.rollout, rendered.response_id
        since_seconds = max(0.0, time.time() - response_id.at_seconds)
        reporting = rollout.configuration.spec.reporting
        arm = next(
            (arm for arm in (rollout.stable, rollout.canary) if arm and arm.version == response_id.version), None
        )
        known = (rendered.render.process, rendered.render.number)
        if known in self._orphans:
            return "already_reported"
        if response_id.readable:
            return "too_late"  # no process is left that could confirm the render
        if arm is None or response_id.variant is None or reporting is None:
            return "version_retired"
        if since_seconds > reporting.settle_seconds:
            return "too_late"
        self._orphans[known] = None
        if len(self._orphans) > _ORPHANS:
            self._orphans.popitem(last=False)
        outcome = Outcome(shard=response_id.shard, price=arm.price)
        report.into(outcome, since_seconds)
        rollout.series(arm, response_id.variant).count(outcome)
        return None


def usage_of(usage: dict[str, Any] | None) -> Usage | None:
    """Usage in the format of OpenAI's chat completions, of its responses, or of Anthropic."""
    if usage is None or "input_tokens" not in usage:
        return Usage.read(usage)
    details = usage.get("input_tokens_details")
    if isinstance(details, dict):
        return Usage.of(usage["input_tokens"], details, usage.get("output_tokens"))
    return messages.usage_of(usage)


def _reason_of(answer: dict[str, Any]) -> NotCounted | None:
    """The reason in another pod's answer; raises AttributeError if it is not an object. An earlier release sends
    none."""
    counted, reason = answer.get("counted"), answer.get("reason")
    if counted:
        return None
    return next((known for known in get_args(NotCounted) if known == reason), "too_late")


async def _answer(reason: NotCounted | None, reply: Reply) -> None:
    body: dict[str, object] = {"object": "usage", "counted": reason is None}
    if reason is not None:
        body["reason"] = reason
    await reply.whole(200, {"content-type": JSON}, orjson.dumps(body))


def _parse(payload: bytes) -> Report:
    if len(payload) > MAX_BYTES:
        raise CallerError(413, "request_too_large", f"a report may have at most {MAX_BYTES} bytes")
    return read(Report, payload, "invalid_type")
