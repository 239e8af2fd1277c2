"""A gateway in a process of its own, a model that answers by the clock, and callers over bare sockets, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvloop

from promptrollout.api.networks import Networks
from promptrollout.gateway.process import Gateway, Settings, collect_seldom, serve
from promptrollout.gateway.server.app import Limits

COMPLETION = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello. " * 40}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 80, "total_tokens": 280},
    }
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
)


class StubModel(asyncio.Protocol):
    """Answers every request with the same completion, so many seconds after it is whole."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        marker = head.lower().find(b"content-length:")
        length = int(head[marker + 15 :].split(b"\r\n", 1)[0]) if marker >= 0 else 0
        if len(rest) >= length:
            self._buffer = rest[length:]
            asyncio.get_running_loop().call_later(self._seconds, self._transport.write, ANSWER)


@dataclass
class Load:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of each 200."""
    unsent: int = 0
    """Arrivals that found no connection free."""
    ran_seconds: float = 0.0
    counts: bool = False
    watch: Callable[[], None] = lambda: None
    """Called at the begin and at the end."""

    def begin(self) -> None:
        self.counts = True
        self.ran_seconds = -time.perf_counter()
        self.watch()

    def end(self) -> None:
        self.counts = False
        self.ran_seconds += time.perf_counter()
        self.watch()

    def note(self, status: int, seconds: float) -> None:
        if self.counts:
            self.statuses[status] += 1
            if status == 200:
                self.seconds.append(seconds)


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load, request: bytes) -> None:
        self._load = load
        self.request = request
        self._buffer = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def ask(self) -> asyncio.Future[int]:
        self.done = asyncio.get_running_loop().create_future()
        self._sent_at = time.perf_counter()
        self.transport.write(self.request)
        return self.done

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        marker = head.lower().find(b"content-length:")
        if len(rest) < int(head[marker + 15 :].split(b"\r\n", 1)[0]):
            return
        self._buffer = b""
        status = int(head[9:12])
        self._load.note(status, time.perf_counter() - self._sent_at)
        if self.done is not None and not self.done.done():
            self.done.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self._load.note(0, 0.0)
            self.done.set_result(0)


def request_of(user: str, content: str = "Where is my parcel?") -> bytes:
    """About 1.2 kB, as callers send it."""
    body = orjson.dumps({"model": "support", "user": user, "messages": [{"role": "user", "content": content * 50}]})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer unused\r\nuser-agent: bench\r\n"
    )
    return head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def closed_loop(
    port: int,
    connections: int,
    seconds: float,
    *,
    pause_seconds: float = 0.0,
    warm_seconds: float = 0.5,
    watch: Callable[[], None] = lambda: None,
) -> Load:
    """Each connection asks again as soon as it is answered; or `pause_seconds` later where it was refused, as SDKs do
    that see a Retry-After. What comes in the first `warm_seconds` is not counted."""
    load = Load(watch=watch)
    callers = await _connected(port, connections, load)
    until = time.monotonic() + warm_seconds + seconds

    async def one(caller: Caller) -> None:
        while time.monotonic() < until:
            status = await caller.ask()
            if status in (0, 429, 503):
                await asyncio.sleep(pause_seconds * random.uniform(0.75, 1.25))

    asked = asyncio.gather(*(one(caller) for caller in callers))
    await asyncio.sleep(warm_seconds)
    load.begin()
    await asyncio.sleep(seconds)
    load.end()
    await asked
    _hang_up(callers)
    return load


async def _connected(port: int, connections: int, load: Load) -> list[Caller]:
    loop = asyncio.get_running_loop()
    callers = []
    for number in range(connections):
        request = request_of(f"user-{number}")
        callers.append((await loop.create_connection(lambda r=request: Caller(load, r), "127.0.0.1", port))[1])
    return callers


def _hang_up(callers: list[Caller]) -> None:
    for caller in callers:
        caller.transport.close()


async def open_loop(
    port: int,
    per_second: float,
    seconds: float,
    connections: int,
    *,
    warm_seconds: float = 0.5,
    watch: Callable[[], None] = lambda: None,
) -> Load:
    """Requests at a steady rate, whatever becomes of them, on connections that are kept."""
    load = Load(watch=watch)
    callers = await _connected(port, connections, load)
    idle = list(callers)
    pending: set[asyncio.Future[int]] = set()

    def over(future: asyncio.Future[int], caller: Caller) -> None:
        pending.discard(future)
        if future.result():
            idle.append(caller)

    began = time.monotonic()
    sent = 0
    while (elapsed := time.monotonic() - began) < seconds + warm_seconds:
        if elapsed >= warm_seconds and not load.counts:
            load.begin()
        while sent < elapsed * per_second:
            sent += 1
            if not idle:
                load.unsent += 1
                continue
            caller = idle.pop()
            future = caller.ask()
            pending.add(future)
            future.add_done_callback(lambda done, c=caller: over(done, c))
        await asyncio.sleep(0.001)
    load.end()
    if pending:
        await asyncio.wait(pending, timeout=10)
    _hang_up(callers)
    return load


@dataclass
class Running:
    port: int
    admin_port: int
    pid: int

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Resident, without what is shared with others."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
        raise ValueError("no Pss")


@contextlib.asynccontextmanager
async def gateway(model_seconds: float, changes_per_second: float = 0.0, **limits: int) -> AsyncIterator[Running]:
    """A model and a gateway, each a process of its own; they end with the block."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

        def start(*arguments: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "benchmarks.bare", *arguments]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

        async def ports(process: subprocess.Popen[str]) -> list[int]:
            assert process.stdout is not None
            return [int(one) for one in (await asyncio.to_thread(process.stdout.readline)).split()]

        model = start("model", str(model_seconds))
        (model_port,) = await ports(model)
        settings = {"model": model_port, "state": folder, "changes": changes_per_second, "limits": limits}
        pod = start("gateway", json.dumps(settings))
        try:
            port, admin = await ports(pod)
            await _answers(port)
            yield Running(port, admin, pod.pid)
        finally:
            for process in (pod, model):
                process.send_signal(signal.SIGTERM)
            for process in (pod, model):
                await asyncio.to_thread(process.wait, 30)


