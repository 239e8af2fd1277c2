"""A request's way through the gateway, top to bottom: route, render, call, check the contract, account."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import orjson

from promptrollout.api.names import HEADER_ROLLOUT, HEADER_VARIANT, HEADER_VERSION
from promptrollout.gateway import contract, render
from promptrollout.gateway.account import Outcome, Usage
from promptrollout.gateway.bounds import RenderError
from promptrollout.gateway.choices import choices_of
from promptrollout.gateway.configuration import Arm
from promptrollout.gateway.counters import Counters
from promptrollout.gateway.errors import CallerError, ClientGone, ErrorType, ProviderError, Unfilled, error_object
from promptrollout.gateway.http import JSON, Reply
from promptrollout.gateway.providers.openai import Answer
from promptrollout.gateway.registry import Registry, Serving
from promptrollout.gateway.render import Body, SystemMessageRefused
from promptrollout.gateway.route import Headers, assign
from promptrollout.gateway.series import Series
from promptrollout.gateway.sse import StreamError, StreamReader
from promptrollout.gateway.templates import MissingVariable

logger = logging.getLogger(__name__)

# of the caller's headers only these go on: traces should not end here; everything else is between caller and gateway
_FORWARDED = ("traceparent", "tracestate", "x-client-request-id")


@dataclass(slots=True)
class Prepared:
    """A request that is ready to be sent."""

    arm: Arm
    """That answers."""
    request: Body
    counted: Series | None
    """Of the arm that it was assigned to. None: answered by stable in the place of an unreachable canary."""
    outcome: Outcome
    accounted: bool = False


class ChatCompletions:
    """`POST /v1/chat/completions`."""

    def __init__(
        self, registry: Registry, counters: Counters, random_unit: Callable[[], bytes] = lambda: os.urandom(16)
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._random_unit = random_unit

    async def answer(self, headers: Headers, payload: bytes, reply: Reply) -> None:
        """Answer one request. Raises CallerError where nothing was sent yet."""
        started = time.perf_counter()
        body = parse(payload)
        serving = self._rollout(body)
        prepared = self._prepare(serving, headers, body)
        with _UnderWay(prepared):
            try:
                answer = await self._call(serving, prepared, headers, body)
                try:
                    if answer.content_type == "text/event-stream":
                        await self._relay(prepared, answer, body, reply, started, serving)
                    else:
                        await self._pass_on(prepared, answer, body, reply, started, serving)
                finally:
                    await answer.close()
            except ProviderError as error:
                prepared.outcome.error_type = prepared.outcome.error_type or error.error_type
                self._account(prepared, started, reply)
                about = {**error.headers, **_about(serving, prepared.arm), "content-type": JSON}
                await reply.whole(error.status, about, error.body())
            except (CallerError, ClientGone):
                raise
            except Exception:
                # a fault of ours that only one version provokes must not look like a version that is not asked
                if not prepared.accounted:
                    prepared.outcome.error_type = prepared.outcome.error_type or "internal"
                    self._account(prepared, started, reply)
                raise
            finally:
                if reply.gone and not prepared.accounted:
                    prepared.outcome.abandoned = True
                    self._account(prepared, started, reply)

    def _rollout(self, body: Body) -> Serving:
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise CallerError(400, "model_missing", "model must name a rollout; see GET /v1/models", "model")
        if (serving := self._registry.find(name)) is None:
            raise CallerError(404, "model_not_found", f"no rollout {name[:253]!r} here; see GET /v1/models", "model")
        return serving

    def _prepare(self, serving: Serving, headers: Headers, body: Body) -> Prepared:
        """Assign an arm and fill its prompt. Who is at fault for a prompt that cannot be filled, or takes no system
        messages: the caller, if it is so in both arms; the version, if only in one."""
        assignment = assign(serving.routing, headers, body, self._random_unit)
        canary = serving.canary
        arm = canary if assignment.variant == "canary" and canary is not None else serving.stable
        outcome = Outcome(shard=assignment.shard, price=arm.price)
        request = _filled(arm, body)
        counted_as = serving.series(arm, assignment.variant)
        if isinstance(request, Exception):
            other = serving.stable if arm is canary else canary
            instead = None if other is None else _filled(other, body)
            of_the_caller = isinstance(request, MissingVariable | SystemMessageRefused)
            if isinstance(instead, Exception) or (other is None and of_the_caller):
                raise _unfilled(request)
            outcome.error_type = request.error_type
            if instead is None or arm is serving.stable:
                counted_as.count(outcome)
                raise _unfilled(request)
            arm, request = serving.stable, instead
            outcome.price = arm.price
        spec = serving.configuration.spec
        serving.window.note(assignment.keyless)
        if assignment.keyless:
            self._counters.unassigned[spec.rollout_uid, serving.configuration.name] += 1
        return Prepared(arm, request, counted_as, outcome)

    async def _call(self, serving: Serving, prepared: Prepared, headers: Headers, body: Body) -> Answer:
        """The provider's answer. While only the canary's provider is down, stable's answers in its place."""
        forwarded = {name: headers[name].decode("latin-1") for name in _FORWARDED if name in headers}
        arm = prepared.arm
        if arm is serving.canary and arm.provider.base_url != serving.stable.provider.base_url:
            if not serving.canary_provider_unreachable or arm.provider.may_try():
                try:
                    return await _send(arm, prepared.request, body, forwarded, wait_unreachable=False)
                except ProviderError as error:
                    if not error.unreachable:
                        raise
                    unreachable: ProviderError | None = error
            else:
                unreachable = None
            return await self._divert(serving, prepared, forwarded, body, unreachable)
        return await _send(arm, prepared.request, body, forwarded)

    async def _divert(
        self,
        serving: Serving,
        prepared: Prepared,
        forwarded: Mapping[str, str],
        body: Body,
        unreachable: ProviderError | None,
    ) -> Answer:
        """Stable's answer to a request of the canary; counted for neither, unless stable cannot be reached either."""
        stable = serving.stable
        try:
            request = render.fill(stable.prompt, body)
        except Unfilled as error:
            raise unreachable or ProviderError(
                "connection", 502, f"provider {prepared.arm.provider.name} cannot be reached", unreachable=True
            ) from error
        counted = prepared.counted
        prepared.arm, prepared.request, prepared.counted = stable, request, None
        try:
            answer = await _send(stable, request, body, forwarded)
        except ProviderError as error:
            if error.unreachable:
                prepared.counted = counted
            else:
                self._count_diverted(serving)
            raise
        self._count_diverted(serving)
        return answer

    def _count_diverted(self, serving: Serving) -> None:
        self._counters.diverted[serving.configuration.spec.rollout_uid, serving.configuration.name] += 1

    async def _pass_on(
        self, prepared: Prepared, answer: Answer, body: Body, reply: Reply, started: float, serving: Serving
    ) -> None:
        """An answer that comes as a whole."""
        outcome = prepared.outcome
        outcome.first_token_seconds = time.perf_counter() - started  # the first bytes are here, or there were no answer
        payload = await answer.read()
        parsed = _chat_completion(payload)
        if parsed is None:
            raise ProviderError(
                "bad_response", 502, f"provider {prepared.arm.provider.name} answered something else than a completion"
            )
        outcome.usage = Usage.read(parsed.get("usage"))
        choices = choices_of(parsed)
        outcome.answered(choices)
        validator = _validator(prepared, body)
        if validator is not None:
            outcome.contract_kept = contract.kept(validator, choices)
        self._account(prepared, started, reply)
        await reply.whole(200, {**answer.headers, **_about(serving, prepared.arm), "content-type": JSON}, payload)

    async def _relay(
        self, prepared: Prepared, answer: Answer, body: Body, reply: Reply, started: float, serving: Serving
    ) -> None:
        """An answer that streams: every event goes on at once, and is read on the side."""
        validator = _validator(prepared, body)
        reader = StreamReader(forward_usage=render.wants_usage(body), collect_content=validator is not None)
        outcome = prepared.outcome
        failure: tuple[ErrorType, str] | None = None
        try:
            more = True
            while more:
                chunk = await answer.chunk()
                more = bool(chunk)
                piece = reader.feed(chunk) if more else reader.finish()
                if reader.begun and outcome.first_token_seconds is None:
                    outcome.first_token_seconds = time.perf_counter() - started - reply.blocked_seconds
                if piece:
                    await self._send_piece(piece, answer, reply, serving, prepared.arm)
        except StreamError as error:
            if not reply.begun:
                raise ProviderError("bad_response", 502, f"the provider's stream is none: {error}") from error
            failure = ("stream_broken", f"the provider's stream broke: {error}")
        except ProviderError as error:
            if not reply.begun:
                raise
            failure = ("timeout" if error.error_type == "timeout" else "stream_broken", str(error))
        if failure is None and reader.error is None and not reader.complete:
            if not reply.begun:
                raise ProviderError("bad_response", 502, "the provider's stream ended before its first event")
            failure = ("stream_broken", "the provider's stream ended before the answer did")
        if failure is not None:
            outcome.error_type = outcome.error_type or failure[0]
        elif reader.error is not None:
            outcome.error_type = outcome.error_type or "stream_broken"
        else:
            choices = reader.choices()
            outcome.answered(choices)
            if validator is not None:
                outcome.contract_kept = contract.kept(validator, choices)
        outcome.usage = reader.usage
        self._account(prepared, started, reply)
        if failure is not None:
            await reply.piece(b"data: " + error_object(502, failure[1], failure[0]) + b"\n\n")
        await reply.end()

    async def _send_piece(self, piece: bytes, answer: Answer, reply: Reply, serving: Serving, arm: Arm) -> None:
        if not reply.begun:
            about = {**answer.headers, **_about(serving, arm), "content-type": "text/event-stream; charset=utf-8"}
            await reply.begin(200, about | {"cache-control": "no-cache", "x-accel-buffering": "no"})
        blocked = reply.blocked_seconds
        await reply.piece(piece)
        answer.deadline += reply.blocked_seconds - blocked

    def _account(self, prepared: Prepared, started: float, reply: Reply) -> None:
        prepared.accounted = True
        prepared.outcome.over(max(0.0, time.perf_counter() - started - reply.blocked_seconds))
        if prepared.counted is not None:
            prepared.counted.count(prepared.outcome)


