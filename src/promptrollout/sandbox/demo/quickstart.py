"""The manifests of examples/quickstart: found, and read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from promptrollout.api.delivery import VersionRef
from promptrollout.api.digest import copy_name, digest_of
from promptrollout.api.rollout import RolloutSpec
from promptrollout.sandbox.settings import SandboxError

_DIRECTORY = Path("examples") / "quickstart"


def find_quickstart() -> Path:
    """examples/quickstart of the checkout that this package runs from. Raises SandboxError."""
    for parent in Path(__file__).resolve().parents:
        if (parent / _DIRECTORY / "30-rollout.yaml").is_file():
            return parent / _DIRECTORY
    raise SandboxError(f"{_DIRECTORY} is not beside this installation: run the demo from a checkout (make demo)")


@dataclass(frozen=True)
class Quickstart:
    """The quickstart's files."""

    directory: Path

    def manifests(self) -> str:
        """Everything that `kubectl apply -f examples/quickstart/` would apply, as one stream."""
        files = sorted(self.directory.glob("*.yaml"))
        return "".join(file.read_text() for file in files)

    def change(self, name: str) -> str:
        """The rollout's manifest with another prompt: `good-change` or `bad-change`."""
        return (self.directory / "changes" / f"{name}.yaml").read_text()

    def behaviours(self) -> list[dict[str, Any]]:
        """How the simulated model answers each of the prompts (docs/reference/simulated-model.md)."""
        rules: list[dict[str, Any]] = json.loads((self.directory / "changes" / "simulated-model.json").read_text())
        return rules

    @cached_property
    def namespace(self) -> str:
        return str(self._rollout["metadata"]["namespace"])

    @cached_property
    def name(self) -> str:
        """The rollout: what applications send as `model`."""
        return str(self._rollout["metadata"]["name"])

    @cached_property
    def gateway(self) -> str:
        return str(self._rollout["spec"]["gatewayRef"]["name"])

    def first_version(self) -> VersionRef:
        """What the operator will call the prompt of 30-rollout.yaml."""
        return version_of(self._rollout)

    def version(self, change: str) -> VersionRef:
        """What the operator will call the prompt of a change."""
        return version_of(yaml.safe_load(self.change(change)))

    @cached_property
    def _rollout(self) -> dict[str, Any]:
        rollout: dict[str, Any] = yaml.safe_load((self.directory / "30-rollout.yaml").read_text())
        return rollout


def version_of(rollout: dict[str, Any]) -> VersionRef:
    """The version that a PromptRollout with an inline prompt asks for. Raises SandboxError without one."""
    spec = RolloutSpec.model_validate(rollout["spec"])
    if spec.template is None:
        raise SandboxError(f"{rollout['metadata']['name']}: spec.template is missing")
    digest = digest_of(spec.template)
    return VersionRef(version=copy_name(rollout["metadata"]["name"], digest), digest=digest)
