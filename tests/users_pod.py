"""Simulated users inside the cluster, in a pod of the project's image: prints what they saw as JSON, once a second.

Arguments: the gateway's Service, the rollout, and requests per second. `tests/users.py` makes the pod.

The traffic generator accepts loopback addresses only, so a forwarder leads from there to the gateway's Service, whose
name the cluster's DNS resolves for each connection. Each request has a connection of its own, so that every one that
is not answered is a loss: who keeps connections may use one that its server is just closing, and has to try again.
"""

import asyncio
import sys
from collections import Counter

import orjson

from promptrollout.sandbox.traffic import Traffic

_PORT = 8080
_UNREACHABLE: Counter[str] = Counter()
"""Connections that the Service's address did not take; the user saw a ServerDisconnectedError."""


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, byte by byte, until either side ends it."""
    try:
        answers, requests = await asyncio.open_connection(sys.argv[1], 80)
    except OSError as error:
        _UNREACHABLE[type(error).__name__] += 1
        writer.close()
        return
    await asyncio.gather(copy(reader, requests), copy(answers, writer))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass  # the user sees it too, and counts it
    finally:
        writer.close()


async def main() -> None:
    url, rate = f"http://127.0.0.1:{_PORT}", float(sys.argv[3])
    async with await asyncio.start_server(forward, "127.0.0.1", _PORT):
        headers = {"connection": "close"}
        variables = {"company": "Acme"}
        users = Traffic(url, sys.argv[2], requests_per_second=rate / 5, headers=headers, variables=variables)
        async with users:
            await asyncio.sleep(5)  # pods that never answered yet are slow on a busy machine
            users.requests_per_second = rate
            while True:
                await asyncio.sleep(1)
                stats = users.stats()
                stats.failures.update(_UNREACHABLE)
                print(orjson.dumps(stats.as_json()).decode(), flush=True)


asyncio.run(main())
