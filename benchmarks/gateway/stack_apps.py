"""A bare proxy on other servers and clients. Runs in an environment of its own: nothing of the project is imported.

`python stack_apps.py SERVER CLIENT PROVIDER_URL PORT`: parse, put a prompt in front, send on, hand back, as the floor
of `served.py` does.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson

SYSTEM = "You are the support assistant of a shop. Answer in one short sentence and never promise a refund. " * 8
HEADERS = {"content-type": "application/json"}


class Aiohttp:
    def __init__(self, url: str) -> None:
        import aiohttp

        self._url = url
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def ask(self, payload: bytes) -> bytes:
        async with self._session.post(self._url, data=payload, headers=HEADERS) as answer:
            whole: bytes = await answer.read()
            return whole


class Pyreqwest:
    def __init__(self, url: str) -> None:
        from pyreqwest.client import ClientBuilder

        self._url = url
        self._client = ClientBuilder().http1_only().build()

    async def ask(self, payload: bytes) -> bytes:
        request = self._client.post(self._url).headers(HEADERS).body_bytes(payload).build()
        answer = await request.send()
        return bytes(await answer.bytes())


CLIENTS = {"aiohttp": Aiohttp, "pyreqwest": Pyreqwest}


def with_prompt(payload: bytes) -> bytes:
    body = orjson.loads(payload)
    body["messages"] = [{"role": "system", "content": SYSTEM}, *body["messages"]]
    return orjson.dumps(body)


class Asgi:
    def __init__(self, client: str, url: str) -> None:
        self._kind, self._url = CLIENTS[client], url
        self._client: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self._client = self._client or self._kind(self._url)
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        answer = await self._client.ask(with_prompt(b"".join(pieces)))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Rsgi:
    def __init__(self, client: str, url: str) -> None:
        self._kind, self._url = CLIENTS[client], url
        self._client: Any = None

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        self._client = self._client or self._kind(self._url)
        answer = await self._client.ask(with_prompt(await protocol()))
        protocol.response_bytes(200, [("content-type", "application/json")], answer)


def main() -> None:
    server, client, url, port = sys.argv[1:5]
    url = f"{url}/v1/chat/completions"
    print(f"http://127.0.0.1:{port}", flush=True)
    if server == "uvicorn":
        import uvicorn

        settings = {"log_level": "error", "access_log": False, "lifespan": "off", "loop": "uvloop", "http": "httptools"}
        uvicorn.run(Asgi(client, url), host="127.0.0.1", port=int(port), **settings)  # type: ignore[arg-type]
        return
    from granian.constants import Interfaces
    from granian.server.embed import Server

    rsgi = server == "granian RSGI"
    interface = Interfaces.RSGI if rsgi else Interfaces.ASGINL
    app = Rsgi(client, url) if rsgi else Asgi(client, url)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Server(app, address="127.0.0.1", port=int(port), interface=interface, log_enabled=False).serve())


if __name__ == "__main__":
    main()
