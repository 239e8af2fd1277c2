"""Progress of a set-up that takes minutes: printed at once, whatever pytest captures."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

Progress = Callable[[str], None]


def printed(config: pytest.Config, name: str) -> Progress:
    """Prints each message with the seconds since this call, below `name`."""
    capture = config.pluginmanager.getplugin("capturemanager")
    started = time.monotonic()

    def say(message: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{name}, {time.monotonic() - started:.0f} s: {message}", end="", flush=True)

    return say
