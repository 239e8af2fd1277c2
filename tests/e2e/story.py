"""Given, when, then: a rollout of the quickstart with a name of its own, in a cluster of whatever kind."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import yaml

from promptrollout.sandbox.demo.quickstart import Quickstart, find_quickstart
from tests.e2e.places import ROOT, Place, moved
from tests.integration.cluster import Kubectl
from tests.rollout_story import RolloutStory
from tests.users import Users, eventually

FIRST, GOOD, BAD = "first-version", "good-change", "bad-change"
REQUESTS_PER_SECOND = 120.0


class QuickstartStory(RolloutStory):
    """Its versions are those of examples/quickstart."""

    def __init__(self, place: Place, kubeconfig: str, kubectl: Kubectl, system: Kubectl, name: str) -> None:
        super().__init__(kubectl, system, name, patience=place.patience)
        self.place = place
        self._environment = {**os.environ, "KUBECONFIG": kubeconfig}
        self._quickstart = Quickstart(find_quickstart())

    def manifest(self, word: str, **changes: Any) -> dict[str, Any]:
        """`steps`: in place of the quickstart's."""
        text = (
            (ROOT / "examples" / "quickstart" / "30-rollout.yaml").read_text()
            if word == FIRST
            else self._quickstart.change(word)
        )
        rollout = moved(yaml.safe_load(text), self.namespace)
        rollout["metadata"]["name"] = self.name
        rollout["spec"]["strategy"]["canary"] |= changes
        return rollout

    def users(self) -> Users:
        return self.place.users(self.kubectl, self.name, REQUESTS_PER_SECOND)

    def command(self, *arguments: str) -> str:
        """Output of `promptrollout`, which must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "promptrollout", *arguments, "-n", self.namespace],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env=self._environment,
        )
        assert done.returncode == 0, f"promptrollout {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def operator_pods(self) -> set[str]:
        return set(self.system.names("pods", "-l", "app.kubernetes.io/component=operator"))

    def scale_operator(self, replicas: int) -> None:
        """Returns when no pod is left, or all are available."""
        deployment = self.system.names("deployment", "-l", "app.kubernetes.io/component=operator")[0]
        self.system("scale", f"deployment/{deployment}", f"--replicas={replicas}")
        if replicas:
            self.system("rollout", "status", f"deployment/{deployment}", "--timeout=100s")
        else:
            eventually(lambda: not self.operator_pods(), "the operator's pods are still there", self.patience)

    def decisions(self, reason: str) -> list[dict[str, Any]]:
        """Of the rollout's history, newest first."""
        return [decision for decision in self.status()["history"] if decision["reason"] == reason]

    def condition(self, name: str) -> str:
        found = {each["type"]: each["status"] for each in self.status()["conditions"]}
        return str(found.get(name, ""))
