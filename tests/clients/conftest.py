"""A gateway on a real port, for clients that nobody changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from promptrollout.llm.providers import endpoint
from tests.clients.kit import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(endpoint, "BACKOFF_FIRST_SECONDS", 0.001)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)  # the gateway is on this machine
    with World(tmp_path) as world:
        yield world
