"""What is done in one namespace delays no rollback in another: on a real Prometheus, with real pods."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.api import ApiKubectl
from tests.integration.cluster import Kubectl
from tests.integration.pods import pod
from tests.integration.story import Story

LONG = [{"weight": 10, "minDurationSeconds": 3600}, {"weight": 50}]
INTERVAL = 5
TOO_LATE = "3 intervals are needed, a neighbour may cost 2, and a busy machine has as many again"
EXPORT = """
import http.server, os
uids, variant = os.environ["UIDS"].split(","), "canary"
junk = "x" * int(os.environ["LABEL_BYTES"])
lines = [
    'promptrollout_requests_total{rollout_uid="%s",variant="canary",version="c",n="%d",junk="%s"} 1' % (uid, n, junk)
    for uid in uids for n in range(int(os.environ["SERIES"]))
]
body = "\\n".join(lines + [""]).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((os.environ["PROMPTROLLOUT_BIND_ADDRESS"], 9090), Handler).serve_forever()
"""


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


@pytest.fixture
def neighbour(sandbox: Sandbox) -> Iterator[Story]:
    """Another tenant, in a namespace of its own."""
    kubectl = ApiKubectl(sandbox.kubeconfig)
    name = f"neighbour-{time.monotonic_ns() % 10**8}"
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    other = Story(sandbox, ApiKubectl(sandbox.kubeconfig, name))
    other.wait(lambda: other.kubectl.find("serviceaccount", "default"), "its account")
    yield other
    with contextlib.suppress(AssertionError):
        kubectl("delete", "namespace", name, "--wait=false")


def exporter(uids: list[str], *, series: int, label_bytes: int) -> dict[str, Any]:
    """A pod that Prometheus scrapes, and that claims to serve these rollouts."""
    env = {"UIDS": ",".join(uids), "SERIES": str(series), "LABEL_BYTES": str(label_bytes)}
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}
    variables = [{"name": name, "value": value} for name, value in env.items()]
    return pod("exporter", EXPORT, annotations=annotations, env=variables)


def uid_of(story: Story) -> str:
    return str(story.kubectl.json("get", "promptrollout", story.name)["metadata"]["uid"])


def resident_mib(pid: int) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


@pytest.mark.parametrize(("series", "label_bytes"), [(72, 10**6), (60_000, 100)], ids=["huge labels", "many series"])
def test_what_a_neighbours_pods_export_delays_no_rollback(
    story: Story, neighbour: Story, series: int, label_bytes: int, eventually: Callable[..., Any]
) -> None:
    """With the neighbour's own canary in progress, so that it is asked for in the same interval."""
    analysis = {"intervalSeconds": INTERVAL}
    for each in (story, neighbour):
        each.given(v1={}, v2={}, replicas=1).apply("v1", analysis=analysis).healthy("v1")
    neighbour.apply("v2", steps=LONG, analysis=analysis).at_weight(10)
    neighbour.kubectl.apply(exporter([uid_of(neighbour), uid_of(story)], series=series, label_bytes=label_bytes))
    neighbour.until(
        lambda s: any(c["type"] == "MetricsAvailable" and c["status"] == "False" for c in s["conditions"]), 90
    )
    story.behave(v1={}, v2={"errorRate": 0.4})
    with story.users():
        story.apply("v2", steps=LONG, analysis=analysis).at_weight(10)
        exposed = time.monotonic()
        story.rolled_back("v2", seconds=20 * INTERVAL)
        seconds = time.monotonic() - exposed
    assert seconds < 12 * INTERVAL, TOO_LATE
    assert resident_mib(story.operator_pid()) < 256
    assert neighbour.status().get("rejected", []) == []


def test_a_neighbours_own_slow_queries_delay_no_rollback(story: Story, neighbour: Story) -> None:
    """Each of them keeps Prometheus busy until its timeout."""
    slow = 'sum(count_over_time({__name__=~".+", version!="{{ version }}{{ variant }}"}[1h:1ms]))'
    objectives = [{"name": f"own{n}", "signal": "Custom", "max": "1", "custom": {"value": slow}} for n in range(4)]
    analysis = {"intervalSeconds": INTERVAL}
    for each in (story, neighbour):
        each.given(v1={}, v2={}, replicas=1).apply("v1", analysis=analysis).healthy("v1")
    neighbour.apply("v2", steps=LONG, analysis=analysis | {"objectives": objectives})
    neighbour.until(lambda s: "own0 is not measured" in s["message"])
    story.behave(v1={}, v2={"errorRate": 0.4})
    with story.users():
        story.apply("v2", steps=LONG, analysis=analysis).at_weight(10)
        exposed = time.monotonic()
        story.rolled_back("v2", seconds=20 * INTERVAL)
        assert time.monotonic() - exposed < 12 * INTERVAL, TOO_LATE
