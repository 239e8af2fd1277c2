"""`make bench-stacks`: what a bare proxy takes of the processor on other servers and clients than ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.gateway.run import SERVED_CORE, Served, call, environment, process, stub
from benchmarks.gateway.served import free_port
from benchmarks.report import Report

SECONDS = 2.0
ROUNDS = 5
APPS = Path(__file__).parent / "gateway" / "stack_apps.py"
STACKS = [
    (server, client) for server in ("uvicorn", "granian ASGI", "granian RSGI") for client in ("aiohttp", "pyreqwest")
]


@contextmanager
def served(server: str, client: str, provider_url: str) -> Iterator[Served]:
    python = environment("stacks") / "bin" / "python"
    port = free_port()
    with process([str(python), str(APPS), server, client, provider_url, str(port)], SERVED_CORE) as (pid, url):
        time.sleep(1.0)
        yield Served(pid, url)


def main() -> None:
    report = Report("stacks")
    cpu: dict[tuple[str, str], list[float]] = {stack: [] for stack in STACKS}
    rates: dict[tuple[str, str], list[float]] = {stack: [] for stack in STACKS}
    with stub() as url, ExitStack() as stack:
        targets = {each: stack.enter_context(served(*each, url)) for each in STACKS}
        for _ in range(ROUNDS):
            for each, target in targets.items():  # in turns, so that all meet the same neighbours
                load = call(target, seconds=SECONDS)
                cpu[each].append(load.cpu_us)
                rates[each].append(load.rate)
    ours = statistics.median(cpu["uvicorn", "aiohttp"])
    for (server, client), found in cpu.items():
        middle = statistics.median(found)
        report.row(
            server=server,
            client=client,
            cpu_us=middle,
            least_cpu_us=min(found),
            rate=statistics.median(rates[server, client]),
            of_ours=middle / ours,
        )
    report.write()


if __name__ == "__main__":
    main()
