"""Simulated users inside the cluster, in a pod of the project's image: prints what they saw as JSON, once a second.

The traffic generator accepts loopback addresses only, so a forwarder leads from there to the gateway's Service, whose
name the cluster's DNS resolves for each connection.
"""

import asyncio
import sys

import orjson

from promptrollout.sandbox.traffic import Traffic

_PORT = 8080


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, byte by byte, until either side ends it."""
    try:
        answers, requests = await asyncio.open_connection(sys.argv[1], 80)
    except OSError:
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
    url, rate = f"http://127.0.0.1:{_PORT}", float(sys.argv[2])
    async with await asyncio.start_server(forward, "127.0.0.1", _PORT):
        users = Traffic(url, "support-assistant", requests_per_second=rate, variables={"company": "Acme"})
        async with users:
            while True:
                await asyncio.sleep(1)
                print(orjson.dumps(users.stats().as_json()).decode(), flush=True)


asyncio.run(main())
