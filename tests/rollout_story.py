"""One rollout as a person with kubectl sees it, in whatever cluster: apply a version, wait for what comes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Self

from promptrollout.api.digest import digest_of
from promptrollout.api.prompt import PromptSpec
from tests.integration.cluster import Kubectl

Status = dict[str, Any]


PATIENCE_SECONDS = 120.0
"""How long anything may take that comes at all: seconds on a quiet machine, ten times that on a busy one."""


class RolloutStory:
    """Versions are named by a word; `manifest` makes the rollout with one of them."""

    def __init__(self, kubectl: Kubectl, system: Kubectl, name: str, *, patience: float = PATIENCE_SECONDS) -> None:
        """`system`: in the operator's namespace; `patience`: seconds that something may take."""
        self.kubectl, self.system = kubectl, system
        self.namespace = str(kubectl.namespace)
        self.name = name
        self.patience = patience

    # ------------------------------------------------------------ when

    def manifest(self, word: str, **changes: Any) -> dict[str, Any]:
        """The rollout with version `word`."""
        raise NotImplementedError

    def apply(self, word: str, **changes: Any) -> Self:
        self.kubectl.apply(self.manifest(word, **changes))
        return self

    # ------------------------------------------------------------ then

    def status(self) -> Status:
        found = self.kubectl.find("promptrollout", self.name) or {}
        status: Status = found.get("status", {})
        return status

    def until(self, test: Callable[[Status], Any], seconds: float | None = None) -> Status:
        """The first status that passes; a failure shows the last one."""
        seconds = self.patience if seconds is None else seconds
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

    def healthy(self, word: str, seconds: float | None = None) -> Status:
        digest = self.digest(word)
        return self.until(lambda s: s["phase"] == "Healthy" and s["stable"]["digest"] == digest, seconds)

    def rolled_back(self, word: str, reason: str = "ObjectiveBreached", seconds: float | None = None) -> Status:
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

    def at_weight(self, weight: int, seconds: float | None = None) -> Status:
        """In a step with this weight, confirmed by every ready pod."""
        return self.until(
            lambda s: s["stage"] == "Stepping" and s["weight"] == weight and s["clock"]["acknowledgedAt"], seconds
        )

    def digest(self, word: str) -> str:
        return digest_of(PromptSpec.model_validate(self.manifest(word)["spec"]["template"]))

    def events(self) -> list[str]:
        items = self.kubectl.json("get", "events")["items"]
        return [e["reason"] for e in items if e["involvedObject"].get("name") == self.name]

    def expect_events(self, *reasons: str) -> None:
        """They come: the operator writes them after the status that they tell of."""
        self.wait(lambda: set(reasons) <= set(self.events()), f"the Events {', '.join(reasons)}")

    def operator_log(self) -> str:
        return self.system.run("logs", "-l", "app.kubernetes.io/component=operator", "--tail=40").stdout

    def describe(self) -> str:
        return self.kubectl.run("describe", "promptrollout", self.name).stdout
