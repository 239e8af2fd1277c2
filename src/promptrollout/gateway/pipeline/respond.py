"""Fourth step of a request's way: pass the answer on and read it on the side, against the version's output schema."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import orjson

from promptrollout.gateway.http.exchange import JSON, Reply, Share
from promptrollout.gateway.pipeline.request import Prepared
from promptrollout.llm.answers.answer import Answer
from promptrollout.llm.answers.contract import Contract, kept
from promptrollout.llm.answers.json_text import costs_too_much, written
from promptrollout.llm.answers.schema_process import SchemaProcess
from promptrollout.llm.answers.streams import StreamError, StreamReader
from promptrollout.llm.errors import ErrorType, ProviderError
from promptrollout.llm.protocols.base import Whole
from promptrollout.llm.translations.base import Translation

EVENT_STREAM: Final = "text/event-stream"
MAX_READ_BYTES: Final = 1024 * 1024
"""A longer answer is not read where it need not be: to parse a hundred megabytes of vectors takes seconds."""
END_BYTES: Final = 4096
"""Of such an answer, what its usage is looked for in."""


@dataclass(slots=True)
class Ending:
    """What is left to be sent when everything about an answer is known."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False
    """It broke where no error can be told any more: its connection is closed, so that it does not look whole."""

    async def begin(self, reply: Reply) -> None:
        """The head, unless it is out: the answer streams. Raises ValueError where it cannot be sent."""
        if not reply.begun:
            await reply.begin(self.status, {**self.headers, "content-length": str(len(self.body))})

    async def send(self, reply: Reply) -> None:
        """The rest."""
        if not self.cut:
            await reply.end(self.body)


async def check(prepared: Prepared, answer: Answer, reply: Reply, share: Share, process: SchemaProcess) -> Ending:
    """Note in the outcome what the answer is. Raises ProviderError, or Overloaded, where nothing was passed on yet.
    `share`: of the answers that this pod reads in whole; `process`: checks what may take long."""
    try:
        if answer.content_type == EVENT_STREAM or await _made_a_stream(prepared, answer, share):
            return await _relay(prepared, answer, reply, process)
        return await _pass_on(prepared, answer, reply, share, process)
    finally:
        await answer.close()


def failed(prepared: Prepared, error: ProviderError) -> Ending:
    """The answer to a request that its provider did not answer."""
    outcome = prepared.outcome
    outcome.error_type, outcome.fallback = outcome.error_type or error.error_type, False
    headers = {**error.headers, **prepared.about(), "content-type": JSON}
    body = prepared.request.protocol.error_body(error.status, str(error), error.code, error.param)
    return Ending(error.status, headers, body)


async def _made_a_stream(prepared: Prepared, answer: Answer, share: Share) -> bool:
    """Where a provider was asked for a stream and answers as a whole: clients find no event in that, and take it for an
    empty answer. Raises ProviderError where the protocol's stream cannot be made of it."""
    filled, protocol = prepared.filled, prepared.filled.way.protocol
    if filled.asked.get("stream") is not True or not (protocol.compared and protocol.sampled):
        return False
    whole = _read(prepared, await answer.read(share))
    events = protocol.events_of(whole)
    if events is None:
        raise ProviderError(
            "bad_response", 502, f"provider {prepared.target.provider.name} was asked for a stream and did not stream"
        )
    answer.replace(events)
    return True


def _read(prepared: Prepared, payload: bytes) -> Whole:
    """Raises ProviderError."""
    with prepared.busy:
        whole = None if costs_too_much(payload) else prepared.filled.way.protocol.read(payload)
    if whole is None:
        raise ProviderError(
            "bad_response", 502, f"provider {prepared.target.provider.name} answered something else than a completion"
        )
    return whole


async def _pass_on(prepared: Prepared, answer: Answer, reply: Reply, share: Share, process: SchemaProcess) -> Ending:
    """An answer that comes as a whole."""
    outcome, way = prepared.outcome, prepared.filled.way
    # the first bytes are here, or there were no answer
    outcome.first_token_seconds = time.perf_counter() - prepared.request.started
    if way.protocol.read_in_whole:
        payload = await answer.read(share)
    else:
        begun = [await answer.begin(MAX_READ_BYTES, share)]
        if not answer.ended:
            return await _pass_through(prepared, begun, answer, reply, share)
        payload = begun.pop()
    whole = _read(prepared, payload)
    outcome.usage = whole.usage
    if whole.failure is not None:
        outcome.error_type = outcome.error_type or "provider_5xx"
    elif way.protocol.compared:
        outcome.answered(whole.choices)
        contract = _contract(prepared)
        if contract is not None:
            outcome.contract_kept = await kept(contract, whole.choices, process, prepared.busy)
    answer_id = prepared.answer_id()
    if answer_id is not None and answer_id.put(whole.parsed, ("id",)) and way.translation is None:
        payload = answer_id.replaced(payload) or written(whole.parsed) or payload
    if way.translation is not None:
        payload = _translated(prepared, way.translation, whole)
    return Ending(200, {**answer.headers, **prepared.about(), "content-type": JSON}, payload)


