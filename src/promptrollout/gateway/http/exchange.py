"""Plain ASGI: read a body within limits, answer once or in pieces, notice when the caller disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Self

from promptrollout.gateway.http.errors import ClientGone, Overloaded
from promptrollout.llm.errors import CallerError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON: Final = "application/json"
READER_SECONDS: Final = 60.0
"""A caller that reads nothing for so long counts as gone."""
BODY_SECONDS: Final = 60.0
"""A request's body must arrive within this time."""
WATCH_AFTER_SECONDS: Final = 0.05
"""A request that ends sooner is not watched for a disconnect, which takes a task of its own."""
MAX_BODIES_BYTES: Final = 128 * 1024 * 1024
"""For the bodies of all requests in flight, incomplete ones included: a pod has 512 MiB by default."""
MAX_ANSWERS_BYTES: Final = 64 * 1024 * 1024
"""For answers that are read whole: parsed they take several times as much."""
SMALL_BYTES: Final = 64 * 1024
"""Beyond the limit, bodies up to this size are still read,"""
MAX_SMALL_BYTES: Final = 32 * 1024 * 1024
"""until they exceed it by so much: thousands of connections have thousands of small bodies."""
# a refused body is read to its end within these limits: many clients read no answer before they have sent everything
_DISCARD_BYTES: Final = 64 * 1024 * 1024
_DISCARD_SECONDS: Final = 5.0
_NOT_IN_A_HEADER: Final = bytes({*range(32), 127} - {9})


class Reply:
    """The answer to one request; the status line is sent once."""

    def __init__(self, send: Send, *, last: bool = False) -> None:
        self._send = send
        self._last = last
        """It closes its connection."""
        self.begun = False
        self._streams = False
        """The body is sent in pieces."""
        self.finished = False
        """The caller has everything, or it is being sent: who hangs up now does not miss anything."""
        self.gone = False
        """The caller disconnected, or stopped reading."""
        self.blocked_seconds = 0.0
        """How long sending waited for the caller to read."""

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole answer."""
        await self.begin(status, {**headers, "content-length": str(len(body))})
        await self.end(body)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers. Raises ValueError for headers that cannot be sent; others still can be."""
        # a provider's bytes are forwarded unchanged: its client decoded them in this way
        raw = [(name.encode("latin-1"), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()]
        if self._last:
            raw.append((b"connection", b"close"))
        # the server would find that too, but only after it counts the head as sent
        values = b"".join([value for _, value in raw])
        if len(values.translate(None, _NOT_IN_A_HEADER)) != len(values):
            raise ValueError(f"headers that cannot be sent: {dict(headers)!r:.1000}")
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def piece(self, body: bytes) -> None:
        """Send a piece of the body. Raises ClientGone for a caller that does not read."""
        self._streams = True
        await self._send_patiently({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Send the rest of the body. Raises ClientGone for a caller that does not read."""
        self.finished = True
        message = {"type": "http.response.body", "body": body}
        await (self._send_patiently(message) if self._streams else self._send(message))

    async def _send_patiently(self, message: Message) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(READER_SECONDS):
                await self._send(message)
        except TimeoutError as error:
            self.gone = True
            raise ClientGone("the caller stopped reading") from error
        finally:
            self.blocked_seconds += time.perf_counter() - began


def headers_of(scope: Scope) -> dict[str, bytes]:
    """The request's headers, lower-case names. Of several the first wins; several of baggage are joined."""
    headers: dict[str, bytes] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name == "baggage":
            headers[name] += b"," + value
    return headers


class Bodies:
    """The memory for all bodies of a pod, of requests or of answers, with a common limit."""

    def __init__(self, max_bytes: int = MAX_BODIES_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes_held = 0

    def share(self) -> Share:
        """The share of one request, until it is over."""
        return Share(self)


class Share:
    """The memory of one request; released at the end of the block."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def reserve(self, more: int) -> bool:
        """Reserve so many bytes more; whether they are within the limit. A small body nearly always is."""
        self._size += more
        self._bodies.bytes_held += more
        beyond = self._bodies.bytes_held - self._bodies.max_bytes
        return beyond <= 0 or (self._size <= SMALL_BYTES and beyond <= MAX_SMALL_BYTES)

    def claim(self, more_bytes: int) -> None:
        """Reserve so many bytes more. Raises Overloaded."""
        if not self.reserve(more_bytes):
            raise Overloaded()

    def release(self) -> None:
        self._bodies.bytes_held -= self._size
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


async def read_body(headers: Mapping[str, bytes], receive: Receive, max_bytes: int, share: Share) -> bytes:
    """The whole body. Raises CallerError (413, 415, 408, 503) or ClientGone.

    While the body arrives, the request takes no place among those in progress, so that slow senders do not block
    others.
    """
    encoding = headers.get("content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        await _discard(receive)
        raise CallerError(415, "unsupported_encoding", "compressed requests are not supported: send plain JSON")
    announced = headers.get("content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        await _discard(receive)
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the caller disconnected while sending")
                piece = message.get("body", b"")
                size += len(piece)
                room = share.reserve(len(piece))
                if size > max_bytes or not room:
                    break
                pieces.append(piece)
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError as error:
        raise CallerError(408, "request_timeout", f"the request did not arrive within {BODY_SECONDS} s") from error
    pieces.clear()
    share.release()
    await _discard(receive)
    raise _too_large(max_bytes) if size > max_bytes else Overloaded()


def _too_large(max_bytes: int) -> CallerError:
    return CallerError(
        413, "request_too_large", f"a request may have at most {max_bytes} bytes; see the gateway's limits"
    )


async def _discard(receive: Receive) -> None:
    """Read the rest of the body, up to a limit."""
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while size < _DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return  # the caller sends slowly; the answer is sent now


async def unless_gone(work: Awaitable[None], receive: Receive, reply: Reply) -> None:
    """Run the work; cancel it if the caller disconnects first, and raise ClientGone."""
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not reply.finished:
            reply.gone = True
            task.cancel()

    watchers: list[asyncio.Task[None]] = []
    timer = asyncio.get_running_loop().call_later(
        WATCH_AFTER_SECONDS, lambda: watchers.append(asyncio.create_task(watch()))
    )
    try:
        await work
    except asyncio.CancelledError:
        if not reply.gone:
            raise  # the process is being stopped
        task.uncancel()
        raise ClientGone("the caller disconnected") from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()
