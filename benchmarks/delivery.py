"""How fast a configuration reaches every gateway pod, and a breach the last of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import httpx

from benchmarks.cluster import Cluster, report_of, rollout, running
from benchmarks.report import Report, quantile
from promptrollout.sandbox.traffic import Traffic

PODS = (2, 10, 40)
WRITES = 40
BREACHES = 5
INTERVAL_SECONDS = 2


async def until_last_pod(addresses: list[str], name: str, sequence: int, started: float) -> float:
    """Seconds from `started` until each pod has reported the sequence."""
    async with aiohttp.ClientSession() as session:

        async def one(address: str) -> None:
            while time.monotonic() - started < 60:
                async with session.get(f"{address}/rollouts", params={"name": name}) as answer:
                    rollouts = (await answer.json())["rollouts"]
                if rollouts and rollouts[0]["sequence"] >= sequence:
                    return
                await asyncio.sleep(0.02)
            raise TimeoutError(f"{address} does not confirm {sequence}")

        await asyncio.gather(*(one(address) for address in addresses))
    return time.monotonic() - started


def deliveries(cluster: Cluster, addresses: list[str], name: str) -> list[float]:
    """Write the delivery again and again (the operator is away) and time the last pod's confirmation."""
    item = cluster.get("promptdelivery", name)
    spec: dict[str, Any] = item["spec"]
    sequence, seconds = int(spec["sequence"]), []
    with cluster.client() as client:
        for _ in range(WRITES):
            sequence += 1
            started = time.monotonic()
            cluster.patch(client, f"promptdeliveries/{name}", {"spec": {"sequence": sequence}})
            seconds.append(asyncio.run(until_last_pod(addresses, name, sequence, started)))
    return seconds


def breaches(cluster: Cluster, addresses: list[str]) -> list[float]:
    """From the end of the interval that shows the breach to weight 0 on the last pod."""
    url = cluster.sandbox.gateway_url("bench", "default")
    client = httpx.Client()
    seconds = []

    async def one(number: int) -> float:
        async with Traffic(url, "breach", users=2_000, requests_per_second=150):
            text = f"bad {number}"
            cluster.apply(rollout("breach", text, interval_seconds=INTERVAL_SECONDS))
            while True:
                reports = [report_of(client, address, "breach") for address in addresses]
                if all(r and r["weight"] > 0 for r in reports):
                    break
                await asyncio.sleep(0.05)
            while True:
                reports = [report_of(client, address, "breach") for address in addresses]
                if all(r and r["weight"] == 0 for r in reports):
                    done = time.time()
                    break
                await asyncio.sleep(0.05)
        status = cluster.get("promptrollout", "breach")["status"]
        return float(done - status["clock"]["evaluatedUntil"])

    for number in range(BREACHES):
        seconds.append(asyncio.run(one(number)))
        cluster.apply(rollout("breach", "good", interval_seconds=INTERVAL_SECONDS))
        cluster.wait("idle", lambda: cluster.get("promptrollout", "breach")["status"]["stage"] == "Idle")
    return seconds


def main() -> None:
    report = Report("delivery")
    with running() as cluster:
        behaviours = [{"name": "bad", "match": {"promptContains": "bad"}, "errorRate": 0.5}]
        httpx.put(f"{cluster.sandbox.model_url}/control/behaviours", json=behaviours).raise_for_status()
        worst = 0.0
        for pods in PODS:
            addresses = cluster.scale(pods)
            if pods == PODS[0]:
                cluster.apply(rollout("breach", "good", interval_seconds=INTERVAL_SECONDS), rollout("still", "good"))
                for name in ("breach", "still"):
                    cluster.wait(name, lambda n=name: "status" in cluster.get("promptrollout", n))
                cluster.wait("first delivery", lambda a=addresses[0]: report_of(httpx.Client(), a, "breach"))
                seconds = breaches(cluster, addresses)
                report.row(
                    what="interval end with the breach -> last pod on stable",
                    pods=pods,
                    n=len(seconds),
                    p50_seconds=quantile(seconds, 0.5),
                    p99_seconds=quantile(seconds, 0.99),
                )
                limit = INTERVAL_SECONDS + 2.0
                report.goal("breach visible -> last pod on stable", limit, max(seconds), unit="s")
            with cluster.operator_away():
                seconds = deliveries(cluster, addresses, "still")
            p50, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
            worst = max(worst, p99)
            what = "delivery written -> last pod confirms"
            report.row(what=what, pods=pods, n=len(seconds), p50_seconds=p50, p99_seconds=p99)
        report.goal("delivery written -> last pod confirms, p99", 2.0, worst, unit="s")
    report.write()


if __name__ == "__main__":
    main()
