"""Users who ask a gateway while a test runs: from this machine, or from a pod inside the cluster."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from promptrollout.sandbox.traffic import Traffic, TrafficStats
from tests.integration.cluster import Kubectl

T = TypeVar("T")

#: What Pod Security `restricted` asks of a container, and what ours do besides.
_LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


class Users(Protocol):
    """They ask from the beginning of the `with` block to its end."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *failure: object) -> None: ...

    def stats(self) -> TrafficStats | None:
        """What they saw so far; None before the first answer."""


class LocalUsers:
    """A thread of this process; `options` are those of Traffic."""

    def __init__(self, url: str, rollout: str, rate: float, **options: Any) -> None:
        self._make = lambda: Traffic(url, rollout, requests_per_second=rate, **options)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._drive()), daemon=True)
        self._stop, self._running = threading.Event(), threading.Event()
        self._traffic: Traffic | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._running.wait(10), "the users did not start to ask"
        return self

    def __exit__(self, *_failure: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def stats(self) -> TrafficStats:
        """Counted in the thread that counts on: from here, a dictionary would change while it is copied."""
        assert self._traffic is not None
        if self._loop is None or not self._thread.is_alive():
            return self._traffic.stats()
        counted: Future[TrafficStats] = Future()
        stats = self._traffic.stats
        self._loop.call_soon_threadsafe(lambda: counted.set_result(stats()))
        return counted.result(60)

    async def _drive(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._make() as self._traffic:
            self._running.set()
            await asyncio.to_thread(self._stop.wait)


class PodUsers:
    """A pod of the project's image, running tests/users_pod.py."""

    def __init__(self, kubectl: Kubectl, image: str, service: str, rollout: str, rate: float) -> None:
        self._kubectl = kubectl
        self._image = image
        self._arguments = [service, rollout, str(rate)]

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("users_pod.py")
        made = ("create", "configmap", "users", f"--from-file=users.py={script}", "--dry-run=client", "-oyaml")
        self._kubectl("apply", "-f", "-", stdin=self._kubectl(*made))
        container = {
            "name": "users",
            "image": self._image,
            "command": ["python", "/users/users.py", *self._arguments],
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
        return self

    def __exit__(self, *_failure: object) -> None:
        self._kubectl("delete", "pod", "users", "--grace-period=1")

    def stats(self) -> TrafficStats | None:
        """What the users saw until a second ago."""
        done = self._kubectl.run("logs", "users", "--tail=1")
        if done.returncode or not done.stdout.strip():
            return None
        counts = json.loads(done.stdout)
        return TrafficStats(**{**counts, "statuses": {int(key): value for key, value in counts["statuses"].items()}})


def stats_after(users: Users, requests: float, seconds: float = 120.0) -> TrafficStats:
    """The counts once so many more requests than by now were sent."""
    before = users.stats()
    wanted = (before.sent if before else 0) + requests

    def enough() -> TrafficStats | None:
        now = users.stats()
        return now if now and now.sent >= wanted else None

    return eventually(enough, f"the users did not send {requests:.0f} requests", seconds)


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
