"""The admin port: metrics, probes, and what this pod has loaded, for the operator."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from promptrollout.gateway.counters import Counters
from promptrollout.gateway.errors import error_object
from promptrollout.gateway.exposition import CONTENT_TYPE, PodState, exposition
from promptrollout.gateway.http import JSON, Receive, Reply, Scope, Send
from promptrollout.gateway.registry import Registry

_TEXT = "text/plain; charset=utf-8"


class AdminApp:
    """ASGI application of the port for the operator, Prometheus and the kubelet."""

    def __init__(self, registry: Registry, counters: Counters, state: Callable[[], PodState]) -> None:
        self._registry = registry
        self._counters = counters
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reply = Reply(send)
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await reply.whole(405, {"content-type": JSON}, error_object(405, "this port takes GET only"))
        elif path == "/rollouts":
            wanted = parse_qs(scope["query_string"].decode("latin-1")).get("name")
            report = self._registry.report(wanted)
            body = report.model_dump_json(by_alias=True, exclude_none=True).encode()
            await reply.whole(200, {"content-type": JSON}, body)
        elif path == "/metrics":
            await reply.begin(200, {"content-type": CONTENT_TYPE})
            async for piece in exposition(self._counters, self._state()):
                await reply.piece(piece)
            await reply.end()
        elif path == "/healthz":
            await reply.whole(200, {"content-type": _TEXT}, b"ok\n")
        elif path == "/readyz":
            ready = self._state().ready
            await reply.whole(200 if ready else 503, {"content-type": _TEXT}, b"ok\n" if ready else b"not ready\n")
        else:
            await reply.whole(404, {"content-type": JSON}, error_object(404, "unknown URL"))
