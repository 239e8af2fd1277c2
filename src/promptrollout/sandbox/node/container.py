"""One container of a pod as a local process: start, probes, restarts with backoff, graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from promptrollout.sandbox.node import podstatus, probes
from promptrollout.sandbox.node.podspec import ConfigError, ImageError, Object
from promptrollout.sandbox.node.podstatus import ContainerState
from promptrollout.sandbox.processes import signal_group, signal_process, spawn

logger = logging.getLogger(__name__)

_CONFIG_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Launch:
    """A resolved command, ready to be started."""

    command: list[str]
    env: dict[str, str]
    cwd: Path
    mounts: dict[str, Path]
    #: what starts the command as another user; empty: nothing
    launcher: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Raises FileNotFoundError for a command that is not a program: a launcher would only exit with 127."""
        if shutil.which(self.command[0], path=self.env.get("PATH", "")) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.command[0])
        return [*self.launcher, *self.command]


@dataclass(frozen=True)
class Backoff:
    """Delays between restarts: `first` doubling up to `maximum`; forgotten after a run of twice the maximum."""

    first_seconds: float
    maximum_seconds: float

    def delay(self, crashes_in_a_row: int) -> float:
        """Seconds to wait after the n-th crash (n from 1)."""
        # the exponent is capped so that a container that crashes for days does not overflow
        return min(self.maximum_seconds, self.first_seconds * 2.0 ** min(crashes_in_a_row - 1, 30))

    def forgets_after(self) -> float:
        return 2 * self.maximum_seconds


@dataclass(frozen=True)
class Surroundings:
    """What a container needs from its pod and node."""

    address: str
    directory: Path
    containers: list[Object]
    session: aiohttp.ClientSession
    restart_policy: str
    grace_seconds: float
    backoff: Backoff
    #: Resolves image, command and variables at every start; raises ConfigError or ImageError.
    resolve: Callable[[Object], Launch]
    on_change: Callable[[], None]
    #: (type, reason, message) of an Event about the pod
    on_event: Callable[[str, str, str], None]


