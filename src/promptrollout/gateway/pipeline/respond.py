"""Pass the provider's answer on to the caller, and read it for the metrics and the version's output schema.

An answer takes one of three paths: it is read whole, it streams, or it is too long to read and is passed through.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import orjson

from promptrollout.gateway.http.exchange import JSON, Reply, Share
from promptrollout.gateway.pipeline.request import Prepared
from promptrollout.llm.answers.answer import Answer
from promptrollout.llm.answers.contract import Contract, check_contract
from promptrollout.llm.answers.json_text import costs_too_much, dumped
from promptrollout.llm.answers.schema_process import SchemaProcess
from promptrollout.llm.answers.streams import StreamError, StreamReader
from promptrollout.llm.errors import ErrorType, ProviderError
from promptrollout.llm.protocols.base import ParsedAnswer
from promptrollout.llm.translations.base import Translation

EVENT_STREAM: Final = "text/event-stream"
MAX_READ_BYTES: Final = 1024 * 1024
"""A longer answer is passed through if its protocol allows that: parsing 100 MB of vectors takes seconds."""
END_BYTES: Final = 4096
"""Of an answer that is passed through: the usage is searched for in so many bytes at its end."""


@dataclass(slots=True)
class Remainder:
    """What is still to be sent once the outcome of an answer is known."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False
    """The answer broke off where no error can be sent: the connection is closed, so that it does not look complete."""

    async def begin(self, reply: Reply) -> None:
        """Send the status and headers, unless they were sent already. Raises ValueError where they cannot be sent."""
        if not reply.begun:
            await reply.begin(self.status, {**self.headers, "content-length": str(len(self.body))})

    async def send(self, reply: Reply) -> None:
        """Send the rest of the body."""
        if not self.broken:
            await reply.end(self.body)


async def respond(prepared: Prepared, answer: Answer, reply: Reply, share: Share, schemas: SchemaProcess) -> Remainder:
    """Send the answer and note its outcome. Raises ProviderError, or Overloaded, where nothing was sent yet. `share`:
    memory for answers that are read whole; `schemas`: checks those whose check may take long."""
    try:
        if answer.content_type == EVENT_STREAM or await _converted_to_stream(prepared, answer, share):
            return await _stream(prepared, answer, reply, schemas)
        # the first bytes have arrived, or there would be no answer
        prepared.outcome.first_token_seconds = time.perf_counter() - prepared.request.started
        if prepared.provider_request.route.protocol.read_in_whole:
            return await _whole(prepared, answer, await answer.read(share), schemas)
        return await _passed_through(prepared, answer, reply, share, schemas)
    finally:
        await answer.close()


def respond_with_error(prepared: Prepared, error: ProviderError) -> Remainder:
    """The answer to a request that no provider answered."""
    outcome = prepared.outcome
    outcome.error_type, outcome.fallback = outcome.error_type or error.error_type, False
    body = prepared.request.protocol.error_body(error.status, str(error), error.code, error.param)
    return Remainder(error.status, prepared.response_headers(error.headers, JSON), body)


# ---------------------------------------------------------------------------------------- the three paths


async def _whole(prepared: Prepared, answer: Answer, payload: bytes, schemas: SchemaProcess) -> Remainder:
    """An answer that is read before anything of it is sent."""
    outcome, route = prepared.outcome, prepared.provider_request.route
    parsed = _parse(prepared, payload)
    outcome.usage = parsed.usage
    if parsed.failure is not None:
        outcome.error_type = outcome.error_type or "provider_5xx"
    elif route.protocol.compared:
        outcome.answered(parsed.choices)
        contract = _contract(prepared)
        if contract is not None:
            mark = prepared.in_flight_mark
            outcome.contract_kept = await check_contract(contract, parsed.choices, schemas, mark)
    answer_id = prepared.answer_id()
    if answer_id is not None and answer_id.replace_in(parsed.body, ("id",)) and route.translation is None:
        payload = answer_id.replaced(payload) or dumped(parsed.body) or payload
    if route.translation is not None:
        payload = _translated(prepared, route.translation, parsed)
    return Remainder(200, prepared.response_headers(answer.headers, JSON), payload)


async def _stream(prepared: Prepared, answer: Answer, reply: Reply, schemas: SchemaProcess) -> Remainder:
    """An answer whose events are sent as they come, and read on the side."""
    outcome, asked = prepared.outcome, prepared.provider_request
    contract = _contract(prepared)
    reader = asked.route.protocol.reader(asked.caller_body, collect_content=contract is not None)
    reader.answer_id = prepared.answer_id()
    if asked.route.translation is not None:
        reader.translator = asked.route.translation.stream(prepared.request.body)
    failure = await _send_events(prepared, reader, answer, reply)
    outcome.usage = reader.usage
    if failure is not None or reader.error is not None:
        outcome.error_type = outcome.error_type or (failure[0] if failure else "stream_broken")
    else:
        choices = reader.choices()
        outcome.answered(choices)
        if contract is not None:
            outcome.contract_kept = await check_contract(contract, choices, schemas, prepared.in_flight_mark)
    if failure is None:
        return Remainder(200, {}, b"")
    code, message = failure
    if reader.translator is not None:
        return Remainder(200, {}, reader.translator.error(message, code))
    return Remainder(200, {}, prepared.request.protocol.error_event(502, message, code, reader.events))


