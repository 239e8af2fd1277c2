"""What the gateway's tests share: deliveries, a caller that speaks ASGI, a provider that follows a script."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
import uvicorn
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from promptrollout.api.networks import Networks
from promptrollout.gateway.http.exchange import Message
from promptrollout.gateway.metrics.series import Series
from promptrollout.gateway.process import Gateway

STABLE = "a" * 64
CANARY = "b" * 64
LOOPBACK = Networks.of(["127.0.0.0/8"])
"""Where the tests' providers are."""
KEY = "5e" * 32
"""Of response ids."""
SCHEMA = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "string"}}}


def arm(digest: str = STABLE, url: str = "http://127.0.0.1:1/v1", **changes: Any) -> dict[str, Any]:
    """One arm of a delivery; `changes` are merged into its prompt, or with `provider_…` into its provider."""
    prompt: dict[str, Any] = {
        "providerRef": {"name": "openai"},
        "model": "gpt",
        "messages": [{"role": "system", "content": f"You are {digest[0]}."}],
    }
    provider: dict[str, Any] = {
        "name": "openai",
        "baseURL": url,
        "price": {"model": "gpt", "inputPerMillionUsd": "1", "outputPerMillionUsd": "4"},
    }
    for name, value in changes.items():
        if name.startswith("provider_"):
            provider[name.removeprefix("provider_")] = value
        else:
            prompt[name] = value
    return {"version": f"support-{digest[:10]}", "digest": f"sha256:{digest}", "prompt": prompt, "provider": provider}


def delivery(sequence: int = 1, **changes: Any) -> dict[str, Any]:
    """The spec of a PromptDelivery as it stands in the API server."""
    return {
        "formatVersion": 1,
        "gateway": "default",
        "rolloutUID": "uid-1",
        "sequence": sequence,
        "weight": 0,
        "salt": "salt",
        "stable": arm(),
        **changes,
    }


async def serve(gateway: Gateway, url: str, sequence: int = 1, **changes: Any) -> None:
    """Stable alone, from the provider at this URL; `changes` as of `arm`."""
    await gateway.registry.apply("support", delivery(sequence, stable=arm(url=url, **changes)))


async def serve_both(gateway: Gateway, url: str, weight: int = 100, **changes: Any) -> None:
    """Stable and canary on the same provider, the canary for everybody; `changes` are the canary's."""
    arms = {"stable": arm(url=url), "canary": arm(CANARY, url, **changes)}
    await gateway.registry.apply("support", delivery(weight=weight, **arms))


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "support", "user": "u1", "messages": [{"role": "user", "content": "Hello"}], **changes}


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes
    pieces: list[bytes]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


class Caller:
    """Speaks ASGI to an application as uvicorn would."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def post(
        self,
        body: Any,
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
        hang_up: asyncio.Event | None = None,
        on_piece: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Answered:
        payload = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self._call("POST", path, payload, headers, hang_up, on_piece)

    async def get(self, path: str) -> Answered:
        return await self._call("GET", path, b"", None, None, None)

    async def _call(
        self,
        method: str,
        path: str,
        payload: bytes,
        headers: dict[str, str] | None,
        hang_up: asyncio.Event | None,
        on_piece: Callable[[bytes], Awaitable[None]] | None,
    ) -> Answered:
        incoming: deque[Message] = deque([{"type": "http.request", "body": payload, "more_body": False}])
        sent: list[Message] = []

        async def receive() -> Message:
            if incoming:
                return incoming.popleft()
            await (hang_up or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if on_piece is not None and message.get("more_body"):
                await on_piece(message["body"])

        raw = {"content-length": str(len(payload)), **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
        }
        await self._app(scope, receive, send)
        pieces = [message["body"] for message in sent[1:] if message.get("body")]
        if not sent:
            return Answered(0, {}, b"", [])
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answered(sent[0]["status"], found, b"".join(pieces), pieces)


def completion(
    content: str | None = "Hello", finish_reason: str = "stop", refusal: str | None = None, **changes: Any
) -> dict[str, Any]:
    """What a provider answers."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": refusal},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        **changes,
    }


def chunk(content: str | None = None, finish_reason: str | None = None, **changes: Any) -> bytes:
    """One event of a provider's stream."""
    delta = {} if content is None else {"content": content}
    event = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **changes}
    return b"data: " + orjson.dumps(event) + b"\n\n"


USAGE_CHUNK = b'data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


def says(status: int = 200, body: Any = None, **headers: str) -> Script:
    """An answer as a whole."""

    async def answer(_: web.Request) -> web.StreamResponse:
        payload = body if isinstance(body, bytes) else orjson.dumps(completion() if body is None else body)
        kind = {"content-type": "application/json"}
        return web.Response(status=status, body=payload, headers={**kind, **headers})

    return answer


def streams(*pieces: bytes | asyncio.Event, cut: bool = False) -> Script:
    """A stream of these pieces; an event in between is waited for; `cut` breaks the connection at the end."""

    async def answer(incoming: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(incoming)
        for piece in pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                await response.write(piece)
        if cut and incoming.transport is not None:
            incoming.transport.close()
        return response

    return answer


@dataclass
class Provider:
    """A real HTTP server that answers by its script, then always with a plain completion."""

    script: deque[Script] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/{path:.+}", self._complete)
        app.router.add_get("/v1/models", says(body={"data": []}))
        self._runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()

    async def _complete(self, incoming: web.Request) -> web.StreamResponse:
        self.requests.append(orjson.loads(await incoming.read()))
        self.paths.append(incoming.path)
        self.headers.append({name.lower(): value for name, value in incoming.headers.items()})
        script = self.script.popleft() if self.script else says()
        try:
            return await script(incoming)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The application on a port of its own, without the second that `uvicorn.run` takes to end."""
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, each answer waits 40 ms
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, http="httptools", proxy_headers=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    await server.shutdown(sockets=[listener])


def series(gateway: Gateway, variant: str) -> Series:
    """The only counters of a variant."""
    (found,) = [one for one in gateway.counters.live() if one.labels[3] == variant]
    return found


def counted(gateway: Gateway) -> dict[str, tuple[int, int]]:
    """Requests and errors by variant."""
    return {
        one.labels[3]: (one.total.requests, sum(one.errors.values()))
        for one in gateway.counters.live()
        if one.total.requests
    }


Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def samples(gateway: Gateway, *of: str) -> Samples:
    """All samples by name and labels, as Prometheus' own parser reads them; with names in `of`, those alone: of many
    rollouts it takes a second."""
    page = (await Caller(gateway.admin_app).get("/metrics")).body.decode()
    if of:
        page = "".join(line for line in page.splitlines(keepends=True) if line.startswith(("#", *of)))
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in series, f"{sample.name} twice with {labels}"
            series[labels] = sample.value
    return found


def value(found: Samples, metric: str, **labels: str) -> float:
    """The sum over the series with these labels, of which there must be one."""
    values = [n for series, n in found[metric].items() if labels.items() <= dict(series).items()]
    assert values, f"no {metric} with {labels}"
    return sum(values)