async def _pass_through(prepared: Prepared, begun: list[bytes], answer: Answer, reply: Reply, share: Share) -> Ending:
    """A long answer that nobody judges: it goes on as it comes, and only its end is looked at. `begun`: its beginning,
    taken out, so that nothing of what has gone is held."""
    outcome = prepared.outcome
    await reply.begin(200, {**answer.headers, **prepared.about(), "content-type": JSON})
    piece, end = begun.pop(), b""
    try:
        while piece:
            end = (end + piece)[-END_BYTES:]
            await _send_piece(piece, prepared, answer, reply)
            share.give_back()
            piece = await answer.chunk()
    except ProviderError as error:
        outcome.error_type = outcome.error_type or ("timeout" if error.error_type == "timeout" else "stream_broken")
        return Ending(200, {}, b"", cut=True)
    outcome.usage = prepared.filled.way.protocol.usage_at(end)
    return Ending(200, {}, b"")


async def _relay(prepared: Prepared, answer: Answer, reply: Reply, process: SchemaProcess) -> Ending:
    """An answer that streams: every event goes on at once, and is read on the side."""
    outcome, filled = prepared.outcome, prepared.filled
    contract = _contract(prepared)
    reader = filled.way.protocol.reader(filled.asked, collect_content=contract is not None)
    reader.answer_id = prepared.answer_id()
    if filled.way.translation is not None:
        reader.translator = filled.way.translation.stream(prepared.request.body)
    failure = await _forward(prepared, reader, answer, reply)
    outcome.usage = reader.usage
    if failure is not None or reader.error is not None:
        outcome.error_type = outcome.error_type or (failure[0] if failure else "stream_broken")
    else:
        choices = reader.choices()
        outcome.answered(choices)
        if contract is not None:
            outcome.contract_kept = await kept(contract, choices, process, prepared.busy)
    if failure is None:
        return Ending(200, {}, b"")
    code, message = failure
    if reader.translator is not None:
        return Ending(200, {}, reader.translator.error(message, code))
    return Ending(200, {}, prepared.request.protocol.error_event(502, message, code, reader.events))


async def _forward(
    prepared: Prepared, reader: StreamReader, answer: Answer, reply: Reply
) -> tuple[ErrorType, str] | None:
    """Send the stream on as it comes; why it ended early, if it did. Raises ProviderError before its first event."""
    outcome, started = prepared.outcome, prepared.request.started
    try:
        more = True
        while more:
            if reader.done:
                # all is here: what ends the connection's answer is waited for only so that it can be used again
                answer.hurry()
            chunk = await answer.chunk()
            more = bool(chunk)
            piece = reader.feed(chunk) if more else reader.finish()
            if reader.begun and outcome.first_token_seconds is None:
                outcome.first_token_seconds = time.perf_counter() - started - reply.blocked_seconds
            if piece:
                await _send_piece(piece, prepared, answer, reply)
    except StreamError as error:
        if reader.done:
            return None
        if not reply.begun:
            raise ProviderError("bad_response", 502, f"the provider's stream is none: {error}") from error
        return "stream_broken", f"the provider's stream broke: {error}"
    except ProviderError as error:
        if reader.done:
            return None
        if not reply.begun:
            raise
        return "timeout" if error.error_type == "timeout" else "stream_broken", str(error)
    if reader.error is None and not reader.complete:
        if not reply.begun:
            raise ProviderError("bad_response", 502, "the provider's stream ended before its first event")
        return "stream_broken", "the provider's stream ended before the answer did"
    return None


async def _send_piece(piece: bytes, prepared: Prepared, answer: Answer, reply: Reply) -> None:
    if not reply.begun:
        about = {**answer.headers, **prepared.about(), "content-type": f"{EVENT_STREAM}; charset=utf-8"}
        await reply.begin(200, about | {"cache-control": "no-cache", "x-accel-buffering": "no"})
    blocked = reply.blocked_seconds
    await reply.piece(piece)
    answer.deadline += reply.blocked_seconds - blocked


def _translated(prepared: Prepared, translation: Translation, whole: Whole) -> bytes:
    try:
        return orjson.dumps(translation.answer(whole.parsed, prepared.request.body))
    except (ValueError, orjson.JSONEncodeError) as error:
        message = f"the answer of provider {prepared.target.provider.name} cannot be translated: {error}"
        raise ProviderError("bad_response", 502, message) from error


def _contract(prepared: Prepared) -> Contract | None:
    """What the answer is held against. Not where stable stands in for a canary that could not be filled: its answer
    says nothing about the canary. A fallback's is part of the version."""
    filled, outcome = prepared.filled, prepared.outcome
    if (outcome.error_type is not None and not outcome.fallback) or not filled.way.protocol.leaves_format(filled.asked):
        return None
    return prepared.arm.prompt.contract
