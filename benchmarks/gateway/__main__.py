"""`make bench-gateway`: the gateway beside a bare proxy and LiteLLM, on one core, with a model that costs nothing."""

from __future__ import annotations

import argparse
import statistics
import time

import httpx

from benchmarks.gateway import litellm
from benchmarks.gateway.parts import parts
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


def saturated(report: Report, targets: dict[str, Served], key: str) -> dict[str, float]:
    """Requests a second of one core, in turns so that all meet the same neighbours. CPU decides, not the clock: others
    may use the machine."""
    loads: dict[str, list[Load]] = {name: [] for name in targets}
    for _ in range(ROUNDS):
        for name, target in targets.items():
            loads[name].append(call(target, seconds=SECONDS, key=key if name == "LiteLLM" else ""))
    found = {}
    for name, each in loads.items():
        cpu_us = median(each, "cpu_us")
        found[name] = 1e6 / cpu_us if cpu_us else 0.0
        report.row(
            what=f"{name}, saturated by 32 callers",
            rate=median(each, "rate"),
            cpu_us=cpu_us,
            rate_per_core=found[name],
            p50_ms=1e3 * median(each, "p50"),
            p99_ms=1e3 * median(each, "p99"),
        )
    return found


def half_loaded(report: Report, direct: Served, targets: dict[str, Served], rates: dict[str, float], key: str) -> None:
    """What a request takes longer than without a proxy, at half of what each can do."""
    for name, target in targets.items():
        rate = rates[name] / 2
        own = key if name == "LiteLLM" else ""
        pairs = [
            (call(direct, seconds=SECONDS, rate=rate), call(target, seconds=SECONDS, rate=rate, key=own))
            for _ in range(ROUNDS)
        ]
        added = {
            share: 1e3 * statistics.median(getattr(through, share) - getattr(alone, share) for alone, through in pairs)
            for share in ("p50", "p99")
        }
        report.row(what=f"{name}, at half load", rate=rate, added_p50_ms=added["p50"], added_p99_ms=added["p99"])
        if name == "ours":
            report.goal("added p50 at half load", 0.5, added["p50"], unit="ms")
            report.goal("added p99 at half load", 5.0, added["p99"], unit="ms")


def streams(report: Report, ours: Served, provider: Served) -> None:
    pairs = [
        (
            call(provider, seconds=SECONDS, rate=100, stream=True),
            call(ours, seconds=SECONDS, rate=100, stream=True),
        )
        for _ in range(ROUNDS)
    ]
    later = 1e3 * statistics.median(through.first_p50 - alone.first_p50 for alone, through in pairs)
    report.row(what="ours, first chunk later than direct", added_p50_ms=later)
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


def overloaded(report: Report, ours: Served, rate: float) -> None:
    """Twice what one core can do, from many callers."""
    alone = call(ours, seconds=SECONDS, conns=64)
    load = call(ours, seconds=2 * SECONDS, conns=512, rate=2 * rate)
    report.row(what="ours, at twice its capacity", rate=load.rate, failed=load.failed, p99_ms=1e3 * load.p99)
    report.goal("goodput lost at twice the capacity", 0.1, max(0.0, 1 - load.rate / alone.rate))


def scraped(report: Report) -> None:
    with stub() as url:
        for rollouts in (10, 100, 1000):
            with served("gateway", url, str(rollouts)) as gateway:
                call(gateway, seconds=1.0)
                times, sizes = [], []
                for _ in range(9):
                    before = gateway.cpu_seconds(), time.perf_counter()
                    sizes.append(len(httpx.get(f"{gateway.admin}/metrics", timeout=60).content))
                    times.append(1e3 * (time.perf_counter() - before[1]))
                report.row(
                    what=f"{rollouts} rollouts with canaries",
                    resident_mib=gateway.resident_mib(),
                    metrics_ms=statistics.median(times),
                    metrics_kib=sizes[-1] / 1024,
                )
                if rollouts == 100:
                    report.goal("/metrics at 100 rollouts", 50.0, statistics.median(times), unit="ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-gateway", description=__doc__)
    parser.add_argument("--without-litellm", action="store_true", help="its environment takes some 700 MB")
    given = parser.parse_args()
    report = Report("gateway")
    for part, microseconds in parts(question(), ANSWER).items():
        report.row(what=f"ours, {part}", cpu_us=microseconds)
    with stub() as url, served("floor", url) as floor, served("gateway", url, "10") as ours:
        targets = {"bare proxy": floor, "ours": ours}
        with litellm.served(url, wanted=not given.without_litellm) as other:
            if other is not None:
                targets["LiteLLM"] = other
            direct = Served(0, url)
            rates = saturated(report, targets, litellm.KEY)
            report.goal("1,000 requests a second and core: 3 or more, as its inverse", 1 / 3, 1000 / rates["ours"])
            if other is not None:
                report.goal("LiteLLM's requests a second and core over ours", 1 / 30, rates["LiteLLM"] / rates["ours"])
            half_loaded(report, direct, targets, rates, litellm.KEY)
        streams(report, ours, direct)
        overloaded(report, ours, rates["ours"])
    scraped(report)
    report.write()


if __name__ == "__main__":
    main()
