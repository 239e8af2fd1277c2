"""End a pod whose event loop hangs, with a trace of where: its container restarts, and other pods answer meanwhile."""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

HUNG_AFTER_SECONDS: Final = 15.0
_ARM_TIMES: Final = 15


@contextmanager
def ended_if_hung(seconds: float = HUNG_AFTER_SECONDS) -> Iterator[None]:
    """The running event loop postpones the end again and again. A thread that needs no interpreter lock ends the
    process, so this also works if a library holds that lock."""
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle | None = None

    def arm() -> None:
        nonlocal handle
        faulthandler.dump_traceback_later(seconds, exit=True)
        handle = loop.call_later(seconds / _ARM_TIMES, arm)

    arm()
    try:
        yield
    finally:
        if handle is not None:
            handle.cancel()
        faulthandler.cancel_dump_traceback_later()
