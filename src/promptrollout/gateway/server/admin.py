"""The admin port: metrics, probes, what this pod serves, and usage reports that reached another pod."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from promptrollout.gateway.applications.usage import MAX_BYTES, POD_PATH, UsageReports
from promptrollout.gateway.http.errors import ClientGone
from promptrollout.gateway.http.exchange import JSON, Bodies, Receive, Reply, Scope, Send, headers_of, read_body
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.rollouts.pod_report import PodReporter
from promptrollout.gateway.server.metrics_page import CONTENT_TYPE, PodState, exposition
from promptrollout.llm.errors import CallerError, error_object

_TEXT = "text/plain; charset=utf-8"


class AdminApp:
    """ASGI application of the port for the operator, Prometheus and the kubelet."""

    def __init__(
        self, reporter: PodReporter, counters: Counters, state: Callable[[], PodState], reports: UsageReports
    ) -> None:
        self._reporter = reporter
        self._counters = counters
        self._state = state
        self._reports = reports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reply = Reply(send)
        path = scope["path"]
        if path == POD_PATH and scope["method"] == "POST":
            await self._report(scope, receive, reply)
        elif scope["method"] not in ("GET", "HEAD"):
            await reply.whole(405, {"content-type": JSON}, error_object(405, "the admin port accepts only GET"))
        elif path == "/rollouts":
            wanted = parse_qs(scope["query_string"].decode("latin-1")).get("name")
            report = self._reporter.report(wanted)
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

    async def _report(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        """A usage report that another pod forwards; its token is signed, so no other authentication is needed."""
        try:
            payload = await read_body(headers_of(scope), receive, MAX_BYTES, Bodies().share())
            await self._reports.answer_pod(payload, reply)
        except CallerError as error:
            body = error_object(error.status, str(error), error.code, error.param)
            await reply.whole(error.status, {"content-type": JSON}, body)
        except ClientGone:
            self._counters.disconnects += 1
