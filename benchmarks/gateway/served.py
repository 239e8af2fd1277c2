"""What is measured, each as a process of its own on one core: our gateway, and a bare proxy as the floor.

`python -m benchmarks.gateway.served gateway|floor PROVIDER_URL [ROLLOUTS]` prints the address of its serving port and,
of the gateway, that of its admin port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop

from promptrollout.api.networks import Networks
from promptrollout.gateway.process import Gateway, Settings, collect_seldom, server_of
from promptrollout.listen import listening_socket

LOOPBACK = Networks.of(["127.0.0.0/8"])
SYSTEM = "You are the support assistant of a shop. Answer in one short sentence and never promise a refund. " * 8


def arm(digest: str, provider_url: str) -> dict[str, Any]:
    return {
        "version": f"support-{digest[:10]}",
        "digest": f"sha256:{digest}",
        "prompt": {
            "providerRef": {"name": "stub"},
            "model": "stub",
            "messages": [{"role": "system", "content": SYSTEM + "The plan is {{ plan | default('free') }}."}],
            "parameters": {"temperature": "0.2"},
        },
        "provider": {
            "name": "stub",
            "baseURL": f"{provider_url}/v1",
            "price": {"model": "stub", "inputPerMillionUsd": "1", "outputPerMillionUsd": "4"},
        },
    }


def delivery(number: int, provider_url: str) -> dict[str, Any]:
    """A canary at 10 %, as it stands in the API server."""
    return {
        "formatVersion": 1,
        "gateway": "bench",
        "rolloutUID": f"uid-{number}",
        "sequence": 1,
        "weight": 10,
        "salt": f"salt-{number}",
        "responseKey": f"{number:064x}",
        "shardMetrics": ["promptrollout_shard_requests_total", "promptrollout_shard_errors_total"],
        "stable": arm(f"{number:032x}" + "a" * 32, provider_url),
        "canary": arm(f"{number:032x}" + "b" * 32, provider_url),
    }


async def gateway(provider_url: str, rollouts: int) -> None:
    with tempfile.TemporaryDirectory() as state:
        settings = Settings(
            "bench",
            "default",
            "pod",
            Path(state),
            Path(state),
            networks=LOOPBACK,
        )
        found = Gateway(settings)
        for number in range(rollouts):
            await found.registry.apply(f"app-{number}", delivery(number, provider_url))
        apps = found.serving_app, found.admin_app
        sockets = [listening_socket("127.0.0.1", 0) for _ in apps]
        print(*(f"http://127.0.0.1:{each.getsockname()[1]}" for each in sockets), flush=True)
        serving = (server_of(app, 1).serve([each]) for app, each in zip(apps, sockets, strict=True))
        await asyncio.gather(*serving)


class Floor:
    """The least that a proxy in this stack does: parse, put a prompt in front, send on, hand back."""

    def __init__(self, provider_url: str) -> None:
        self._url = f"{provider_url}/v1/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
        body = orjson.loads(b"".join(pieces))
        body["messages"] = [{"role": "system", "content": SYSTEM}, *body["messages"]]
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=orjson.dumps(body), headers=headers) as answer:
            kind = answer.headers["content-type"].encode()
            await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def floor(provider_url: str) -> None:
    listener = listening_socket("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await server_of(Floor(provider_url), 1).serve([listener])


def free_port() -> int:
    """For a process that opens its port itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    what, provider_url = sys.argv[1:3]
    collect_seldom()  # of the floor too
    work = gateway(provider_url, int(sys.argv[3])) if what == "gateway" else floor(provider_url)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