async def _passed_through(
    prepared: Prepared, answer: Answer, reply: Reply, share: Share, schemas: SchemaProcess
) -> Remainder:
    """A long answer that is sent as it comes; only its end is read, for the usage. A short one is read whole."""
    outcome = prepared.outcome
    piece, end = await answer.begin(MAX_READ_BYTES, share), b""
    if answer.ended:
        return await _whole(prepared, answer, piece, schemas)
    await reply.begin(200, prepared.response_headers(answer.headers, JSON))
    try:
        while piece:
            end = (end + piece)[-END_BYTES:]
            await _send(piece, answer, reply)
            share.release()
            piece = await answer.chunk()
    except ProviderError as error:
        outcome.error_type = outcome.error_type or ("timeout" if error.error_type == "timeout" else "stream_broken")
        return Remainder(200, {}, b"", broken=True)
    outcome.usage = prepared.provider_request.route.protocol.usage_at(end)
    return Remainder(200, {}, b"")


# ---------------------------------------------------------------------------------------- what they share


async def _converted_to_stream(prepared: Prepared, answer: Answer, share: Share) -> bool:
    """Convert a whole answer to a stream where the caller asked for one: its client reads only events. Raises
    ProviderError where the protocol cannot express it."""
    asked, protocol = prepared.provider_request, prepared.provider_request.route.protocol
    if asked.caller_body.get("stream") is not True or not (protocol.compared and protocol.sampled):
        return False
    parsed = _parse(prepared, await answer.read(share))
    events = protocol.as_stream(parsed)
    if events is None:
        message = f"provider {prepared.target.provider.name} did not stream though the request asked for a stream"
        raise ProviderError("bad_response", 502, message)
    answer.replace(events)
    return True


async def _send_events(
    prepared: Prepared, reader: StreamReader, answer: Answer, reply: Reply
) -> tuple[ErrorType, str] | None:
    """Send the stream as it comes; why it ended early, if it did. Raises ProviderError before its first event."""
    outcome, started = prepared.outcome, prepared.request.started
    try:
        more = True
        while more:
            # many clients hang up once they have the answer: it is not abandoned, and judged all the same
            reply.finished = reader.complete
            if reader.done:
                # its end is awaited only so that the connection can be used again
                answer.hurry()
            chunk = await answer.chunk()
            more = bool(chunk)
            piece = reader.feed(chunk) if more else reader.finish()
            if reader.begun and outcome.first_token_seconds is None:
                outcome.first_token_seconds = time.perf_counter() - started - reply.blocked_seconds
            if piece:
                if not reply.begun:
                    headers = prepared.response_headers(answer.headers, f"{EVENT_STREAM}; charset=utf-8")
                    await reply.begin(200, headers | {"cache-control": "no-cache", "x-accel-buffering": "no"})
                await _send(piece, answer, reply)
    except StreamError as error:
        if reader.done:
            return None
        if not reply.begun:
            message = f"the provider's answer is not a valid event stream: {error}"
            raise ProviderError("bad_response", 502, message) from error
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
        return "stream_broken", "the provider's stream ended before the answer was complete"
    return None


async def _send(piece: bytes, answer: Answer, reply: Reply) -> None:
    """Send a piece; the time that the caller took to read it is not the provider's."""
    blocked = reply.blocked_seconds
    await reply.piece(piece)
    answer.deadline += reply.blocked_seconds - blocked


def _parse(prepared: Prepared, payload: bytes) -> ParsedAnswer:
    """Raises ProviderError."""
    with prepared.in_flight_mark:
        parsed = None if costs_too_much(payload) else prepared.provider_request.route.protocol.read(payload)
    if parsed is None:
        message = f"provider {prepared.target.provider.name} answered with something that is not a completion"
        raise ProviderError("bad_response", 502, message)
    return parsed


def _translated(prepared: Prepared, translation: Translation, parsed: ParsedAnswer) -> bytes:
    try:
        return orjson.dumps(translation.answer(parsed.body, prepared.request.body))
    except (ValueError, orjson.JSONEncodeError) as error:
        message = f"the answer of provider {prepared.target.provider.name} cannot be translated: {error}"
        raise ProviderError("bad_response", 502, message) from error


def _contract(prepared: Prepared) -> Contract | None:
    """What the answer is checked against. None where stable answers for a canary that could not be prepared: its answer
    says nothing about the canary. A fallback's answer is checked, as the fallback is part of the version."""
    asked, outcome = prepared.provider_request, prepared.outcome
    if (outcome.error_type is not None and not outcome.fallback) or not asked.route.protocol.leaves_format(
        asked.caller_body
    ):
        return None
    return prepared.arm.prompt.contract