class _UnderWay:
    """While a request is under way its series are not dropped, nor its provider's connections closed."""

    def __init__(self, prepared: Prepared) -> None:
        self._counted = prepared.counted
        self._provider = prepared.arm.provider

    def __enter__(self) -> None:
        self._provider.in_flight += 1
        if self._counted is not None:
            self._counted.in_flight += 1

    def __exit__(self, *exc_info: object) -> None:
        self._provider.in_flight -= 1
        if self._counted is not None:
            self._counted.in_flight -= 1


def parse(payload: bytes) -> Body:
    """The request as an object. Raises CallerError."""
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise CallerError(400, "invalid_json", f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CallerError(400, "invalid_json", "the request must be a JSON object")
    return body


async def _send(
    arm: Arm, request: Body, body: Body, forwarded: Mapping[str, str], *, wait_unreachable: bool = True
) -> Answer:
    """The provider's answer; without usage in streams where a provider refuses to be asked for it."""
    provider = arm.provider
    added = "stream_options" in request and not render.wants_usage(body)
    if added and provider.takes_stream_options:
        try:
            return await _call(arm, request, forwarded, wait_unreachable)
        except ProviderError as error:
            if not error.about_stream_options:
                raise
        provider.retries += 1
        answer = await _call(arm, render.without_added_usage(request, body), forwarded, wait_unreachable)
        logger.warning("provider %s refuses stream_options: the cost of its streams is unknown", provider.name)
        provider.takes_stream_options = False
        return answer
    return await _call(
        arm, render.without_added_usage(request, body) if added else request, forwarded, wait_unreachable
    )


async def _call(arm: Arm, request: Body, forwarded: Mapping[str, str], wait_unreachable: bool) -> Answer:
    try:
        payload = orjson.dumps(request)
    except orjson.JSONEncodeError as error:
        raise CallerError(400, "invalid_json", "the request is nested too deeply") from error
    return await arm.provider.call(payload, arm.provider_config, forwarded, wait_unreachable=wait_unreachable)


def _validator(prepared: Prepared, body: Body) -> jsonschema_rs.Validator | None:
    """What the answer is held against. Not where stable stands in for a canary that could not be filled: its answer
    says nothing about the canary."""
    if prepared.outcome.error_type is not None or not contract.applies(body):
        return None
    return prepared.arm.prompt.validator


def _filled(arm: Arm, body: Body) -> Body | Unfilled:
    """The arm's request, or why there is none."""
    try:
        return render.fill(arm.prompt, body)
    except Unfilled as error:
        return error
    except CallerError:
        raise
    except Exception as error:
        logger.exception("version %s: its request cannot be put together", arm.version)
        return RenderError(f"{type(error).__name__}: {error}")


def _unfilled(error: Unfilled) -> CallerError:
    """What the caller is told about a prompt that cannot be filled."""
    if isinstance(error, SystemMessageRefused):
        message = "this prompt takes no system or developer messages of callers: leave them out"
        return CallerError(400, "system_message_refused", message, "messages")
    if isinstance(error, MissingVariable):
        message = f"the prompt needs the variable {error.name!r}: set it in {render.VARIABLES}"
        return CallerError(400, "prompt_variable_missing", message, f"{render.VARIABLES}.{error.name}")
    return CallerError(400, "prompt_render_failed", f"the prompt cannot be filled: {error}", render.VARIABLES)


def _chat_completion(payload: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get("choices"), list) else None


def _about(serving: Serving, arm: Arm) -> dict[str, str]:
    """Headers that say what answered."""
    return {HEADER_ROLLOUT: serving.configuration.name, HEADER_VERSION: arm.version, HEADER_VARIANT: arm.variant}
