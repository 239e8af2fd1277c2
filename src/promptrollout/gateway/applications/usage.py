"""`POST /v1/usage`: what became of a rendered prompt, as the application that used it reports."""

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
"""On the admin port: reports that other pods pass on."""
MAX_BYTES: Final = 65_536
_FORWARD_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 0.5
_ORPHANS: Final = 10_000
"""So many reports of renders whose pod is gone are remembered, so that none is counted twice."""
_MAX_SECONDS: Final = 86_400.0

NotCounted = Literal["already_reported", "too_late", "version_retired"]

Seconds = Annotated[float, Field(strict=True, ge=0, le=_MAX_SECONDS, allow_inf_nan=False)]


class Report(BaseModel):
    """What became of a rendered prompt. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    token: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    """`usage_token` of the rendered prompt."""
    outcome: Literal["success", "error", "refusal", "truncated", "empty", "abandoned"] = "success"
    """`abandoned`: it was not sent to a model, or nobody waited for the answer."""
    usage: dict[str, Any] | None = None
    """As the provider gave it: OpenAI's or Anthropic's."""
    latency_seconds: Seconds | None = None
    """To the last byte of the model's answer. Absent: the time since the prompt was rendered."""
    first_token_seconds: Seconds | None = None
    """To its first piece. Absent: not known."""
    contract_kept: Annotated[bool, Field(strict=True)] | None = None
    """Whether the answer kept the version's `outputSchema`; absent: not checked."""

    def into(self, outcome: Outcome, since_seconds: float) -> None:
        """Note it all."""
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
    """Nobody knows whether the pod that waits for a report has it."""

    def __init__(self) -> None:
        super().__init__(503, "other_pod_silent", "the pod that rendered it is silent: report again")
        self.headers["retry-after"] = "1"


@dataclass(frozen=True, slots=True)
class _Rendered:
    """What a token says, and whose it is."""

    rollout: LiveRollout
    given: ResponseId
    render: RenderId


class UsageReports:
    """Counts each render once, in the pod that rendered it; if that is gone, wherever the report arrives."""

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
        """Answer a report that reached another pod of this gateway: it goes no further. Raises CallerError."""
        report = _parse(payload)
        rendered = self._rendered(report.token)
        if rendered.render.process != self._counters.process:
            raise CallerError(409, "other_pod", "token: this pod did not render it", "token")
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
            given = rollout.response_ids.unwrap(token, time.time())
            if given is None or not given.rendered:
                continue
            render = RenderId.read(given.upstream)
            if render is not None and not (given.readable and self._is_forged(rollout, render)):
                return _Rendered(rollout, given, render)
        raise CallerError(400, "invalid_token", "token: take usage_token of the rendered prompt, as it is", "token")

    def _is_forged(self, rollout: LiveRollout, render: RenderId) -> bool:
        """Whether a token under a key that people could read names a render that got one under another key."""
        since = self._registry.renders.since(render.number) if render.process == self._counters.process else None
        return since is not None and since >= rollout.unreadable_since

    def _here(self, rendered: _Rendered, report: Report) -> NotCounted | None:
        """Count it; why not, if not."""
        renders, number = self._registry.renders, rendered.render.number
        already = renders.was_reported(number)
        pending = renders.report(number)
        if pending is None:
            return "already_reported" if already else "too_late"
        report.into(pending.outcome, renders.clock() - pending.since)
        pending.count()
        return None

    async def _elsewhere(self, rendered: _Rendered, report: Report, payload: bytes) -> NotCounted | None:
        """Have it counted by the pod that waits for it, on its admin port: what a caller may do here was looked at, and
        its credentials go nowhere. If that pod is gone, nobody else is going to count it."""
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
                logger.info("a report for %s: %s", url, error)
            except TimeoutError as error:
                # it may have counted it, or be about to: nobody may count it a second time
                raise OtherPodSilent() from error
            except (aiohttp.ClientError, OSError, orjson.JSONDecodeError, AttributeError) as error:
                logger.info("a report for %s: %s", url, error)
        return self._orphan(rendered, report)

    def _orphan(self, rendered: _Rendered, report: Report) -> NotCounted | None:
        """Count it for the arm that has the rendered version now, if there still is one."""
        rollout, given = rendered.rollout, rendered.given
        since_seconds = max(0.0, time.time() - given.at_seconds)
        reporting = rollout.configuration.spec.reporting
        arm = next((arm for arm in (rollout.stable, rollout.canary) if arm and arm.version == given.version), None)
        known = (rendered.render.process, rendered.render.number)
        if known in self._orphans:
            return "already_reported"
        if given.readable:
            return "too_late"  # nobody is left who knows that it was rendered
        if arm is None or given.variant is None or reporting is None:
            return "version_retired"
        if since_seconds > reporting.settle_seconds:
            return "too_late"
        self._orphans[known] = None
        if len(self._orphans) > _ORPHANS:
            self._orphans.popitem(last=False)
        outcome = Outcome(shard=given.shard, price=arm.price)
        report.into(outcome, since_seconds)
        rollout.series(arm, given.variant).count(outcome)
        return None


def usage_of(found: dict[str, Any] | None) -> Usage | None:
    """Tokens in the words of OpenAI's chat completions, of its responses, or of Anthropic."""
    if found is None or "input_tokens" not in found:
        return Usage.read(found)
    details = found.get("input_tokens_details")
    if isinstance(details, dict):
        return Usage.of(found["input_tokens"], details, found.get("output_tokens"))
    return messages.usage_of(found)


def _reason_of(answer: dict[str, Any]) -> NotCounted | None:
    """What another pod said; raises AttributeError for no object. One of a release before gives no reason."""
    counted, reason = answer.get("counted"), answer.get("reason")
    if counted:
        return None
    return next((known for known in get_args(NotCounted) if known == reason), "too_late")


async def _answer(reason: NotCounted | None, reply: Reply) -> None:
    found: dict[str, object] = {"object": "usage", "counted": reason is None}
    if reason is not None:
        found["reason"] = reason
    await reply.whole(200, {"content-type": JSON}, orjson.dumps(found))


def _parse(payload: bytes) -> Report:
    if len(payload) > MAX_BYTES:
        raise CallerError(413, "request_too_large", f"a report may have {MAX_BYTES} bytes")
    return read(Report, payload, "invalid_type")
