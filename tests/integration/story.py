"""Given, when, then: one rollout in a namespace of the sandbox, with users, as a person would see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from promptrollout.sandbox.traffic import TrafficStats
from tests.connections import HTTP
from tests.integration.api import ApiKubectl
from tests.integration.cluster import Kubectl
from tests.rollout_story import RolloutStory, Status
from tests.users import LocalUsers

__all__ = ["ERRORS", "STEPS", "Status", "Story", "ours"]

ERRORS = {
    "name": "errors",
    "signal": "ErrorRate",
    "versusStable": {"maxIncreasePercent": 50},
    "negligibleRate": "0.05",
    "minSamples": 30,
}
STEPS = [{"weight": 10, "minDurationSeconds": 2}, {"weight": 50, "minDurationSeconds": 2}]


class Story(RolloutStory):
    """The simulated model behaves by the version's word (`behave`)."""

    def __init__(self, sandbox: Sandbox, kubectl: Kubectl) -> None:
        super().__init__(kubectl, ApiKubectl(sandbox.kubeconfig, OPERATOR_NAMESPACE), "app")
        self.sandbox = sandbox

    # ------------------------------------------------------------ given

    def given(self, *, replicas: int = 2, **behaviours: dict[str, Any]) -> Story:
        """A provider, a gateway with ready pods, and what the model does with each version's prompt."""
        self.behave(**behaviours)
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "model"},
            "stringData": {"api-key": "sk-test"},
        }
        provider = {
            "baseURL": f"{self.sandbox.model_url}/v1",
            "apiKeySecretRef": {"name": "model", "key": "api-key"},
            "prices": [{"model": "small", "inputPerMillionUsd": "1", "outputPerMillionUsd": "4"}],
        }
        self.kubectl.apply(
            secret,
            ours("ModelProvider", "model", provider),
            ours("PromptGateway", "default", {"replicas": replicas, "drainSeconds": 1}),
        )
        return self

    def behave(self, **behaviours: dict[str, Any]) -> None:
        """`v2={"errorRate": 0.3}`: from now on, for prompts of this namespace with that word."""
        rules = [
            {"name": f"{self.namespace}-{word}", "match": {"promptContains": self.marker(word)}, **behaviour}
            for word, behaviour in behaviours.items()
        ]
        HTTP.put(f"{self.sandbox.model_url}/control/behaviours", json=rules).raise_for_status()

    def marker(self, word: str) -> str:
        return f"{self.namespace}/{word}."

    # ------------------------------------------------------------ when

    def manifest(self, word: str, **changes: Any) -> dict[str, Any]:
        """The rollout with version `word`; `steps`, `analysis`, `canary` and any field of the spec may be changed."""
        canary = {"steps": changes.pop("steps", STEPS), "bakeSeconds": 2} | changes.pop("canary", {})
        spec: dict[str, Any] = {
            "gatewayRef": {"name": "default"},
            "template": {
                "providerRef": {"name": "model"},
                "model": "small",
                "messages": [{"role": "system", "content": f"You are {self.marker(word)} Answer in JSON."}],
            },
            "strategy": {"canary": canary},
            "analysis": {"intervalSeconds": 1, "objectives": [ERRORS]} | changes.pop("analysis", {}),
        }
        return ours("PromptRollout", self.name, spec | changes)

    @contextlib.contextmanager
    def users(self, rate: float = 120.0, users: int = 500, **options: Any) -> Iterator[Callable[[], TrafficStats]]:
        """Traffic from now on; the value is a function that tells what the users saw so far."""
        url = self.wait(self.gateway_url, "the gateway's URL")
        with LocalUsers(url, self.name, rate, users=users, **options) as asking:
            yield asking.stats

    # ------------------------------------------------------------ then

    def gateway_url(self) -> str | None:
        return self.sandbox.gateways().get(f"{self.namespace}/default")

    def pods(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.kubectl.json("get", "pods", "-l", "promptrollout.dev/gateway=default")[
            "items"
        ]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def reports(self) -> list[dict[str, Any]]:
        """What each gateway pod says of the rollout."""
        found = []
        for pod in self.pods():
            answer = HTTP.get(f"http://{pod['status']['podIP']}:9090/rollouts", params={"name": self.name}).json()
            found += answer["rollouts"]
        return found

    def delivery(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kubectl.json("get", "promptdelivery", self.name)
        return found

    def operator_pod(self) -> str:
        pods = self.system.json("get", "pods", "-l", "app.kubernetes.io/component=operator")["items"]
        return str(next(p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]))

    def operator_pid(self) -> int:
        return self.sandbox.pid(OPERATOR_NAMESPACE, self.operator_pod())


def ours(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "promptrollout.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
