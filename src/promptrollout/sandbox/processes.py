"""Child processes that cannot outlive their sandbox, and the search for any that nevertheless did."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from promptrollout.sandbox.settings import SandboxError

logger = logging.getLogger(__name__)

#: Every process of a sandbox carries this in its environment, so `down` finds grandchildren too.
MARKER = "PROMPTROLLOUT_SANDBOX_DIR"

_PR_SET_PDEATHSIG = 1


def require_linux() -> None:
    """Pods need addresses in 127.0.0.0/8 and orphans are found in /proc: both are Linux."""
    if sys.platform != "linux":
        raise SandboxError("the sandbox runs on Linux; on other systems use `make kind-demo`, or a Linux VM")


def _die_with_parent() -> Callable[[], None]:
    # looked up before the fork: the child must not import or allocate more than it has to
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def setup() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return setup


async def spawn(
    arguments: list[str],
    *,
    env: dict[str, str],
    log: Path,
    cwd: Path | None = None,
    executable: str | None = None,
) -> asyncio.subprocess.Process:
    """Start a process in a session of its own, output appended to `log`; it is killed if this process dies.

    With `executable`, the first argument is only the name the process sees.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return await asyncio.create_subprocess_exec(
            *arguments,
            executable=executable,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    finally:
        os.close(descriptor)


class Service:
    """A long-running process of the sandbox that can be stopped and started again with the same arguments."""

    def __init__(self, name: str, arguments: list[str], *, marker: Path, logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        # a cached file's name carries version and platform; the process should go by its plain name
        self._executable, *self._arguments = arguments
        self._env = {**os.environ, MARKER: str(marker)}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        if not self.running:
            self._process = await spawn(
                [self.name, *self._arguments], env=self._env, log=self.log, executable=self._executable
            )

    async def stop(self, grace_seconds: float = 10.0) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        signal_process(process.pid, signal.SIGTERM)
        signal_process(process.pid, signal.SIGCONT)  # a stopped process would never see the SIGTERM
        try:
            await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            logger.warning("%s did not stop within %.0f s: killed", self.name, grace_seconds)
            signal_process(process.pid, signal.SIGKILL)
            await process.wait()

    def check(self) -> None:
        """Raise with the end of its log if the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise SandboxError(
                f"{self.name} ended with exit code {self._process.returncode}; end of {self.log}:\n"
                + log_tail(self.log)
            )


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or a note that it is empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def signal_process(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    """Signal everything in the process group that `pid` leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid this names a process for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def leftovers(directory: Path) -> list[int]:
    """Processes that carry this sandbox's marker."""
    wanted = f"{MARKER}={directory}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:  # ended meanwhile, or of another user
            continue
        if wanted in environment.split(b"\0") and start_time(int(entry)) is not None:
            found.append(int(entry))
    return found


def kill_leftovers(directory: Path, timeout_seconds: float = 10.0) -> int:
    """Kill all processes of this sandbox and wait until they are gone; returns their number."""
    deadline = time.monotonic() + timeout_seconds
    killed: dict[int, int | None] = {}

    def remaining() -> list[int]:
        # a dying process gives up its environment, and with it the marker, before its sockets
        dying = [pid for pid, started in killed.items() if started is not None and start_time(pid) == started]
        return sorted({*leftovers(directory), *dying})

    while pids := remaining():
        if time.monotonic() > deadline:
            raise SandboxError(f"processes of the sandbox do not end: {pids}; kill them and retry")
        for pid in pids:
            killed.setdefault(pid, start_time(pid))
            signal_process(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(killed)


def free_ports(count: int) -> list[int]:
    """Free loopback ports below the ephemeral range, so that a restart finds its port free again."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    upper = first_ephemeral if first_ephemeral > 12000 else 32768
    # start at a place of our own, so that two sandboxes starting at once rarely meet
    candidates = range(10240, upper)
    offset = (os.getpid() * 97 + time.monotonic_ns() // 1000) % len(candidates)
    ports: list[int] = []
    for index in range(len(candidates)):
        port = candidates[(offset + index) % len(candidates)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise SandboxError(f"no {count} free ports between {candidates.start} and {candidates.stop} on 127.0.0.1")
