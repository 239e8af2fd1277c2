"""The operator's admin port: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from promptrollout.listen import listening_socket
from promptrollout.operator.cluster.metrics import Metrics

Check = Callable[[], str]
"""Empty if all is well, else what is not, in a sentence."""


async def start_admin(
    address: str, port: int, metrics: Metrics, refresh: Callable[[], None], healthy: Check, ready: Check
) -> web.AppRunner:
    """`refresh` updates gauges before they are read."""

    async def show_metrics(_: web.Request) -> web.Response:
        refresh()
        body = await asyncio.to_thread(generate_latest, metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(check: Check) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            problem = check()
            return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

        return answer

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening_socket(address, port)).start()
    return runner
