"""What the tests of real SDKs share: a gateway, the simulated model and a scripted provider on ports of their own.

They run in an event loop of another thread, since half of the SDKs block theirs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import uvloop

from promptrollout.gateway.process import Gateway, Settings
from promptrollout.sandbox.model.server import SimulatedModel
from tests.connections import HTTP
from tests.unit.gateway.kit import CANARY, LOOPBACK, Provider, Script, arm, delivery, serving

Result = TypeVar("Result")

ABSENT = "the SDKs are not installed: `make clients` does that"


class World:
    """A gateway on a real port; `url` is what an SDK takes for its `base_url`."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._settings = Settings(
            "default", "ns", "pod-1", networks=LOOPBACK, state_dir=state, provider_keys_dir=state / "keys", **settings
        )
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self.sequence = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "the gateway did not start"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the gateway did not stop"
        self._runner.close()

    def _run(self) -> None:
        self._runner.run(self._serve())

    async def _serve(self) -> None:
        self.gateway = Gateway(self._settings)
        async with AsyncExitStack() as stack:
            self.provider = await stack.enter_async_context(Provider())
            self.model_root = await stack.enter_async_context(serving(SimulatedModel(seed=1)))
            self.model_url = f"{self.model_root}/v1"
            self.root = await stack.enter_async_context(serving(self.gateway.serving_app))
            stack.push_async_callback(self.gateway.providers.close)
            self.url = f"{self.root}/v1"
            self._started.set()
            await self._stop.wait()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def serve(self, *behaviours: dict[str, Any], **changes: Any) -> None:
        """Let the simulated model answer for the rollout `support`, by these rules; `changes` are the version's."""
        rules = [{"name": f"rule-{n}", "latency": {"fixedMs": 0}, **one} for n, one in enumerate(behaviours)]
        HTTP.put(f"{self.model_root}/control/behaviours", json=rules).raise_for_status()
        self.deliver(stable=arm(url=self.model_url, **changes))

    def script(self, *scripts: Script, **changes: Any) -> None:
        """Let a provider answer that follows a script, request by request."""
        self.provider.script.clear()
        self.provider.script.extend(scripts)
        self.deliver(stable=arm(url=self.provider.url, **changes))

    def canary(self, **changes: Any) -> None:
        """Everybody on a canary that the simulated model answers."""
        canary = arm(CANARY, self.model_url, **changes)
        self.deliver(weight=100, stable=arm(url=self.model_url), canary=canary)

    def deliver(self, **changes: Any) -> None:
        """Put the rollout `support` in service as it is from now on."""
        self.sequence += 1
        self.run(self.gateway.registry.apply("support", delivery(self.sequence, **changes)))


def eventually(condition: Callable[[], bool], within_seconds: float = 30.0) -> float:
    """Wait for what another thread does; after how many seconds it was so."""
    began = time.perf_counter()
    while not condition():
        assert time.perf_counter() - began < within_seconds, "it did not come about"
        time.sleep(0.001)
    return time.perf_counter() - began
