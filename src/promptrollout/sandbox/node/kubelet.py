"""The node's HTTPS endpoint: what `kubectl logs` asks for, through the API server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from promptrollout.sandbox.node.container import Container
from promptrollout.sandbox.node.pod import PodWorker

_FOLLOW_SECONDS = 0.2
_CHUNK_BYTES = 1 << 16


class KubeletServer:
    """Serves container logs to clients with the API server's client certificate."""

    def __init__(
        self,
        find: Callable[[str, str], PodWorker | None],
        *,
        port: int,
        certificate: tuple[Path, Path],
        client_ca: Path,
    ) -> None:
        self._find = find
        self._port = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client_ca))
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_cert_chain(*certificate)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_route("*", "/{rest:.*}", self._unsupported)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _unsupported(self, request: web.Request) -> web.Response:
        return web.Response(status=501, text=f"{request.path}: the sandbox's node serves logs only, no exec or attach")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        worker = self._find(request.match_info["namespace"], request.match_info["pod"])
        container = worker.container(request.match_info["container"]) if worker else None
        if container is None:
            return web.Response(status=404, text="container not found on this node")
        previous = request.query.get("previous") == "true"
        path = container.log_path(previous=previous)
        if path is None:
            which = "previous terminated container" if previous else "container"
            return web.Response(status=400, text=f'{which} "{container.name}" has no log')
        lines = request.query.get("tailLines")
        limit = request.query.get("limitBytes")
        if not all(text is None or text.isdigit() for text in (lines, limit)):
            return web.Response(status=400, text="tailLines and limitBytes must be whole numbers")
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        offset = tail_offset(path, int(lines)) if lines is not None else 0
        remaining = int(limit) if limit is not None else None
        follow = request.query.get("follow") == "true" and not previous
        with contextlib.suppress(ConnectionResetError):  # the reader has gone: the usual end of `logs -f`
            while remaining is None or remaining > 0:
                chunk = read_chunk(path, offset, remaining)
                if chunk:
                    offset += len(chunk)
                    remaining = None if remaining is None else remaining - len(chunk)
                    await response.write(chunk)
                elif follow and self._still_writing(container, path):
                    await asyncio.sleep(_FOLLOW_SECONDS)
                else:
                    break
            await response.write_eof()
        return response

    @staticmethod
    def _still_writing(container: Container, path: Path) -> bool:
        return container.pid is not None and container.log_path() == path


def read_chunk(path: Path, offset: int, limit: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_CHUNK_BYTES if limit is None else min(limit, _CHUNK_BYTES))


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines begin; reads backwards, so a large log costs nothing."""
    size = path.stat().st_size
    if lines == 0:
        return size
    found, position = 0, size
    with path.open("rb") as file:
        while position > 0:
            start = max(0, position - _CHUNK_BYTES)
            file.seek(start)
            block = file.read(position - start)
            index = len(block)
            while (index := block.rfind(b"\n", 0, index)) >= 0:
                # a newline that ends the file ends the last line; it does not begin another one
                if start + index + 1 < size:
                    found += 1
                    if found == lines:
                        return start + index + 1
            position = start
    return 0
