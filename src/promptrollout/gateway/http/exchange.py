"""Plain ASGI: read a body within bounds, answer once or in pieces, notice a caller who hangs up."""

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
"""A caller who takes nothing for so long has gone."""
BODY_SECONDS: Final = 60.0
"""A request must be here within this time."""
WATCH_AFTER_SECONDS: Final = 0.05
"""A request that is over sooner is not watched for its caller's hanging up: that takes a task of its own."""
MAX_BODIES_BYTES: Final = 128 * 1024 * 1024
"""Of the bodies of all requests under way, those that are not whole yet among them: a pod has 512 MiB by default."""
MAX_ANSWERS_BYTES: Final = 64 * 1024 * 1024
"""Of the answers that are read in whole: parsed they take several times as much."""
SMALL_BYTES: Final = 64 * 1024
"""A body up to here is read where larger ones are refused,"""
MAX_SMALL_BYTES: Final = 32 * 1024 * 1024
"""until so much is held beyond the bound: thousands of connections are as many small bodies."""
# a refused body is read to its end within these bounds: many clients cannot read an answer before they have sent all
_DISCARD_BYTES: Final = 64 * 1024 * 1024
_DISCARD_SECONDS: Final = 5.0
_NOT_IN_A_HEADER: Final = bytes({*range(32), 127} - {9})


class Reply:
    """The answer to one request; the status line is sent once."""

    def __init__(self, send: Send, *, last: bool = False) -> None:
        self._send = send
        self._last = last
        """The last one on its connection."""
        self.begun = False
        self._streams = False
        """The body comes in pieces."""
        self.finished = False
        self.gone = False
        """The caller hung up, or takes nothing any more."""
        self.blocked_seconds = 0.0
        """How long the caller made us wait for taking what was sent."""

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Everything at once."""
        await self.begin(status, {**headers, "content-length": str(len(body))})
        await self.end(body)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head. Raises ValueError for one that cannot be sent; another one can be then."""
        # a provider's bytes go on as they came: so its client made texts of them, whatever they mean
        raw = [(name.encode("latin-1"), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()]
        if self._last:
            raw.append((b"connection", b"close"))
        # the server finds it out too, but only once it takes the head for sent
        values = b"".join([value for _, value in raw])
        if len(values.translate(None, _NOT_IN_A_HEADER)) != len(values):
            raise ValueError(f"a header that cannot be sent: {dict(headers)!r:.1000}")
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def piece(self, body: bytes) -> None:
        """Some of the body, on its way at once. Raises ClientGone for a caller who does not read."""
        self._streams = True
        await self._send_patiently({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """What is left of the body. Raises ClientGone likewise."""
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
    """The request's headers, lower-case names; the first of several wins, but several of baggage are one list."""
    found: dict[str, bytes] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1")
        if name not in found:
            found[name] = value
        elif name == "baggage":
            found[name] += b"," + value
    return found


class Bodies:
    """The bodies that a pod holds, of requests or of their answers: all together have a bound."""

    def __init__(self, max_bytes: int = MAX_BODIES_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes_held = 0

    def share(self) -> Share:
        """Of one request, until it is over."""
        return Share(self)


class Share:
    """What one request has of them; given back at the end of the block."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def reserve(self, more: int) -> bool:
        """Whether the body may go on; a small one always may."""
        self._size += more
        self._bodies.bytes_held += more
        beyond = self._bodies.bytes_held - self._bodies.max_bytes
        return beyond <= 0 or (self._size <= SMALL_BYTES and beyond <= MAX_SMALL_BYTES)

    def claim(self, more_bytes: int) -> None:
        """`take` so much more. Raises Overloaded."""
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

    While it comes the request takes no place among those at work, so that who sends slowly keeps nobody from being
    answered.
    """
    encoding = headers.get("content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        await _discard(receive)
        raise CallerError(415, "unsupported_encoding", "compressed requests are not taken: send plain JSON")
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
                    raise ClientGone("the caller hung up while sending")
                piece = message.get("body", b"")
                size += len(piece)
                room = share.reserve(len(piece))
                if size > max_bytes or not room:
                    break
                pieces.append(piece)
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError as error:
        raise CallerError(408, "request_timeout", f"the request was not here within {BODY_SECONDS} s") from error
    pieces.clear()
    share.release()
    await _discard(receive)
    raise _too_large(max_bytes) if size > max_bytes else Overloaded()


def _too_large(max_bytes: int) -> CallerError:
    return CallerError(413, "request_too_large", f"a request may have {max_bytes} bytes; see the gateway's limits")


async def _discard(receive: Receive) -> None:
    """Read what is still being sent, up to a bound."""
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while size < _DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return  # the caller sends slowly; the answer goes out now


async def unless_gone(work: Awaitable[None], receive: Receive, reply: Reply) -> None:
    """Do the work; cancel it when the caller hangs up first. Raises ClientGone then."""
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
        raise ClientGone("the caller hung up") from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()
