"""Start what is measured on one core and its load on the other, and take times, rates and CPU of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptrollout.sandbox.assets.build import go
from promptrollout.sandbox.assets.inventory import cache_dir

SERVED_CORE, LOAD_CORE = 0, 1
QUESTION = "Where is my order number 4711? I have been waiting for a week and would like to know when it comes. "
SOURCE = Path(__file__).with_name("load.go")


@dataclass(frozen=True)
class Served:
    pid: int
    url: str
    admin: str = ""

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        (line,) = [x for x in Path(f"/proc/{self.pid}/status").read_text().splitlines() if x.startswith("VmRSS")]
        return int(line.split()[1]) / 1024


def load_tool() -> str:
    """The compiled stub and load generator, built when its source is newer."""
    built = cache_dir() / "bench" / "load"
    if not built.exists() or built.stat().st_mtime < SOURCE.stat().st_mtime:
        built.parent.mkdir(parents=True, exist_ok=True)
        print("  building the stub model and the load generator", flush=True)
        subprocess.run([go(cache_dir(), print), "build", "-o", str(built), str(SOURCE)], check=True)
    return str(built)


def environment(name: str) -> Path:
    """A virtual environment with what `requirements/NAME.txt` pins, hashes checked."""
    requirements = Path(__file__).parents[2] / "requirements" / f"{name}.txt"
    home = cache_dir() / "bench" / name
    done = home / ".installed"
    if not done.exists() or done.stat().st_mtime < requirements.stat().st_mtime:
        print(f"  installing {requirements.name} into an environment of its own", flush=True)
        venv.create(home, with_pip=True, clear=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(requirements)], check=True)
        done.touch()
    return home


@contextmanager
def process(command: Sequence[str], core: int, **environ: str) -> Iterator[tuple[int, str]]:
    """Its pid and first line, while it runs."""
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # before any thread is there
    )
    try:
        assert started.stdout is not None
        yield started.pid, started.stdout.readline().strip()
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextmanager
def stub(*arguments: str) -> Iterator[str]:
    with process([load_tool(), "stub", *arguments], LOAD_CORE, GOMAXPROCS="1") as (_, address):
        yield f"http://{address}"


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    with process([sys.executable, "-m", "benchmarks.gateway.served", *arguments], SERVED_CORE) as (pid, addresses):
        url, _, admin = addresses.partition(" ")
        time.sleep(0.5)
        yield Served(pid, url, admin)


@dataclass(frozen=True)
class Load:
    """What callers met; seconds."""

    requests: int
    failed: int
    seconds: float
    p50: float
    p99: float
    first_p50: float
    first_p99: float
    longest: float
    cpu_us: float
    """Of what was measured, for each request."""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def question(*, stream: bool = False) -> bytes:
    """The request; `{user}` stands for the number of one of 5,000 users."""
    body = {"model": "app-0", "user": "{user}", "messages": [{"role": "user", "content": QUESTION}]}
    return json.dumps(body | ({"stream": True} if stream else {}), separators=(",", ":")).encode()


def call(
    target: Served, *, seconds: float, conns: int = 32, rate: float = 0.0, stream: bool = False, key: str = ""
) -> Load:
    with tempfile.NamedTemporaryFile("wb", suffix=".json") as file:
        file.write(question(stream=stream))
        file.flush()
        command = [load_tool(), "call", "-url", f"{target.url}/v1/chat/completions", "-conns", str(conns)]
        command += ["-seconds", str(seconds), "-rate", str(rate), "-body", file.name, "-key", key]
        before = target.cpu_seconds() if target.pid else 0.0
        pinned = ["taskset", "-c", str(LOAD_CORE), *command]
        out = subprocess.run(pinned, capture_output=True, text=True, check=True, env={**os.environ, "GOMAXPROCS": "1"})
        used = target.cpu_seconds() - before if target.pid else 0.0
    found: Mapping[str, Any] = json.loads(out.stdout)
    if found["Failed"]:
        print(f"  {found['Failed']} failed: {found['Failure']}", flush=True)
    return Load(
        found["Requests"],
        found["Failed"],
        found["Seconds"],
        *(found[name] for name in ("P50", "P99", "FirstP50", "FirstP99", "Max")),
        cpu_us=1e6 * used / max(1, found["Requests"]),
    )
