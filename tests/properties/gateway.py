"""A gateway and a provider on loopback that live for a whole module of examples, and what holds for every answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

from promptrollout.gateway.process import Gateway, Settings
from promptrollout.llm.providers import endpoint
from tests.unit.gateway.kit import LOOPBACK, Answered, Caller, Provider

Result = TypeVar("Result")

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
HEADER_BYTES = st.lists(st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=40).map(bytes)
"""What an HTTP parser lets through as a header's value."""


@dataclass
class Told:
    """One answer, and what the gateway counted for it."""

    answered: Answered
    requests: int
    errors: Counter[str]
    sent: list[dict[str, Any]]
    """What reached the provider."""


class Lab:
    """Each question is a step of one event loop, so that connections last from example to example."""

    def __init__(self, runner: asyncio.Runner, gateway: Gateway, provider: Provider) -> None:
        self._runner = runner
        self.gateway = gateway
        self.provider = provider
        self.sequence = 0

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(work)

    def ask(self, body: Any, headers: dict[str, str] | None = None) -> Told:
        """Ask as a caller does. Checked for every answer: it came, in the documented shape, and was counted once if a
        provider was asked for it; nothing was a fault of ours."""
        before, errors_before = self._counted()
        del self.provider.requests[:]
        answered = self.run(self._within_time(Caller(self.gateway.serving_app).post(body, headers=headers)))
        after, errors_after = self._counted()
        told = Told(answered, after - before, errors_after - errors_before, list(self.provider.requests))
        in_shape(answered)
        assert self.gateway.counters.rejected["internal"] == errors_after["internal"] == 0
        assert self.gateway.counters.in_flight == 0
        assert told.requests == 1 or (told.requests == 0 and not told.sent and answered.status in range(400, 500))
        return told

    def apply(self, name: str, raw: dict[str, Any]) -> None:
        self.run(self.gateway.registry.apply(name, raw))

    async def _within_time(self, work: Coroutine[Any, Any, Result]) -> Result:
        async with asyncio.timeout(20):
            return await work

    def _counted(self) -> tuple[int, Counter[str]]:
        live = self.gateway.counters.live()
        errors: Counter[str] = Counter()
        for one in live:
            errors.update(one.errors)
        return sum(one.total.requests for one in live), errors


def in_shape(answered: Answered) -> None:
    """The answer is a success, or an error as OpenAI's SDKs read it, and no fault of the gateway's own."""
    if answered.status == 200:
        return
    assert 400 <= answered.status < 600
    assert answered.status != 500
    assert answered.headers["content-type"] == "application/json"
    error = answered.error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] not in ("", None)


@contextmanager
def lab(state: Path) -> Iterator[Lab]:
    first, endpoint.BACKOFF_FIRST_SECONDS = endpoint.BACKOFF_FIRST_SECONDS, 0.001
    with asyncio.Runner() as runner:
        gateway = runner.run(_gateway(state))
        provider = Provider()
        runner.run(provider.__aenter__())
        yield Lab(runner, gateway, provider)
        runner.run(gateway.providers.close())
        runner.run(provider.__aexit__())
    endpoint.BACKOFF_FIRST_SECONDS = first


async def _gateway(state: Path) -> Gateway:
    return Gateway(
        Settings(
            "default", "ns", "pod-1", networks=LOOPBACK, state_dir=state / "state", provider_keys_dir=state / "keys"
        )
    )
