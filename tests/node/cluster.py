"""What a person does on the node: kubectl, commands in pods, and waiting for a rollout."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from promptrollout.sandbox.traffic import TrafficStats
from tests.integration.cluster import Kubectl
from tests.node.images import PROJECT, ROOT
from tests.node.node import Node

T = TypeVar("T")

QUICKSTART = ROOT / "examples" / "quickstart"
ROLLOUT = "support-assistant"
GATEWAY_PODS = "promptrollout.dev/gateway=default"

#: What Pod Security `restricted` asks of a container, and what ours do besides.
_LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


class NodeKubectl(Kubectl):
    """kubectl within the node's namespaces: its API server has no address outside."""

    def __init__(self, node: Node, namespace: str | None = None) -> None:
        super().__init__(str(node.kubeconfig), namespace)
        self.node = node
        self._command = [*node.enter, *self._command]

    def python(self, pod: str, script: str) -> subprocess.CompletedProcess[str]:
        """Run `script` in the pod's first container, by the image's own Python."""
        return self.run("exec", pod, "--", "python", "-c", script)

    def names(self, *arguments: str) -> list[str]:
        return [item["metadata"]["name"] for item in self.json("get", *arguments)["items"]]

    def rollout(self, *phases: str, seconds: float = 240.0) -> dict[str, Any]:
        """The status once the rollout's present spec has reached one of `phases`, and has nothing more to do."""

        def settled() -> dict[str, Any] | None:
            found = self.json("get", "promptrollout", ROLLOUT)
            status = found.get("status") or {}
            seen = status.get("observedGeneration") == found["metadata"]["generation"]
            last.append(f"{status.get('phase')}: {status.get('message')}")
            return status if seen and status.get("stage") == "Idle" and status.get("phase") in phases else None

        last: list[str] = []
        return eventually(settled, f"the rollout is not {' or '.join(phases)}", seconds, lambda: last[-1])


class Users:
    """The pod of tests/node/users.py."""

    def __init__(self, kubectl: NodeKubectl, rate: float) -> None:
        self._kubectl = kubectl
        self._rate = rate

    def start(self) -> None:
        script = Path(__file__).with_name("users.py")
        configmap = self._kubectl("create", "configmap", "users", f"--from-file={script}", "--dry-run=client", "-oyaml")
        self._kubectl("apply", "-f", "-", stdin=configmap)
        container = {
            "name": "users",
            "image": PROJECT,
            "command": ["python", "/users/users.py", "default-gateway", str(self._rate)],
            "resources": {"requests": {"cpu": "200m"}},
            "securityContext": _LOCKED,
            "volumeMounts": [{"name": "users", "mountPath": "/users"}],
        }
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "users", "configMap": {"name": "users"}}],
        }
        self._kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "users"}, "spec": spec})
        self.after(self._rate * 2)

    def stats(self) -> TrafficStats | None:
        """What the users saw until a second ago."""
        done = self._kubectl.run("logs", "users", "--tail=1")
        if done.returncode or not done.stdout.strip():
            return None
        counts = json.loads(done.stdout)
        return TrafficStats(**{**counts, "statuses": {int(key): value for key, value in counts["statuses"].items()}})

    def complaints(self) -> str:
        """The gateway pods' counts of failed requests, and the end of their logs."""
        read = "import urllib.request as r; print(r.urlopen('http://%s:9090/metrics').read().decode())"
        lines = []
        for pod in self._kubectl.json("get", "pods", "-l", GATEWAY_PODS)["items"]:
            page = self._kubectl.python(pod["metadata"]["name"], read % pod["status"].get("podIP")).stdout
            lines += [line for line in page.splitlines() if "error" in line and line[0] != "#" and line[-2:] != " 0"]
        return "\n".join([*lines, self._kubectl.run("logs", "-l", GATEWAY_PODS, "--tail=20", "--prefix").stdout])

    def after(self, requests: float) -> TrafficStats:
        """The counts once so many more requests than by now were sent."""
        before = self.stats()
        wanted = (before.sent if before else 0) + requests

        def enough() -> TrafficStats | None:
            now = self.stats()
            return now if now and now.sent >= wanted else None

        return eventually(enough, f"the users did not send {requests:.0f} requests", 120)


def eventually(
    read: Callable[[], T | None], problem: str, seconds: float = 60.0, last: Callable[[], str] = lambda: ""
) -> T:
    """The first truthy value of `read`; an assertion that says `problem` and `last` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := read():
            return value
        assert time.monotonic() < deadline, f"{problem} after {seconds:.0f} s; {last()}"
        time.sleep(0.5)