async def _answers(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("the gateway does not listen")


def _arm(digest: str, text: str, model_port: int) -> dict[str, Any]:
    schema = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "string"}}}
    prompt = {
        "providerRef": {"name": "openai"},
        "model": "gpt",
        "messages": [{"role": "system", "content": text + " You are the assistant of {{ company | default('us') }}."}],
        "outputSchema": schema,
    }
    price = {"model": "gpt", "inputPerMillionUsd": "1", "outputPerMillionUsd": "4"}
    provider = {"name": "openai", "baseURL": f"http://127.0.0.1:{model_port}/v1", "price": price}
    return {
        "version": f"support-{digest[:10]}",
        "digest": f"sha256:{digest}",
        "prompt": prompt,
        "provider": provider,
    }


def _delivery(sequence: int, model_port: int) -> dict[str, Any]:
    """Each with a canary of its own, as if somebody tried version after version."""
    return {
        "formatVersion": 1,
        "gateway": "default",
        "rolloutUID": "uid-1",
        "sequence": sequence,
        "weight": 20,
        "salt": "salt",
        "stable": _arm("a" * 64, "Stable.", model_port),
        "canary": _arm(f"{sequence:064x}", f"Canary {sequence}.", model_port),
    }


async def _gateway(model: int, state: str, changes: float, limits: dict[str, int]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    collect_seldom()
    ports = [_free_port(), _free_port()]
    pod = Gateway(
        Settings(
            "default",
            "ns",
            "pod-1",
            state_dir=Path(state),
            networks=Networks.of(["127.0.0.0/8"]),
            limits=Limits(**limits),
            drain_seconds=1,
            bind_address="127.0.0.1",
            port=ports[0],
            admin_port=ports[1],
            endpoint_lag_seconds=0.0,
        )
    )
    await pod.registry.apply("support", _delivery(1, model))

    async def change() -> None:
        """Stands in for the watch."""
        sequence = 1
        began = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, 1 / changes) if changes else 3600)
            while changes and sequence < 1 + (time.monotonic() - began) * changes:
                sequence += 1
                await pod.registry.apply("support", _delivery(sequence, model))

    print(*ports, flush=True)
    source = asyncio.create_task(change())
    await serve(pod, stop, source)
    source.cancel()
    await asyncio.gather(source, return_exceptions=True)
    await pod.providers.close()


async def _model(seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: StubModel(seconds), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    uvloop.run(_model(float(sys.argv[2])) if sys.argv[1] == "model" else _gateway(**json.loads(sys.argv[2])))
