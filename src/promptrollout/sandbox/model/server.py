"""A simulated model: an HTTP server that speaks OpenAI's and Anthropic's APIs and behaves as its rules say.

Run it with `python -m promptrollout.sandbox.model --port 8080`; docs/reference/simulated-model.md describes the rules.
Plain ASGI without a framework, because in benchmarks of the gateway the model must not be what is measured.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import click
import orjson
import uvicorn
import yaml

from promptrollout.sandbox.model.answers import DrawSource, Reply, compose
from promptrollout.sandbox.model.behaviour import (
    Behaviour,
    BehaviourError,
    Outcome,
    first_fit,
    parse_behaviours,
)
from promptrollout.sandbox.model.request import RequestError
from promptrollout.sandbox.model.wire import WIRES, ChatWire, Wire

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

LARGEST_BODY_BYTES = 32 * 1024 * 1024
LONGEST_HANG_SECONDS = 3600.0
REMEMBERED_REQUESTS = 1000
_LARGEST_REMEMBERED_BYTES = 64 * 1024
_LARGEST_STREAM_PIECES = 8
_JSON: Headers = [(b"content-type", b"application/json")]
_GARBAGE = b"<html><head><title>502 Bad Gateway</title></head><body>upstream went away</body></html>"


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it arrived, for tests that ask what was sent."""

    unix_seconds: float
    rule: str
    outcome: str
    headers: dict[str, str]
    body: bytes

    def as_json(self) -> dict[str, Any]:
        """The record as `GET /control/requests` shows it; an oversized or undecodable body stays text."""
        try:
            body: Any = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            body = self.body.decode(errors="replace")
        return {
            "unixSeconds": self.unix_seconds,
            "rule": self.rule,
            "outcome": self.outcome,
            "headers": {name: _redacted(name, value) for name, value in self.headers.items()},
            "body": body,
        }


