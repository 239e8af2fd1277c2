"""What a gateway still answers when twice as much comes as it can take: with callers who wait as told, and without."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from benchmarks.bare import Load, Running, closed_loop, gateway, open_loop
from benchmarks.report import Report, quantile
from promptrollout.gateway.server.app import Limits

MODEL_SECONDS = 0.02
GOODPUT_SHARE = 0.9


async def measured(
    report: Report, pod: Running, what: str, run: Callable[..., Awaitable[Load]], *arguments: Any, **options: Any
) -> tuple[float, float]:
    """Answers per second, and per second of the gateway's processor time: the second does not mind who else is on
    this machine."""
    cpu: list[float] = []
    load = await run(pod.port, *arguments, watch=lambda: cpu.append(pod.cpu_seconds()), **options)
    answered = load.statuses[200]
    used = cpu[1] - cpu[0]
    report.row(
        what=what,
        answered_per_second=answered / load.ran_seconds,
        answered_per_cpu_second=answered / used,
        cpu_share=used / load.ran_seconds,
        refused_per_second=load.statuses[503] / load.ran_seconds,
        failed=sum(n for status, n in load.statuses.items() if status not in (200, 503)),
        unsent=load.unsent,
        p50_seconds=quantile(load.seconds, 0.5) if load.seconds else None,
        p99_seconds=quantile(load.seconds, 0.99) if load.seconds else None,
    )
    return answered / load.ran_seconds, answered / used


async def benchmark(seconds: float, limits: dict[str, int]) -> Report:
    report = Report("overload")
    async with gateway(MODEL_SECONDS, **limits) as pod:
        await closed_loop(pod.port, 64, 1)
        rate, capacity = await measured(report, pod, "capacity: 256 callers", closed_loop, 256, seconds)
        _, patient = await measured(
            report,
            pod,
            "4,000 callers who wait as told",
            closed_loop,
            4000,
            seconds,
            pause_seconds=1.0,
            warm_seconds=3.0,
        )
        _, steady = await measured(report, pod, "twice the rate, come what may", open_loop, 2 * rate, seconds, 4000)
        again, after = await measured(report, pod, "afterwards: 256 callers", closed_loop, 256, seconds)
    wanted = GOODPUT_SHARE * capacity
    for what, got in (("callers who wait as told", patient), ("callers who do not", steady), ("afterwards", after)):
        report.goal(f"capacity / goodput at overload, {what}", 1 / GOODPUT_SHARE, capacity / got if got else None)
    report.row(what="goal", answered_per_cpu_second=wanted, answered_per_second=again)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row")
    parser.add_argument("--concurrent", type=int, default=Limits.max_concurrent_requests)
    parser.add_argument("--queued", type=int, default=Limits.max_queued_requests)
    options = parser.parse_args()
    limits = {"max_concurrent_requests": options.concurrent, "max_queued_requests": options.queued}
    uvloop.run(benchmark(options.seconds, limits)).write()


if __name__ == "__main__":
    main()
