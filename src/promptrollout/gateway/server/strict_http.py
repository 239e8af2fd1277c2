"""HTTP/1.1, read strictly: a request that a proxy in front might read differently is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from promptrollout.gateway.http.errors import Overloaded
from promptrollout.gateway.http.exchange import BODY_SECONDS
from promptrollout.gateway.server.error_format import ErrorFormat, error_format_of

MAX_HEAD_BYTES: Final = 64 * 1024
"""Request line and headers together, without what the parser strips."""
MAX_HEADERS: Final = 128
HEAD_SECONDS: Final = 20.0
"""From a request's first byte to the end of its headers; also from the connection to its first byte."""
MAX_CONNECTIONS: Final = 8192
"""An idle one takes about 13 KiB: the idle connections of many proxies fit, a flood does not."""
LINGER_SECONDS: Final = 1.0
"""After a refusal, whatever else is sent is read and dropped, until the caller closes the connection."""
SHED_SECONDS: Final = 1.0
"""After a request was refused because the pod is full, its connection is read again after so long, as if the next
request waited in the queue. Not later, since a proxy in front may send other callers' requests on it."""

# headers that may come only once: of two, one server would use the first and another the last
_SINGLE: Final = frozenset([b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type"])


class Refused(Exception):
    """The request violates HTTP, or a limit on its head."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class StrictProtocol(HttpToolsProtocol):
    """uvicorn's connection with limits on a request's head. A refused request closes its connection, since it is not
    known where the next one would begin."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url, self.headers = b"", []  # uvicorn sets them only when the first request begins
        self._head_bytes = 0
        self._head_begun = False
        self._in_body = False
        self._refused: Refused | None = None
        self._overloaded: Callable[[], int] = getattr(self.app, "overloaded", _never)
        self._shedding = 0
        """Retry-After of the request that is refused as soon as its body has arrived; 0: none is."""
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(_closing(_overloaded_answer(error_format_of("", []), 1)))
            transport.close()
            self._refused = Refused(503, "overloaded", "")
            return
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:
            return  # the answer was sent, and the connection is closing
        if not self._in_body:
            # checked before the parser, which buffers an unfinished line without limit
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and b"\r\n\r\n" not in data:
                self._refuse(_TOO_LARGE)
                return
        super().data_received(data)
        if self._head_begun and self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_begun = True

    def on_headers_complete(self) -> None:
        self._check_head()
        self._head_begun, self._in_body = False, True
        self._head_bytes = 0
        self._stop_timer()
        if (self.cycle is None or self.cycle.response_complete) and not self.pipeline:
            self._shedding = self._overloaded()
        if self._shedding:  # no task is started and the body is dropped: a refusal must cost next to nothing
            self._head_timer = self.loop.call_later(BODY_SECONDS, self.transport.close)
            if self.expect_100_continue:
                self._shed()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._shedding:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._shedding:
            self._shed()
        else:
            super().on_message_complete()

    def _shed(self) -> None:
        """Answer 503 and keep the connection: opening a new one costs more."""
        seconds, self._shedding = self._shedding, 0
        self._stop_timer()
        if self.transport.is_closing():
            return
        answer = _overloaded_answer(self._error_format(), seconds)
        if self.parser.should_keep_alive() and not self._in_body:
            self.transport.write(answer)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            # a caller that does not wait for Retry-After must not slow the answers to others
            self.flow.pause_reading()
            self.loop.call_later(SHED_SECONDS, self.flow.resume_reading)
        else:
            self._refused = Refused(503, "overloaded", "")
            self.transport.write(_closing(answer))
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer with the parser's reason or ours, in the format of every other error."""
        self._refuse(self._refused or Refused(400, "invalid_http", "this is not a valid HTTP/1.1 request"))

    def _check_head(self) -> None:
        """Check what the parser does not. The parser itself refuses a content-length that comes twice or with a
        transfer-encoding, folded lines, line ends without CR, control characters and malformed chunk sizes."""
        headers = dict(self.headers)
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._reject(_TOO_LARGE)
        if len(headers) < len(self.headers):
            names = [name for name, _ in self.headers if name in _SINGLE]
            if twice := {name.decode() for name in names if names.count(name) > 1}:
                self._reject(
                    Refused(400, "invalid_http", f"headers that may come only once: {', '.join(sorted(twice))}")
                )
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._reject(Refused(400, "invalid_http", "this port supports only HTTP/1.1"))
        if self.parser.should_upgrade():
            # the parser would read the body as the other protocol's
            message = "this port supports HTTP/1.1 without Upgrade; with Java's HttpClient set version(HTTP_1_1)"
            self._reject(Refused(400, "upgrade_not_supported", message))
        if b"host" not in headers and version == "1.1":
            self._reject(Refused(400, "invalid_http", "the header host is missing"))
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None and (
            encoding.lower() != b"chunked" or b"content-length" in headers or version != "1.1"
        ):
            self._reject(
                Refused(
                    400, "invalid_http", "transfer-encoding must be chunked, without content-length, and with HTTP/1.1"
                )
            )

    def _reject(self, problem: Refused) -> None:
        """Stop the parser. It drops what its callbacks raise, so the reason is kept here."""
        self._refused = problem
        raise problem

    def _refuse(self, problem: Refused) -> None:
        self._refused = problem
        self._stop_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline or not cycle.more_body:
                # in the middle of an answer, this one would be taken for a part of it
                self.transport.close()
                return
            cycle.disconnected = True  # its body is what is wrong: it gets this answer and no other
            cycle.message_event.set()
        body = self._error_format().error_body(problem.status, str(problem), problem.code)
        self.transport.write(_whole(problem.status, {"connection": "close"}, body))
        # if it were closed at once, further input would reset the connection before the caller reads the answer
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _error_format(self) -> ErrorFormat:
        """The error format of the request's path, as far as that is known."""
        return error_format_of(self.url.partition(b"?")[0].decode("latin-1"), self.headers)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._head_begun:
            self.transport.close()  # a connection without a request
        elif not self.transport.is_closing():
            self._refuse(Refused(408, "request_timeout", f"the headers did not arrive within {HEAD_SECONDS:.0f} s"))

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _never() -> int:
    return 0


def _whole(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """An answer as bytes."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return STATUS_LINE[status] + head.encode() + length.encode() + body


def _closing(answer: bytes) -> bytes:
    """The same answer, if it is the last one on its connection."""
    return answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


@lru_cache(maxsize=256)
def _overloaded_answer(error_format: ErrorFormat, seconds: int) -> bytes:
    error = Overloaded(seconds)
    return _whole(error.status, error.headers, error_format.error_body(error.status, str(error), error.code))


_TOO_LARGE: Final = Refused(
    431, "headers_too_large", f"request line and headers may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
)
