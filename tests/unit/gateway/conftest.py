"""A gateway without its ports, and a provider on loopback."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from promptrollout.gateway.process import Gateway, Settings
from promptrollout.llm.providers import endpoint
from tests.unit.gateway.kit import LOOPBACK, Caller, Provider


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF_FIRST_SECONDS", 0.001)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    made = Gateway(
        Settings(
            "default",
            "ns",
            "pod-1",
            networks=LOOPBACK,
            state_dir=tmp_path / "state",
            provider_keys_dir=tmp_path / "keys",
        )
    )
    yield made
    await made.serving_app.close()
    await made.providers.close()


@pytest.fixture
def caller(gateway: Gateway) -> Caller:
    return Caller(gateway.serving_app)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running
