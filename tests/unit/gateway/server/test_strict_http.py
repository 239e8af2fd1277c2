"""HTTP over bare sockets against the server as the process starts it: what could be smuggled, and what holds on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from promptrollout.gateway.http.exchange import Receive, Scope, Send
from promptrollout.gateway.server import strict_http
from tests.unit.gateway.live import listening, say

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", host: bytes = b"Host: a", version: bytes = b"1.1") -> bytes:
    lines = [b"POST /a HTTP/" + version, *([host] if host else []), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Echo:
    """Answers with the path and remembers whole requests."""

    def __init__(self) -> None:
        self.whole: list[tuple[str, bytes]] = []
        self.pause = asyncio.Event()
        self.pause.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.whole.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"do", "more_body": True})
        await self.pause.wait()
        await send({"type": "http.response.body", "body": b"ne"})


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def port(echo: Echo) -> AsyncIterator[int]:
    async with listening(echo) as number:
        yield number


REFUSED = {
    "length and chunked": post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "chunked and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n" + HIDDEN),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 37", body=b"abc" + HIDDEN),
    "the same length twice": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "a list of lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "a length with a plus": post(b"Content-Length: +3", body=b"abc"),
    "a negative length": post(b"Content-Length: -3", body=b"abc"),
    "a hexadecimal length": post(b"Content-Length: 0x3", body=b"abc"),
    "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999", body=b"abc"),
    "two numbers": post(b"Content-Length: 3 4", body=b"abc"),
    "space before the colon": post(b"Content-Length : 3", body=b"abc"),
    "chunked, space before the colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "an encoding that ends in chunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + HIDDEN),
    "identity": post(b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + HIDDEN),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + HIDDEN),
    "two encodings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + HIDDEN),
    "chunked in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN, version=b"1.0"),
    "folded encoding": post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
    "folded header": post(b"X-A: b\r\n c"),
    "a header that begins with space": post(b" X-A: b"),
    "bare LF": b"GET /a HTTP/1.1\nHost: a\n\n",
    "one bare LF": b"GET /a HTTP/1.1\r\nHost: a\nX-B: c\r\n\r\n",
    "bare LF at the end": b"GET /a HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR": b"GET /a HTTP/1.1\r\nHost: a\rX-B: c\r\n\r\n",
    "NUL": post(b"X-B: c\x00d"),
    "control character": post(b"X-B: c\x01d"),
    "chunk extension with LF": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "chunk size 0x3": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size 0_3": CHUNKED + b"0_3\r\nabc\r\n0\r\n\r\n",
    "chunk size +3": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "chunk size -3": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk size, space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "space, chunk size": CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
    "chunks with LF": CHUNKED + b"3\nabc\n0\n\n",
    "chunk with LF after its data": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"3\r\nabcXX0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"FFFFFFFFFFFFFFFF3\r\nabc\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "length as a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    "no host": post(host=b""),
    "two hosts": post(b"Host: b"),
    "two authorizations": post(b"Authorization: Bearer a", b"Authorization: Bearer b"),
    "HTTP/0.9": b"GET /a\r\n\r\n",
    "HTTP/2.0": b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.10": b"GET /a HTTP/1.10\r\nHost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "space in the method": b"GE T /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "space in the URL": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "control character in the URL": b"GET /a\x01b HTTP/1.1\r\nHost: a\r\n\r\n",
    "bracket in a name": post(b"X(a): b"),
    "no name": post(b": b"),
    "no colon": post(b"abc"),
    "tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "upgrade with a body": post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc" + HIDDEN),
    "upgrade": b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + HIDDEN,
    "many headers": post(*(b"x-%d: a" % n for n in range(200))),
    "a long header": post(b"X: " + b"a" * 100_000),
    "a header without an end": b"GET /a HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000,
    "a long URL": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "garbage": bytes(range(256)) * 4,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
}


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED.keys())
async def test_refused_and_closed(payload: bytes, port: int, echo: Echo) -> None:
    """In one piece and in two: the application sees no whole request, not even a hidden one."""
    middle = len(payload) // 2
    for pieces in (payload,), (payload[:middle], payload[middle:]):
        answer, closed = await say(port, *pieces, seconds=2)
        assert closed
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] in (b"400", b"431")
        assert b"connection: close" in head
        assert answer.count(b"HTTP/1.1 4") == 1
        assert orjson.loads(body)["error"]["type"] == "invalid_request_error"
    assert echo.whole == []


@pytest.mark.parametrize(
    ("payload", "whole"),
    [
        (post(b"Content-Length: 3", body=b"abc"), [("/a", b"abc")]),
        (post(b"content-length:3", body=b"abc"), [("/a", b"abc")]),
        (CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", [("/a", b"abc0123456789")]),
        (CHUNKED + b"3;name=value\r\nabc\r\n0\r\nX-Trailer: a\r\n\r\n", [("/a", b"abc")]),
        (post(b"Transfer-Encoding: Chunked", body=b"0\r\n\r\n"), [("/a", b"")]),
        (post(b"Content-Length: 3", body=b"abc") + HIDDEN, [("/a", b"abc"), ("/hidden", b"")]),
        (post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN), [("/a", HIDDEN)]),
        (post("X-Name: Zoë".encode()), [("/a", b"")]),
        (post(b"X-Tab: a\tb"), [("/a", b"")]),
        (b"\r\n" + HIDDEN, [("/hidden", b"")]),
    ],
)
async def test_what_is_no_trick_is_answered(
    payload: bytes, whole: list[tuple[str, bytes]], port: int, echo: Echo
) -> None:
    answer, closed = await say(port, payload)
    assert (answer.count(b"HTTP/1.1 200"), closed) == (len(whole), False)
    assert echo.whole == whole


@pytest.mark.parametrize("cut", [1, 20, 45, 60, 70])
async def test_a_request_in_two_pieces_is_one(cut: int, port: int, echo: Echo) -> None:
    payload = post(b"Content-Length: 30", body=b"x" * 30)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(payload[:cut])
    await asyncio.sleep(0.02)
    writer.write(payload[cut:])
    assert b"200" in await reader.readline()
    assert echo.whole == [("/a", b"x" * 30)]
    writer.close()


async def test_a_bad_request_behind_a_good_one_does_not_answer_in_its_middle(port: int, echo: Echo) -> None:
    echo.pause.clear()
    answer, closed = await say(port, post(b"Content-Length: 3", body=b"abc") + b"GE T / HTTP/1.1\r\n\r\n", seconds=2)
    assert closed
    assert answer.count(b"HTTP/1.1") <= 1
    assert b"invalid_http" not in answer or b"200" not in answer
    echo.pause.set()


async def test_slow_heads_are_cut_off_and_slow_answers_are_not(
    port: int, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_http, "HEAD_SECONDS", 0.15)
    assert await say(port, b"", seconds=2) == (b"", True)
    answer, closed = await say(port, b"GET /a HTTP/1.1\r\nHost:", seconds=2)
    assert closed
    assert answer.startswith(b"HTTP/1.1 408 ")
    echo.pause.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HIDDEN)
    await asyncio.sleep(0.4)
    echo.pause.set()
    assert (await reader.read(4096)).endswith(b"do")
    assert await reader.read(4096) == b"ne"
    await asyncio.sleep(0.4)  # idle between two requests: that is keep-alive
    writer.write(HIDDEN)
    assert b"200" in await reader.readline()
    writer.close()


async def test_a_refused_request_whose_body_does_not_come_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_http, "BODY_SECONDS", 0.1)

    class Full(Echo):
        def overloaded(self) -> int:
            return 1

    async with listening(Full()) as full:
        answer, closed = await say(full, post(b"content-length: 10", body=b"x"), seconds=2)
        assert (answer, closed) == (b"", True)
        answer, closed = await say(full, post(b"content-length: 1", body=b"x"), seconds=0.3)
        assert (answer.split()[1], closed) == (b"503", False), "one that is whole keeps it"
