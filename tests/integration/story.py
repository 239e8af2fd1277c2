"""Given, when, then: one rollout in a namespace of the sandbox, with users, as a person would see it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from promptrollout.sandbox.traffic import Traffic, TrafficStats
from tests.integration.cluster import Kubectl

Status = dict[str, Any]

PATIENCE_SECONDS = 120.0
"""How long anything may take that comes at all: seconds on a quiet machine, ten times that on a busy one."""

ERRORS = {
    "name": "errors",
    "signal": "ErrorRate",
    "versusStable": {"maxIncreasePercent": 50},
    "negligibleRate": "0.05",
    "minSamples": 30,
}
STEPS = [{"weight": 10, "minDurationSeconds": 2}, {"weight": 50, "minDurationSeconds": 2}]


class Story:
    """Versions are named by a word; the simulated model behaves by that word (`behave`)."""

    def __init__(self, sandbox: Sandbox, kubectl: Kubectl) -> None:
        self.sandbox, self.kubectl = sandbox, kubectl
        self.namespace = str(kubectl.namespace)
        self.name = "app"
        self.system = Kubectl(sandbox.kubeconfig, OPERATOR_NAMESPACE)

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
        httpx.put(f"{self.sandbox.model_url}/control/behaviours", json=rules).raise_for_status()

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

    def apply(self, word: str, **changes: Any) -> Story:
        self.kubectl.apply(self.manifest(word, **changes))
        return self

    @contextlib.contextmanager
    def users(self, rate: float = 120.0, users: int = 500, **options: Any) -> Iterator[Callable[[], TrafficStats]]:
        """Traffic from now on; the value is a function that tells what the users saw so far."""
        url = self.wait(self.gateway_url, "the gateway's URL")
        stop, running = threading.Event(), threading.Event()
        held: list[Traffic] = []

        async def drive() -> None:
            async with Traffic(url, self.name, users=users, requests_per_second=rate, **options) as traffic:
                held.append(traffic)
                running.set()
                await asyncio.to_thread(stop.wait)

        thread = threading.Thread(target=lambda: asyncio.run(drive()), daemon=True)
        thread.start()
        running.wait(60)
        try:
            yield lambda: held[0].stats()
        finally:
            stop.set()
            thread.join(60)

    # ------------------------------------------------------------ then

    def status(self) -> Status:
        done = self.kubectl.run("get", "promptrollout", self.name, "-o", "json")
        if done.returncode:
            return {}
        import json

        status: Status = json.loads(done.stdout).get("status", {})
        return status

    def until(self, test: Callable[[Status], Any], seconds: float = PATIENCE_SECONDS) -> Status:
        """The first status that passes; a failure shows the last one."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            with contextlib.suppress(KeyError, IndexError):
                if test(status):
                    return status
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s:\n{self.describe()}\n{self.operator_log()}")
            time.sleep(0.1)

    def wait(self, read: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            value = read()
            if value:
                return value
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self.operator_log()}"
            time.sleep(0.1)

    def healthy(self, word: str, seconds: float = PATIENCE_SECONDS) -> Status:
        digest = self.digest(word)
        return self.until(lambda s: s["phase"] == "Healthy" and s["stable"]["digest"] == digest, seconds)

    def rolled_back(self, word: str, reason: str = "ObjectiveBreached", seconds: float = PATIENCE_SECONDS) -> Status:
        digest = self.digest(word)
        return self.until(
            lambda s: (
                s["phase"] == "Degraded"
                and s["stage"] == "Idle"
                and s["rejected"][0]["digest"] == digest
                and s["rejected"][0]["reason"] == reason
            ),
            seconds,
        )

    def at_weight(self, weight: int, seconds: float = PATIENCE_SECONDS) -> Status:
        """In a step with this weight, confirmed by every ready pod."""
        return self.until(
            lambda s: s["stage"] == "Stepping" and s["weight"] == weight and s["clock"]["acknowledgedAt"], seconds
        )

    def digest(self, word: str) -> str:
        from promptrollout.api.digest import digest_of
        from promptrollout.api.prompt import PromptSpec

        return digest_of(PromptSpec.model_validate(self.manifest(word)["spec"]["template"]))

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
            answer = httpx.get(f"http://{pod['status']['podIP']}:9090/rollouts", params={"name": self.name}).json()
            found += answer["rollouts"]
        return found

    def delivery(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kubectl.json("get", "promptdelivery", self.name)
        return found

    def events(self) -> list[str]:
        items = self.kubectl.json("get", "events")["items"]
        return [e["reason"] for e in items if e["involvedObject"].get("name") == self.name]

    def operator_pod(self) -> str:
        pods = self.system.json("get", "pods", "-l", "app.kubernetes.io/component=operator")["items"]
        return str(next(p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]))

    def operator_pid(self) -> int:
        return self.sandbox.pid(OPERATOR_NAMESPACE, self.operator_pod())

    def operator_log(self) -> str:
        return self.system.run("logs", "-l", "app.kubernetes.io/component=operator", "--tail=40").stdout

    def describe(self) -> str:
        return self.kubectl.run("describe", "promptrollout", self.name).stdout


def ours(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "promptrollout.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
