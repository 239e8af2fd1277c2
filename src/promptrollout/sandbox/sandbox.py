"""Starts, stops and asks a sandbox: what the command line, the demo and the tests use."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from promptrollout.sandbox import supervisor
from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.controlplane import install
from promptrollout.sandbox.processes import MARKER, kill_leftovers, log_tail, require_linux, signal_process, start_time
from promptrollout.sandbox.settings import READY_SECONDS, Layout, SandboxError, Settings, default_dir

_POLL_SECONDS = 0.1
_START_TIMEOUT_SECONDS = 2 * READY_SECONDS
_ANSWER_TIMEOUT_SECONDS = READY_SECONDS + 30.0
_STOP_TIMEOUT_SECONDS = 30.0


def _silent(_message: str) -> None:
    """No progress wanted."""


class Sandbox:
    """One sandbox, named by its directory; any process may hold one of these for it."""

    def __init__(self, directory: Path | None = None, settings: Settings | None = None) -> None:
        self.layout = Layout((directory or default_dir()).resolve())
        self.settings = settings or Settings()

    # -- life

    def up(self, progress: Callable[[str], None] = _silent) -> bool:
        """Start the sandbox and wait until it is ready; False if it already was. Raises SandboxError."""
        require_linux()
        if self.is_up:
            return False
        if self.settings.install_operator:
            install.find_chart()  # better to know now than when everything else runs
            for file in self.settings.values_files:
                install.require_values(Path(file))
        inventory.ensure(progress)
        self.layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.layout.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._wait_for_other(progress)
            # stale: a supervisor that was killed left files, and perhaps processes of pods
            kill_leftovers(self.layout.root)
            supervisor.clean(self.layout)
            # the supervisor inherits the lock, so it is held all the time
            process = self._spawn(lock.fileno())
        try:
            self._wait_ready(process, progress)
        except KeyboardInterrupt:
            progress("interrupted: stopping what was started")
            self.down()
            raise
        return True

    def down(self) -> bool:
        """Stop everything in order; no process is left, whatever state the sandbox was in. False if it was down."""
        state = self._state()
        pid = self._supervisor_pid(state)
        if pid is not None:
            signal_process(pid, signal.SIGTERM)
            signal_process(pid, signal.SIGCONT)
            deadline = time.monotonic() + _STOP_TIMEOUT_SECONDS
            while self._supervisor_pid(state) is not None:
                if time.monotonic() > deadline:
                    signal_process(pid, signal.SIGKILL)
                    break
                _reap(pid)
                time.sleep(_POLL_SECONDS)
        killed = kill_leftovers(self.layout.root)
        self.layout.state.unlink(missing_ok=True)
        return pid is not None or killed > 0

    @contextlib.contextmanager
    def to_oneself(self, what: str) -> Iterator[None]:
        """One `what` at a time in this directory. Raises SandboxError while another is running."""
        lock = self.layout.root.with_name(f"{self.layout.root.name}.{what}-lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another {what} is running in {self.layout.root}: wait for its end, or choose another --dir"
                raise SandboxError(message) from None
            yield

    @property
    def is_up(self) -> bool:
        state = self._state()
        return state.get("phase") == "ready" and self._supervisor_pid(state) is not None

    # -- what it offers

    @property
    def kubeconfig(self) -> str:
        return str(self._ready_state()["kubeconfig"])

    @property
    def prometheus_url(self) -> str:
        return str(self._ready_state()["prometheusUrl"])

    @property
    def model_url(self) -> str:
        return str(self._ready_state()["modelUrl"])

    def gateways(self) -> dict[str, str]:
        """`namespace/name` of each PromptGateway that has a Service -> its URL."""
        return dict(self._ask("GET", "/gateways"))

    def gateway_url(self, namespace: str, name: str) -> str:
        gateways = self.gateways()
        try:
            return gateways[f"{namespace}/{name}"]
        except KeyError as error:
            raise SandboxError(
                f"no Service of a PromptGateway {namespace}/{name}; there are: {', '.join(gateways) or 'none'}"
            ) from error

    def environment(self) -> dict[str, str]:
        """The variables that `promptrollout sandbox env` prints. A stable interface: docs/how-to/sandbox.md."""
        variables = {
            "KUBECONFIG": self.kubeconfig,
            "PROMETHEUS_URL": self.prometheus_url,
            "SIMULATED_MODEL_URL": self.model_url,
        }
        gateways = self.gateways()
        for key, url in gateways.items():
            variables["GATEWAY_URL_" + re.sub(r"[^A-Z0-9]", "_", key.upper())] = url
        if gateways:
            variables["GATEWAY_URL"] = next(iter(gateways.values()))
        return variables

    def pid(self, namespace: str, pod: str, container: str | None = None) -> int:
        """Process of a pod's (first) container, for tests that kill or stop it."""
        pids = self._ask("GET", f"/pods/{namespace}/{pod}")["pids"]
        found = pids.get(container) if container else next(iter(pids.values()))
        if found is None:
            raise SandboxError(f"pod {namespace}/{pod}: no running process of {container or 'its container'}")
        return int(found)

    def processes(self) -> dict[str, int | None]:
        """Process ids of the sandbox's own processes; None for one that is stopped."""
        return dict(self._ask("GET", "/state")["processes"])

    def install_operator(self) -> None:
        """Render and apply the chart and wait for the operator; `up` does this unless the settings say otherwise."""
        self._ask("POST", "/operator/install")

    # -- outages

    def stop_prometheus(self) -> None:
        self._ask("POST", "/prometheus/stop")

    def start_prometheus(self) -> None:
        """The same address and data as before."""
        self._ask("POST", "/prometheus/start")

    def stop_apiserver(self) -> None:
        self._ask("POST", "/apiserver/stop")

    def start_apiserver(self) -> None:
        """The same port and data as before; returns when it is ready."""
        self._ask("POST", "/apiserver/start")

    # -- inside

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "promptrollout.sandbox.supervisor", "--dir", str(self.layout.root)]
        command += ["--settings", json.dumps(self.settings.to_json()), "--lock-fd", str(lock)]
        # marked like all the others: `down` finds it even if it was killed before it wrote its state
        env = {**os.environ, MARKER: str(self.layout.root)}
        with self.layout.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
                pass_fds=(lock,),
            )

    def _wait_ready(self, process: subprocess.Popen[bytes], progress: Callable[[str], None]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        shown = 0
        while time.monotonic() < deadline:
            shown = self._show(progress, shown)
            state = self._state()
            if state.get("phase") == "ready":
                # it is meant to outlive us: without this, Popen warns when it is collected
                process.returncode = 0
                return
            if process.poll() is not None:
                problem = state.get("error") or log_tail(self.layout.log)
                raise SandboxError(f"the sandbox did not start: {problem}\nlog: {self.layout.log}")
            time.sleep(_POLL_SECONDS)
        self.down()
        raise SandboxError(f"the sandbox was not ready in {_START_TIMEOUT_SECONDS:.0f} s; log: {self.layout.log}")

    def _wait_for_other(self, progress: Callable[[str], None]) -> bool:
        progress("another process is starting this sandbox; waiting for it")
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.is_up:
                return False
            state = self._state()
            if state.get("phase") in ("failed", "stopping"):
                raise SandboxError(f"the sandbox is {state['phase']}: {state.get('error', 'try again in a moment')}")
            time.sleep(_POLL_SECONDS)
        raise SandboxError(
            f"another process holds {self.layout.lock} but the sandbox is not ready; see {self.layout.log}"
        )

    def _show(self, progress: Callable[[str], None], shown: int) -> int:
        try:
            lines = self.layout.progress.read_text().splitlines()
        except FileNotFoundError:
            return shown
        for line in lines[shown:]:
            progress(line)
        return len(lines)

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.layout.state.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return state if isinstance(state, dict) else {}

    def _ready_state(self) -> dict[str, Any]:
        state = self._state()
        if state.get("phase") != "ready" or self._supervisor_pid(state) is None:
            raise SandboxError(f"no sandbox is running in {self.layout.root}: promptrollout sandbox up")
        return state

    @staticmethod
    def _supervisor_pid(state: dict[str, Any]) -> int | None:
        """The supervisor's pid if that very process still lives."""
        pid, started = state.get("pid"), state.get("pidStartTime")
        if not isinstance(pid, int) or started is None or start_time(pid) != started:
            return None
        return pid

    def _ask(self, method: str, path: str) -> Any:
        state = self._ready_state()
        try:
            answer = httpx.request(
                method,
                state["controlUrl"] + path,
                headers={"Authorization": f"Bearer {state['controlToken']}"},
                timeout=_ANSWER_TIMEOUT_SECONDS,
                trust_env=False,  # no proxy leads to loopback
                verify=False,  # it is http: without this, each call reads all certificates of the machine (40 ms)
            )
        except httpx.TransportError as error:
            raise SandboxError(f"the sandbox in {self.layout.root} does not answer: {error}") from error
        if answer.is_success:
            return answer.json()
        try:
            message = answer.json()["error"]
        except (ValueError, LookupError, TypeError):
            message = answer.text
        raise SandboxError(str(message))


def _reap(pid: int) -> None:
    """Collect the supervisor's exit status if it is our own child; a zombie would look alive to others."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
