"""What a person does on the node: kubectl, commands in pods, and waiting for a rollout."""

from __future__ import annotations

from typing import Any

from tests.integration.cluster import Kubectl
from tests.node.images import PROJECT, ROOT
from tests.node.node import Node
from tests.users import PodUsers, eventually

QUICKSTART = ROOT / "examples" / "quickstart"
ROLLOUT = "support-assistant"
GATEWAY_PODS = "promptrollout.dev/gateway=default"


class NodeKubectl(Kubectl):
    """kubectl within the node's namespaces: its API server has no address outside."""

    def __init__(self, node: Node, namespace: str | None = None) -> None:
        super().__init__(str(node.kubeconfig), namespace)
        self.node = node
        self._command = [*node.enter, *self._command]

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


class NodeUsers(PodUsers):
    """Users of the quickstart's rollout, from now on until the cluster ends."""

    def __init__(self, kubectl: NodeKubectl, rate: float) -> None:
        super().__init__(kubectl, PROJECT, "default-gateway", ROLLOUT, rate)

    def complaints(self) -> str:
        """The gateway pods' counts of failed requests, and the end of their logs."""
        read = "import urllib.request as r; print(r.urlopen('http://%s:9090/metrics').read().decode())"
        lines = []
        for pod in self._kubectl.json("get", "pods", "-l", GATEWAY_PODS)["items"]:
            page = self._kubectl.python(pod["metadata"]["name"], read % pod["status"].get("podIP")).stdout
            lines += [line for line in page.splitlines() if "error" in line and line[0] != "#" and line[-2:] != " 0"]
        return "\n".join([*lines, self._kubectl.run("logs", "-l", GATEWAY_PODS, "--tail=20", "--prefix").stdout])