class SimulatedModel:
    """The ASGI application. Behaviours may be replaced while it serves."""

    def __init__(
        self,
        seed: int = 0,
        behaviours: Sequence[Behaviour] = (),
        api_keys: Sequence[str] = (),
        models: Sequence[str] = ("simulated",),
    ) -> None:
        self._behaviours = list(behaviours)
        self._keys = frozenset(api_keys)
        self._models = list(models)
        self._seed = seed
        self._draws = DrawSource(seed)
        self._requests: deque[ReceivedRequest] = deque(maxlen=REMEMBERED_REQUESTS)
        self._outcomes: Counter[tuple[str, Outcome]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            return
        api = WIRES.get(scope["path"].removeprefix("/v1"), ChatWire)
        try:
            await self._route(scope, receive, send)
        except BehaviourError as error:
            await _send_error(send, api, 400, "invalid_behaviour", f"{error.path}: {error.reason}", error.path)
        except RequestError as error:
            await _send_error(send, api, error.status, error.code, str(error), error.param)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if api := WIRES.get(path.removeprefix("/v1")):
            _require(method, "POST")
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._authorize(headers)
            self._in_flight += 1
            try:
                await self._answer(api, headers, receive, send)
            finally:
                self._in_flight -= 1
        elif path in {"/v1/models", "/models"}:
            _require(method, "GET")
            self._authorize({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "sandbox"} for name in self._models]
            await _send_json(send, 200, {"object": "list", "data": listed})
        elif path == "/healthz":
            await _send(send, 200, [(b"content-type", b"text/plain")], b"ok")
        elif path.startswith("/control/"):
            await self._control(method, path.removeprefix("/control/"), scope, receive, send)
        else:
            raise RequestError(404, f"Unknown request URL: {method} {path}", code="unknown_url")

    def _authorize(self, headers: dict[str, str]) -> None:
        key = headers.get("x-api-key") or headers.get("authorization", "").partition("Bearer ")[2]
        if self._keys and key not in self._keys:
            raise RequestError(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _answer(self, api: type[Wire], headers: dict[str, str], receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        body = await _body(receive)
        request = api.parse(body)
        behaviour = first_fit(self._behaviours, request.instructions, request.model, headers)
        draws = self._draws.draw(behaviour.name, request.user, request.messages)
        reply = compose(behaviour, draws, request.characters, request.schema, request.max_tokens, request.tools)
        self._outcomes[behaviour.name, reply.outcome] += 1
        remembered = body[:_LARGEST_REMEMBERED_BYTES]
        self._requests.append(ReceivedRequest(time.time(), behaviour.name, reply.outcome.value, headers, remembered))

        if reply.outcome is Outcome.TIMEOUT:
            await _hang(receive)
            return
        await _sleep_until(started + reply.first_token_seconds)
        marks: Headers = [
            (b"x-request-id", f"req_{reply.request_id}".encode()),
            (b"x-simulated-rule", behaviour.name.encode()),
            (b"x-simulated-outcome", reply.outcome.encode()),
            (b"x-simulated-quality", f"{reply.quality:.3f}".encode()),
        ]
        if reply.error is not None:
            await _send_provider_error(send, api, reply, marks)
            return
        if reply.outcome is Outcome.GARBAGE:
            await _sleep_until(started + reply.seconds)
            await _send(send, 200, [(b"content-type", b"text/html"), *marks], _GARBAGE)
            return
        self._tokens.update(prompt=reply.usage.prompt, completion=reply.usage.completion, cached=reply.usage.cached)
        wire = api(request, reply, self._seed)
        await (_stream if request.stream else _answer)(send, wire, marks, started)

    async def _control(self, method: str, what: str, scope: Scope, receive: Receive, send: Send) -> None:
        if what == "behaviours" and method == "PUT":
            try:
                self._behaviours = parse_behaviours(orjson.loads(await _body(receive)))
            except orjson.JSONDecodeError as error:
                raise RequestError(400, f"the body is not JSON: {error}", "behaviours") from error
            self._draws.reset()
        elif what == "behaviours" and method == "DELETE":
            self._behaviours = []
            self._draws.reset()
        elif what == "requests" and method == "DELETE":
            self._requests.clear()
            self._outcomes.clear()
            self._tokens.clear()
        elif what == "requests" and method == "GET":
            await _send_json(send, 200, [kept.as_json() for kept in list(self._requests)[-_last(scope) :]])
            return
        elif what == "stats" and method == "GET":
            await _send_json(send, 200, self.stats())
            return
        elif what not in {"behaviours", "requests", "stats"}:
            raise RequestError(404, f"no /control/{what}; there are behaviours, requests and stats")
        elif method != "GET":
            raise RequestError(405, f"/control/{what} does not support {method}")
        await _send_json(send, 200, [rule.model_dump(by_alias=True, mode="json") for rule in self._behaviours])

    def stats(self) -> dict[str, Any]:
        """Counts since the start or the last `DELETE /control/requests`."""
        rules: dict[str, dict[str, int]] = {}
        for (rule, outcome), count in self._outcomes.items():
            rules.setdefault(rule, {})[outcome.value] = count
        return {
            "requests": sum(self._outcomes.values()),
            "inFlight": self._in_flight,
            "rules": rules,
            "tokens": {kind: self._tokens[kind] for kind in ("prompt", "completion", "cached")},
        }


async def _answer(send: Send, wire: Wire, marks: Headers, started: float) -> None:
    reply = wire.reply
    body = orjson.dumps(wire.whole())
    await _sleep_until(started + reply.seconds)
    if reply.outcome is Outcome.DISCONNECT:
        await _start(send, 200, [*_JSON, (b"content-length", str(len(body)).encode()), *marks])
        # Returning before the announced length is reached makes the server close the connection.
        await send(_part(body[: int(len(body) * reply.cut_share)]))
        return
    await _send(send, 200, [*_JSON, *marks], body)


async def _stream(send: Send, wire: Wire, marks: Headers, started: float) -> None:
    reply = wire.reply
    pieces = _pieces(reply.text)
    sent = len(pieces)
    if reply.outcome is Outcome.DISCONNECT:
        sent = int(len(pieces) * reply.cut_share)
    await _start(send, 200, [(b"content-type", b"text/event-stream; charset=utf-8"), *marks])
    await send(_part(wire.head()))
    for number, piece in enumerate(pieces[:sent], start=1):
        await send(_part(wire.piece(piece)))
        share = number / len(pieces)
        await _sleep_until(started + reply.first_token_seconds + (reply.seconds - reply.first_token_seconds) * share)
    if reply.outcome is Outcome.DISCONNECT:
        return
    await send({"type": "http.response.body", "body": wire.end()})


def _pieces(text: str) -> list[str]:
    size = max(4, -(-len(text) // _LARGEST_STREAM_PIECES))
    return [text[start : start + size] for start in range(0, len(text), size)]


async def _send_provider_error(send: Send, api: type[Wire], reply: Reply, marks: Headers) -> None:
    assert reply.error is not None
    headers = list(marks)
    if reply.error.retry_after_seconds is not None:
        headers.append((b"retry-after", f"{reply.error.retry_after_seconds:g}".encode()))
    status = reply.error.status
    await _send_error(send, api, status, "simulated", f"Simulated error {status}.", None, headers)


async def _send_error(
    send: Send,
    api: type[Wire],
    status: int,
    code: str | None,
    message: str,
    param: str | None,
    headers: Headers | None = None,
) -> None:
    await _send_json(send, status, api.error(status, code, message, param), headers)


async def _send_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    await _send(send, status, [*_JSON, *(headers or [])], orjson.dumps(value))


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await _start(send, status, [*headers, (b"content-length", str(len(body)).encode())])
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY_BYTES:
            raise RequestError(413, f"the body is larger than {LARGEST_BODY_BYTES} bytes")
    return body


async def _hang(receive: Receive) -> None:
    """Stay silent until the caller gives up."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(gone(), LONGEST_HANG_SECONDS)
    except TimeoutError:
        return


async def _sleep_until(moment: float) -> None:
    remaining = moment - time.perf_counter()
    if remaining > 0:
        await asyncio.sleep(remaining)


def _require(method: str, wanted: str) -> None:
    if method != wanted:
        raise RequestError(405, f"Not allowed to {method} here; use {wanted}.", code="method_not_supported")


def _last(scope: Scope) -> int:
    last = parse_qs(scope["query_string"].decode("latin-1")).get("last", ["100"])[-1]
    if not last.isdecimal() or not 1 <= int(last) <= REMEMBERED_REQUESTS:
        raise RequestError(400, f"last must be an integer from 1 to {REMEMBERED_REQUESTS}, not {last!r}", "last")
    return int(last)


def _redacted(name: str, value: str) -> str:
    return f"...{value[-4:]}" if name in {"authorization", "x-api-key", "api-key"} else value


def _not_cut_on_purpose(record: logging.LogRecord) -> bool:
    # uvicorn logs a response that stops in the middle as an error; here it is a behaviour.
    return not str(record.msg).startswith("ASGI callable returned without completing response")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed and requests, same behaviour.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON or YAML rules.")
@click.option("--api-key", "api_keys", multiple=True, help="Accept only these keys. Repeatable.")
@click.option("--model", "models", multiple=True, default=("simulated",), help="Names for GET /v1/models. Repeatable.")
def main(
    host: str, port: int, seed: int, config: Path | None, api_keys: tuple[str, ...], models: tuple[str, ...]
) -> None:
    """Serve a simulated model that speaks OpenAI's and Anthropic's APIs."""
    behaviours: list[Behaviour] = []
    if config is not None:
        try:
            behaviours = parse_behaviours(yaml.safe_load(config.read_text()))
        except (BehaviourError, yaml.YAMLError) as error:
            raise click.BadParameter(str(error), param_hint=f"--config {config}") from error
    app = SimulatedModel(seed, behaviours, api_keys, models)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn.error").addFilter(_not_cut_on_purpose)
    uvicorn.run(
        app,
        host=host,
        port=port,
        http="httptools",
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
