"""Whether a gateway's memory stays flat: a million requests, ten thousand versions, while both come at once."""

from __future__ import annotations

import argparse
import asyncio
import time

import uvloop

from benchmarks.bare import Caller, Load, Running, gateway, request_of
from benchmarks.report import Report
from promptrollout.gateway.metrics.counters import SECONDS_KEPT

PARTS = 10
"""Memory is read after each such part."""
CONNECTIONS = 64
GROWTH_PERCENT = 5.0
"""Since the pod has been up for long enough to forget its first versions: their counters are exported for a while."""
WARM_SECONDS = 1.2 * SECONDS_KEPT


async def asked(pod: Running, count: int, offset: int, load: Load) -> None:
    """So many requests, of as many users."""
    loop = asyncio.get_running_loop()
    numbers = iter(range(offset, offset + count))

    async def one() -> None:
        _, caller = await loop.create_connection(lambda: Caller(load, b""), "127.0.0.1", pod.port)
        for number in numbers:
            caller.request = request_of(f"user-{number}", f"{number} ")
            await caller.ask()
        caller.transport.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


async def swaps(pod: Running) -> int:
    """Of configurations, by the gateway's own metrics; which Prometheus reads meanwhile too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.admin_port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    page = await reader.read()
    writer.close()
    return int(page.split(b"\npromptrollout_gateway_config_swaps_total ")[1].split(b"\n")[0].split(b"\r")[0])


async def benchmark(requests: int, versions: int, per_second: float) -> Report:
    report = Report("memory")
    # as many versions as shall come in the time that the requests take at this rate
    changes = versions / (requests / per_second)
    async with gateway(0.0, changes_per_second=changes) as pod:
        found: list[float] = []
        load = Load()
        load.begin()
        warm: float | None = None
        began = time.monotonic()
        changed = 0
        # a pod under load takes fewer versions than it is sent, so more requests may be needed until it had them all
        while len(found) < PARTS or changed < versions:
            await asked(pod, requests // PARTS, len(found) * requests // PARTS, load)
            load.seconds.clear()
            found.append(pod.memory_mib())
            if warm is None and time.monotonic() - began > WARM_SECONDS:
                warm = found[-1]
            changed = await swaps(pod)
            report.row(
                requests=sum(load.statuses.values()),
                answered=load.statuses[200],
                versions=changed,
                memory_mib=found[-1],
                seconds=time.monotonic() - began,
            )
        load.end()
    grown = None if warm is None else 100 * (found[-1] / warm - 1)
    report.goal(f"growth after the first {WARM_SECONDS:.0f} s", GROWTH_PERCENT, grown, unit="%")
    report.goal("requests that were not answered", 0, sum(load.statuses.values()) - load.statuses[200])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--per-second", type=float, default=5500.0, help="requests that this machine manages")
    options = parser.parse_args()
    uvloop.run(benchmark(options.requests, options.versions, options.per_second)).write()


if __name__ == "__main__":
    main()
