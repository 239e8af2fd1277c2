"""A pod that ends answers what comes on connections that callers have pooled. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from promptrollout.gateway import process
from promptrollout.gateway.process import Gateway, Settings, serve

REQUEST = b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"


class Running:
    """The process' two servers; `stop` is what SIGTERM sets."""

    def __init__(self, port: int, stop: asyncio.Event, ended: asyncio.Task[None]) -> None:
        self.port, self.stop, self.ended = port, stop, ended


@asynccontextmanager
async def running(folder: Path, monkeypatch: pytest.MonkeyPatch, drain_seconds: int) -> AsyncIterator[Running]:
    sockets: list[socket.socket] = []
    listen = process.listening_socket

    def listening(address: str, port: int) -> socket.socket:
        sockets.append(listen(address, port))
        return sockets[-1]

    monkeypatch.setattr(process, "listening_socket", listening)
    monkeypatch.setattr(process, "_POLL_SECONDS", 0.01)
    settings = Settings(
        gateway="default",
        namespace="ns",
        pod="pod",
        state_dir=folder,
        drain_seconds=drain_seconds,
        bind_address="127.0.0.1",
        port=0,
        admin_port=0,
        endpoint_lag_seconds=0,
    )
    stop, source = asyncio.Event(), asyncio.create_task(asyncio.Event().wait())
    gateway = Gateway(settings)
    ended = asyncio.create_task(serve(gateway, stop, source))  # type: ignore[arg-type]
    while not sockets:  # noqa: ASYNC110
        await asyncio.sleep(0)
    try:
        yield Running(sockets[0].getsockname()[1], stop, ended)
        stop.set()
        await ended
    finally:
        source.cancel()
        ended.cancel()
        await asyncio.gather(source, ended, return_exceptions=True)
        await gateway.serving_app.close()
        await gateway.providers.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))
    return head


async def test_a_request_on_an_idle_connection_is_answered_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(20), running(tmp_path, monkeypatch, drain_seconds=600) as pod:
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
        writer.write(REQUEST)
        assert b"connection: close" not in await answer(reader)
        pod.stop.set()
        # it looks every 0.1 s whether it is to end, and then would close what is idle
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        writer.write(REQUEST)
        head = await answer(reader)
        assert head.startswith(b"http/1.1 200")
        assert b"connection: close" in head
        assert await reader.read() == b""
        await pod.ended  # at once: nobody is connected any more
        writer.close()


async def test_a_caller_who_asks_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(20), running(tmp_path, monkeypatch, drain_seconds=1) as pod:
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
        writer.write(REQUEST)
        await answer(reader)
        pod.stop.set()
        assert await reader.read() == b""
        await pod.ended
        writer.close()
