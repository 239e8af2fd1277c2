"""Which of kopf's watches are up, from the requests of the session that they share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import aiohttp
from yarl import URL

GRACE_SECONDS = 3.0
"""A watch ends every few minutes and is renewed at once: it counts as up for so long."""


class WatchHealth:
    """The watches that must be up, by the path of their URL. Written in kopf's thread, read in the operator's."""

    def __init__(self, paths: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # a watch that was never up has no grace
        self._down_since: dict[str, float | None] = dict.fromkeys(paths, clock() - GRACE_SECONDS)

    def asked(self, path: str) -> None:
        """A watch is asked for: whatever was open before it has ended."""
        with self._lock:
            if path in self._down_since and self._down_since[path] is None:
                self._down_since[path] = self._clock()

    def answered(self, path: str, status: int) -> None:
        with self._lock:
            if path in self._down_since and status < 300:
                self._down_since[path] = None

    def ended(self) -> None:
        """kopf ended, and every watch with it."""
        now = self._clock()
        with self._lock:
            self._down_since = {path: now if since is None else since for path, since in self._down_since.items()}

    def down(self) -> dict[str, float]:
        """Seconds that each watch that is down has been so, by path; empty while all are up."""
        now = self._clock()
        with self._lock:
            down = {path: now - since for path, since in self._down_since.items() if since is not None}
        return {path: seconds for path, seconds in down.items() if seconds >= GRACE_SECONDS}

    def trace(self, server: str) -> aiohttp.TraceConfig:
        """Reports a session's watches; the server's URL may have a path."""
        prefix = URL(server).path.rstrip("/")

        async def on_start(
            _session: aiohttp.ClientSession, _context: object, params: aiohttp.TraceRequestStartParams
        ) -> None:
            if params.url.query.get("watch") == "true":
                self.asked(params.url.path.removeprefix(prefix))

        async def on_end(
            _session: aiohttp.ClientSession, _context: object, params: aiohttp.TraceRequestEndParams
        ) -> None:
            if params.url.query.get("watch") == "true":
                self.answered(params.url.path.removeprefix(prefix), params.response.status)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(on_start)
        trace.on_request_end.append(on_end)
        return trace