class Container:
    """Runs one container until it is finished or stopped."""

    def __init__(self, spec: Object, surroundings: Surroundings, *, init: bool = False) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.state = ContainerState(name=self.name, image=spec["image"])
        self._around = surroundings
        # an init container is done when it has succeeded; it is retried unless the policy is Never
        policy = surroundings.restart_policy
        self._policy = "OnFailure" if init and policy == "Always" else policy
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._retry_now = asyncio.Event()
        self._probes: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def log_path(self, *, previous: bool = False) -> Path | None:
        """The log of the current or last run, or of the previous one; None if it does not exist."""
        number = self.state.restart_count - (1 if previous else 0)
        path = self._log_directory() / f"{number}.log"
        return path if number >= 0 and path.exists() else None

    def dependency_changed(self) -> None:
        """A ConfigMap or Secret changed: do not wait any longer if that was what was missing."""
        self._retry_now.set()

    async def run(self) -> None:
        crashes = 0
        while not self._stopping.is_set():
            launch = await self._resolved()
            if launch is None:
                break
            started = time.time()
            if not await self._start(launch):
                crashes += 1
            else:
                exit_code = await self._run_once(launch)
                self._ended(exit_code, started)
                ran_seconds = time.time() - started
                forgotten = exit_code == 0 or ran_seconds > self._around.backoff.forgets_after()
                crashes = 1 if forgotten else crashes + 1
            if self._stopping.is_set() or self._finished():
                break
            await self._back_off(crashes)
        self.state.finished = True
        self._around.on_change()

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, the grace period, SIGKILL; returns when no process of the container is left."""
        self._stopping.set()
        self._cancel_probes()
        await self._terminate(grace_seconds)

    # -- one run

    async def _resolved(self) -> Launch | None:
        """Wait until the container can be created; None if it was stopped before."""
        while not self._stopping.is_set():
            self._retry_now.clear()
            try:
                return self._around.resolve(self.spec)
            except ImageError as error:
                self._around.on_event("Warning", "Failed", str(error))
                self._set(podstatus.waiting("ErrImagePull", str(error)))
            except ConfigError as error:
                self._around.on_event("Warning", "Failed", f"Error: {error}")
                self._set(podstatus.waiting("CreateContainerConfigError", str(error)))
            await self._first_of(_CONFIG_RETRY_SECONDS, self._stopping, self._retry_now)
        return None

    async def _start(self, launch: Launch) -> bool:
        number = self.state.restart_count + 1 if self.state.container_id else 0
        log = self._log_directory() / f"{number}.log"
        container_id = f"sandbox://{secrets.token_hex(16)}"
        try:
            self._process = await spawn(launch.arguments(), env=launch.env, log=log, cwd=launch.cwd)
        except OSError as error:
            message = f"cannot start {launch.command[0]!r}: {error.strerror or error}"
            self._around.on_event("Warning", "Failed", f"Error: {message}")
            now = time.time()
            ended = podstatus.terminated(128, now, now, container_id, message)
            ended["terminated"]["reason"] = "StartError"
            self.state.restart_count, self.state.container_id = number, container_id
            self._set(ended)
            return False
        self.state.restart_count, self.state.container_id = number, container_id
        self._write_pid(self._process.pid)
        self.state.started = "startupProbe" not in self.spec
        self.state.ready = self.state.started and "readinessProbe" not in self.spec
        self._set(podstatus.running(time.time()))
        return True

    async def _run_once(self, launch: Launch) -> int:
        """Probe the process until it ends; its exit code as a shell reports it."""
        process = self._process
        assert process is not None
        target = probes.ProbeTarget(
            address=self._around.address,
            containers=self._around.containers,
            env=launch.env,
            mounts=launch.mounts,
            cwd=launch.cwd,
            session=self._around.session,
        )
        self._start_probes(target)
        try:
            code = await process.wait()
        finally:
            self._cancel_probes()
        # whatever the main process left behind dies with the container
        signal_group(process.pid, signal.SIGKILL)
        return code if code >= 0 else 128 - code

    def _ended(self, exit_code: int, started: float) -> None:
        self.state.ready = self.state.started = False
        self._set(podstatus.terminated(exit_code, started, time.time(), self.state.container_id))

    def _finished(self) -> bool:
        if self._policy == "Always":
            return False
        return self._policy == "Never" or self.state.exit_code == 0

    async def _back_off(self, crashes: int) -> None:
        delay = self._around.backoff.delay(crashes)
        self.state.last_state = self.state.state
        message = f"back-off {delay:g}s restarting failed container={self.name}"
        self._around.on_event("Warning", "BackOff", f"Back-off restarting failed container {self.name}")
        self._set(podstatus.waiting("CrashLoopBackOff", message))
        await self._first_of(delay, self._stopping)

    # -- probes

    def _start_probes(self, target: probes.ProbeTarget) -> None:
        startup = self.spec.get("startupProbe")
        if startup is None:
            self._start_main_probes(target)
            return

        def started() -> None:
            if not self.state.started:
                self.state.started = True
                self.state.ready = "readinessProbe" not in self.spec
                self._around.on_change()
                self._cancel_probes()  # the startup probe has done its work
                self._start_main_probes(target)

        self._probe("Startup", startup, target, started, self._restart_because("Startup", startup))

    def _start_main_probes(self, target: probes.ProbeTarget) -> None:
        if readiness := self.spec.get("readinessProbe"):
            self._probe("Readiness", readiness, target, lambda: self._set_ready(True), lambda _: self._set_ready(False))
        if liveness := self.spec.get("livenessProbe"):
            self._probe("Liveness", liveness, target, lambda: None, self._restart_because("Liveness", liveness))

    def _probe(
        self,
        kind: str,
        probe: Object,
        target: probes.ProbeTarget,
        on_success: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        def attempt_failed(message: str) -> None:
            self._around.on_event("Warning", "Unhealthy", f"{kind} probe failed: {message}")

        task = probes.watch(probe, target, on_success, on_failure, attempt_failed)
        self._probes.append(asyncio.create_task(task, name=f"{kind} probe of {self.name}"))

    def _set_ready(self, ready: bool) -> None:
        if self.state.ready != ready and self.state.running:
            self.state.ready = ready
            self._around.on_change()

    def _restart_because(self, kind: str, probe: Object) -> Callable[[str], None]:
        killing: list[asyncio.Task[None]] = []

        def restart(_message: str) -> None:
            if killing:
                return
            self._around.on_event(
                "Normal", "Killing", f"Container {self.name} failed {kind.lower()} probe, will be restarted"
            )
            grace = float(probe.get("terminationGracePeriodSeconds") or self._around.grace_seconds)
            killing.append(asyncio.create_task(self._terminate(grace)))

        return restart

    def _cancel_probes(self) -> None:
        for task in self._probes:
            task.cancel()
        self._probes.clear()

    # -- small things

    async def _terminate(self, grace_seconds: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        signal_process(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), max(grace_seconds, 0.01))
        except TimeoutError:
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()

    def _set(self, state: dict[str, object]) -> None:
        if state != self.state.state:
            self.state.state = state
            self._around.on_change()

    def _log_directory(self) -> Path:
        directory = self._around.directory / "logs" / self.name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _write_pid(self, pid: int) -> None:
        """Tests find the process here; `pid` alone is the first container's."""
        names = [f"pid.{self.name}"]
        if self._around.containers and self._around.containers[0]["name"] == self.name:
            names.append("pid")
        for name in names:
            temporary = self._around.directory / f".{name}"
            temporary.write_text(str(pid))
            os.replace(temporary, self._around.directory / name)

    async def _first_of(self, timeout_seconds: float, *events: asyncio.Event) -> None:
        waiters = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(waiters, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiter
