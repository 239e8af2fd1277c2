"""What the operator costs: CPU, memory and writes with many rollouts, at rest and in the middle of canaries."""

from __future__ import annotations

import time

from benchmarks.cluster import Cluster, cpu_seconds, memory_mib, rollout, running
from benchmarks.report import Report

COUNTS = (100, 1_000)
INTERVAL_SECONDS = 15
STEADY_SECONDS = 60.0
BATCH = 100


def apply_all(cluster: Cluster, count: int, text: str) -> None:
    names = [f"app-{number:04d}" for number in range(count)]
    for start in range(0, count, BATCH):
        batch = names[start : start + BATCH]
        cluster.apply(*(rollout(name, f"{text} {name}", interval_seconds=INTERVAL_SECONDS) for name in batch))


def reached(cluster: Cluster, count: int, stage: str, weight: int) -> bool:
    items = cluster.get("promptrollouts")["items"]
    there = [i for i in items if i.get("status", {}).get("stage") == stage and i["status"].get("weight") == weight]
    return len(there) >= count


def measure(cluster: Cluster, report: Report, count: int, what: str) -> float:
    """Steady state: returns writes a minute."""
    time.sleep(2 * INTERVAL_SECONDS)
    pid, writes = cluster.operator_pid(), cluster.writes()
    cpu, started = cpu_seconds(pid), time.monotonic()
    time.sleep(STEADY_SECONDS)
    seconds = time.monotonic() - started
    per_minute = (cluster.writes() - writes) * 60 / seconds
    report.row(
        rollouts=count,
        state=what,
        operator_cpu_percent=100 * (cpu_seconds(pid) - cpu) / seconds,
        operator_mib=memory_mib(pid),
        writes_per_minute=per_minute,
    )
    return per_minute


def main() -> None:
    report = Report("operator")
    with running(scrape_interval_seconds=5.0) as cluster:
        cluster.scale(1)
        at_rest: float | None = None
        for count in COUNTS:
            started = time.monotonic()
            apply_all(cluster, count, "first")
            cluster.wait("all serving", lambda n=count: reached(cluster, n, "Idle", 100), 900)
            print(f"  {count} rollouts serve after {time.monotonic() - started:.0f} s", flush=True)
            per_minute = measure(cluster, report, count, "idle")
            if at_rest is None:
                at_rest = per_minute
            started = time.monotonic()
            apply_all(cluster, count, "second")
            cluster.wait("all canaries", lambda n=count: reached(cluster, n, "Stepping", 10), 900)
            print(f"  {count} canaries are in their first step after {time.monotonic() - started:.0f} s", flush=True)
            measure(cluster, report, count, "progressing")
            apply_all(cluster, count, "first")
            cluster.wait("all cancelled", lambda n=count: reached(cluster, n, "Idle", 100), 900)
        report.goal("writes a minute at rest with 100 rollouts", 0, at_rest)
    report.write()


if __name__ == "__main__":
    main()
