"""How long a rollback in one namespace takes while another namespace is busy: alone, and beside a crowd of canaries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from benchmarks.cluster import Cluster, cpu_seconds, memory_mib, ours, running
from benchmarks.operator import apply_all, reached
from benchmarks.report import Report
from tests.integration.cluster import Kubectl
from tests.integration.story import Story

CROWD = 1_000
INTERVAL_SECONDS = 15
"""Of both tenants."""
ROUNDS = 3
LONG = [{"weight": 10, "minDurationSeconds": 3600}]
HUGE_PROMPTS, HUGE_BYTES = 50, 120_000


@contextmanager
def tenant(cluster: Cluster) -> Iterator[Story]:
    """Another namespace with a provider, a gateway and one rollout."""
    admin = Kubectl(cluster.sandbox.kubeconfig)
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant"}})
    story = Story(cluster.sandbox, Kubectl(cluster.sandbox.kubeconfig, "tenant"))
    story.given(good={}, bad={"errorRate": 0.4}, replicas=1)
    story.apply("good", analysis={"intervalSeconds": INTERVAL_SECONDS}).healthy("good", 120)
    yield story


def rollback_seconds(story: Story) -> float:
    """From the first exposure of a bad version until stable alone is confirmed again."""
    with story.users():
        story.apply("bad", steps=LONG, analysis={"intervalSeconds": INTERVAL_SECONDS}).at_weight(10, 120)
        exposed = time.monotonic()
        story.until(lambda s: s["stage"] == "Idle" and s.get("rejected"), 300)
        seconds = time.monotonic() - exposed
    story.apply("good", analysis={"intervalSeconds": INTERVAL_SECONDS}).healthy("good", 120)
    # the rejected version is tried again, from no evidence
    story.kubectl("delete", "promptrollout", story.name)
    story.until(lambda s: not s, 60)
    story.name += "x"
    story.apply("good", analysis={"intervalSeconds": INTERVAL_SECONDS}).healthy("good", 120)
    return seconds


def measure(cluster: Cluster, story: Story, report: Report, beside: str) -> float:
    pid = cluster.operator_pid()
    cpu, started = cpu_seconds(pid), time.monotonic()
    seconds = [rollback_seconds(story) for _ in range(ROUNDS)]
    report.row(
        beside=beside,
        rollback_median_s=median(seconds),
        rollback_worst_s=max(seconds),
        operator_cpu_percent=100 * (cpu_seconds(pid) - cpu) / (time.monotonic() - started),
        operator_mib=memory_mib(pid),
    )
    return max(seconds)


def main() -> None:
    report = Report("tenants")
    with running(scrape_interval_seconds=5.0) as cluster, tenant(cluster) as story:
        alone = measure(cluster, story, report, "nobody")
        cluster.scale(1)
        apply_all(cluster, CROWD, "first")
        cluster.wait("all serving", lambda: reached(cluster, CROWD, "Idle", 100), 900)
        apply_all(cluster, CROWD, "second")
        cluster.wait("all canaries", lambda: reached(cluster, CROWD, "Stepping", 10), 900)
        crowded = measure(cluster, story, report, f"{CROWD} canaries")
        huge = [
            ours("PromptVersion", f"huge-{number}", version("x" * HUGE_BYTES + str(number)))
            for number in range(HUGE_PROMPTS)
        ]
        for one in huge:
            cluster.apply(one)
        larger = measure(cluster, story, report, f"{CROWD} canaries, {HUGE_PROMPTS} prompts of {HUGE_BYTES // 1000} KB")
        worst = max(crowded, larger) - alone
        report.goal("a rollback beside a crowd takes longer by, intervals", 2, worst / INTERVAL_SECONDS)
    report.write()


def version(text: str) -> dict[str, object]:
    return {"providerRef": {"name": "model"}, "model": "small", "messages": [{"role": "system", "content": text}]}


if __name__ == "__main__":
    main()
