"""A wire to the API server that can stop in the middle of a write: real bytes, held back by a proxy that sees TLS."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

LARGE_BYTES = 4096
"""Of what is sent at once. An operator's reads are smaller, and so are its Events; a rollout's status is larger."""


class Halfway:
    """Passes connections on to `server`. Once armed, the next large write is cut in two: what follows the first half
    waits, on that connection, until it is let through."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        assert parts.hostname is not None
        self._server = (parts.hostname, parts.port or 443)
        self._listener = socket.create_server((parts.hostname, 0))
        self.url = f"https://{parts.hostname}:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._at_half: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.held = threading.Event()
        """The first half of a write is with the API server."""
        self._run(self._accept)

    def arm(self, at_half: Callable[[], None]) -> None:
        """`at_half` is called when the first half has been sent on."""
        self._at_half = at_half

    def release(self) -> None:
        """Let the second half through."""
        self._released.set()

    def close(self) -> None:
        self._released.set()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        for client in _until_closed(lambda: self._listener.accept()[0]):
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            self._run(self._pass_on, client, server, self._cut)
            self._run(self._pass_on, server, client, lambda _data: None)

    def _pass_on(
        self, source: socket.socket, target: socket.socket, cut: Callable[[bytes], Callable[[], None] | None]
    ) -> None:
        for data in _until_closed(lambda: source.recv(65_536)):
            if not data:
                break
            rest = data
            if at_half := cut(data):
                half = len(data) // 2
                target.sendall(data[:half])
                at_half()
                self.held.set()
                self._released.wait()
                rest = data[half:]
            try:
                target.sendall(rest)
            except OSError:
                break
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _cut(self, data: bytes) -> Callable[[], None] | None:
        with self._lock:
            if len(data) < LARGE_BYTES:
                return None
            at_half, self._at_half = self._at_half, None
            return at_half


def _until_closed(read: Callable[[], T]) -> Iterator[T]:
    while True:
        try:
            yield read()
        except OSError:
            return
