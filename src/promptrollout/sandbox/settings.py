"""Settings of a sandbox, and where it keeps its files."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

OPERATOR_NAMESPACE = "promptrollout-system"
SANDBOX_NAMESPACE = "promptrollout-sandbox"
NODE_NAME = "sandbox"
READY_SECONDS = 150.0
"""Time for a service to answer, on a busy machine; one that ended is noticed at once."""

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m)")
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0}


class SandboxError(Exception):
    """A failure whose message is meant for the person who started the sandbox."""


@dataclass(frozen=True)
class Settings:
    """The choices a person or a test makes when it starts a sandbox."""

    scrape_interval_seconds: float = 1.0
    #: Delay before the first restart of a crashed container; doubles up to the maximum (a kubelet: 10 s to 300 s).
    crash_backoff_seconds: float = 1.0
    crash_backoff_max_seconds: float = 30.0
    #: False for tests that run their own operator, or no operator.
    install_operator: bool = True
    #: Helm values files, over the sandbox's own.
    values_files: list[str] = field(default_factory=list)
    #: A token is renewed at 80 % of its life, or at this age if that is sooner (tests cannot wait 8 minutes).
    token_max_age_seconds: float = 86400.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def parse_duration(text: str, field: str) -> float:
    """Seconds in a duration such as `500ms`, `1s` or `2m`; the error names `field`."""
    match = _DURATION.fullmatch(text.strip())
    if not match or float(match["number"]) <= 0:
        raise SandboxError(f"{field}: {text!r} is not a positive duration: write 500ms, 1s or 2m")
    return float(match["number"]) * _SECONDS_PER_UNIT[match["unit"]]


def default_dir() -> Path:
    """The default directory of the sandbox: in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "promptrollout" / "sandbox"


@dataclass(frozen=True)
class Layout:
    """The files of one sandbox below its directory."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def progress(self) -> Path:
        return self.root / "progress.log"

    @property
    def log(self) -> Path:
        return self.root / "logs" / "supervisor.log"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def prometheus(self) -> Path:
        return self.root / "prometheus"

    @property
    def pods(self) -> Path:
        return self.root / "pods"

    @property
    def services(self) -> Path:
        return self.root / "services.json"

    @property
    def values(self) -> Path:
        return self.root / "chart-values.yaml"

    @property
    def lock(self) -> Path:
        return self.root / "lock"
