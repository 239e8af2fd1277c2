"""`make bench-gateway`: the gateway beside a bare proxy and LiteLLM, on one core, with a model that costs nothing."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import dataclass

import httpx

from benchmarks.gateway import litellm
from benchmarks.gateway.parts import page_of_metrics, parts
from benchmarks.gateway.run import Load, Served, call, question, served, stub
from benchmarks.report import Report

SECONDS = 4.0
ROUNDS = 3
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"word " * 80 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":80,"total_tokens":180}}'
)


def median(loads: list[Load], name: str) -> float:
    return statistics.median(getattr(load, name) for load in loads)


@dataclass(frozen=True)
class Capacity:
    per_core: float
    """Requests a second, by the CPU that each takes: what a core of its own would do."""
    rate: float
    """Requests a second that were answered, on whatever share of the core the neighbours left."""


def saturated(report: Report, targets: dict[str, Served], key: str) -> dict[str, Capacity]:
    """What each target can do, in turns so that all meet the same neighbours."""
    loads: dict[str, list[Load]] = {name: [] for name in targets}
    for _ in range(ROUNDS):
        for name, target in targets.items():
            loads[name].append(call(target, seconds=SECONDS, key=key if name == "LiteLLM" else ""))
    found = {}
    for name, each in loads.items():
        cpu_us = median(each, "cpu_us")
        found[name] = Capacity(1e6 / cpu_us if cpu_us else 0.0, median(each, "rate"))
        report.row(
            what=f"{name}, saturated by 32 callers",
            rate=median(each, "rate"),
            cpu_us=cpu_us,
            rate_per_core=found[name].per_core,
            p50_ms=1e3 * median(each, "p50"),
            p99_ms=1e3 * median(each, "p99"),
        )
    return found


def half_loaded(
    report: Report, direct: Served, targets: dict[str, Served], capacities: dict[str, Capacity], key: str
) -> None:
    """What a request takes longer than without a proxy, at half of what each did just now; LiteLLM's work for all of
    them, so that they compare on the same."""
    found: dict[str, float] = {}
    loads = {name: [(name, capacity.rate / 2)] for name, capacity in capacities.items()}
    if "LiteLLM" in capacities:
        for name in ("bare proxy", "ours"):
            loads[name].append((f"{name}, at LiteLLM's load", capacities["LiteLLM"].rate / 2))
    for name, what, rate in [(name, *one) for name, each in loads.items() for one in each]:
        target = targets[name]
        own = key if name == "LiteLLM" else ""
        pairs = [
            (call(direct, seconds=SECONDS, rate=rate), call(target, seconds=SECONDS, rate=rate, key=own))
            for _ in range(ROUNDS)
        ]
        added = {
            share: 1e3 * statistics.median(getattr(through, share) - getattr(alone, share) for alone, through in pairs)
            for share in ("p50", "p99")
        }
        found[what] = added["p50"]
        report.row(what=f"{what}, half loaded", rate=rate, added_p50_ms=added["p50"], added_p99_ms=added["p99"])
        if what == "ours":
            report.goal("added p50 at half load", 0.5, added["p50"], unit="ms")
            report.goal("added p99 at half load", 5.0, added["p99"], unit="ms")
    if "LiteLLM" in found:
        share = found["ours, at LiteLLM's load"] / found["LiteLLM"]
        report.goal("added p50 on the same load, over LiteLLM's", 0.1, share)


def streams(report: Report, targets: dict[str, Served], provider: Served) -> None:
    for name in ("bare proxy", "ours"):
        pairs = [
            (
                call(provider, seconds=SECONDS, rate=100, stream=True),
                call(targets[name], seconds=SECONDS, rate=100, stream=True),
            )
            for _ in range(ROUNDS)
        ]
        later = 1e3 * statistics.median(through.first_p50 - alone.first_p50 for alone, through in pairs)
        report.row(what=f"{name}, first chunk later than direct", added_p50_ms=later)
        if name == "ours":
            report.goal("first chunk later than direct, p50", 0.5, later, unit="ms")
    with stub("-chunks", "100", "-pause", "50ms") as url, served("gateway", url, "1") as gateway:
        load = call(gateway, seconds=8.0, conns=500, stream=True)
        report.row(
            what="500 concurrent streams of 100 chunks in 5 s",
            rate=load.rate,
            cpu_us=load.cpu_us,
            p50_ms=1e3 * load.p50,
            p99_ms=1e3 * load.p99,
            failed=load.failed,
        )
        report.goal("failed of 500 concurrent streams", 0, load.failed)


def overloaded(report: Report, targets: dict[str, Served]) -> None:
    """Twice what each does from 64 callers just now, asked by 512."""
    for name in ("bare proxy", "ours"):
        alone = call(targets[name], seconds=SECONDS, conns=64)
        load = call(targets[name], seconds=2 * SECONDS, conns=512, rate=2 * alone.rate)
        kept = load.rate / alone.rate
        figures = {"rate": load.rate, "cpu_us": load.cpu_us, "failed": load.failed, "p99_ms": 1e3 * load.p99}
        report.row(what=f"{name}, at twice its capacity", kept_share=kept, **figures)
        if name == "ours":
            report.goal("goodput lost at twice the capacity", 0.1, max(0.0, 1 - kept))


def scraped(report: Report) -> None:
    with stub() as url:
        for rollouts in (10, 100, 1000):
            with served("gateway", url, str(rollouts)) as gateway:
                call(gateway, seconds=1.0)
                times, sizes, spent = [], [], gateway.cpu_seconds()
                for _ in range(9):
                    before = time.perf_counter()
                    sizes.append(len(httpx.get(f"{gateway.admin}/metrics", timeout=60).content))
                    times.append(1e3 * (time.perf_counter() - before))
                cpu_ms = 1e3 * (gateway.cpu_seconds() - spent) / len(times)
                report.row(
                    what=f"{rollouts} rollouts with canaries",
                    resident_mib=gateway.resident_mib(),
                    metrics_ms=statistics.median(times),
                    metrics_cpu_ms=cpu_ms,
                    metrics_kib=sizes[-1] / 1024,
                )
                if rollouts == 100:
                    report.goal("/metrics at 100 rollouts", 50.0, statistics.median(times), unit="ms")
                    stalled(report, gateway)


def stalled(report: Report, gateway: Served) -> None:
    """The longest that one of a few requests takes, with somebody who scrapes all the time and without."""
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            httpx.get(f"{gateway.admin}/metrics", timeout=60)

    longest: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        longest[False].append(call(gateway, seconds=SECONDS, conns=4, rate=50).longest)
        over.clear()
        scraper = threading.Thread(target=scrape)
        scraper.start()
        longest[True].append(call(gateway, seconds=SECONDS, conns=4, rate=50).longest)
        over.set()
        scraper.join()
    alone, beside = (1e3 * statistics.median(longest[scraped]) for scraped in (False, True))
    report.row(what="longest request, 100 rollouts", max_ms=alone)
    report.row(what="longest request, 100 rollouts, scraped all the time", max_ms=beside)
    report.goal("longest request while scraped, over without", 2.0, beside / alone)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-gateway", description=__doc__)
    parser.add_argument("--without-litellm", action="store_true", help="its environment takes some 700 MB")
    given = parser.parse_args()
    report = Report("gateway")
    for part, microseconds in parts(question(), ANSWER).items():
        report.row(what=f"ours, {part}", cpu_us=microseconds)
    page_ms, block_ms = page_of_metrics(100)
    report.row(what="/metrics, 100 rollouts", metrics_cpu_ms=page_ms, max_ms=block_ms)
    report.goal("CPU of /metrics at 100 rollouts", 50.0, page_ms, unit="ms")
    report.goal("longest that a request waits for /metrics, CPU", 5.0, block_ms, unit="ms")
    with stub() as url, served("floor", url) as floor, served("gateway", url, "10") as ours:
        targets = {"bare proxy": floor, "ours": ours}
        with litellm.served(url, wanted=not given.without_litellm) as other:
            if other is not None:
                targets["LiteLLM"] = other
            direct = Served(0, url)
            capacities = saturated(report, targets, litellm.KEY)
            per_core = capacities["ours"].per_core
            report.goal("CPU of a request, for 3,000 a second and core", 1e6 / 3000, 1e6 / per_core, unit="µs")
            if other is not None:
                share = capacities["LiteLLM"].per_core / per_core
                report.goal("LiteLLM's requests a second and core over ours", 1 / 30, share)
            half_loaded(report, direct, targets, capacities, litellm.KEY)
        streams(report, targets, direct)
        overloaded(report, targets)
    scraped(report)
    report.write()


if __name__ == "__main__":
    main()
