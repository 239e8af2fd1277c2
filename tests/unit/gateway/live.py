"""A gateway's ports as its process opens them, on loopback; and requests over bare sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from promptrollout.gateway.process import server_of


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    """The port on which the application answers."""
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, each answer waits 40 ms
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    server = server_of(app, 1)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    try:
        yield listener.getsockname()[1]
    finally:
        # uvicorn's own end sleeps for 0.1 s
        for open_port in server.servers:
            open_port.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
        listener.close()


async def say(port: int, *pieces: bytes, seconds: float = 0.2) -> tuple[bytes, bool]:
    """What comes back for these pieces, and whether the server then closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer, closed = b"", False
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005 if len(pieces) > 1 else 0)
        async with asyncio.timeout(seconds):
            while piece := await reader.read(65536):
                answer += piece
        closed = True
    except TimeoutError:
        pass
    except ConnectionError:
        closed = True
    finally:
        writer.close()
    return answer, closed
