"""Limits of queries to a metrics source: how many at once, bytes and time of an answer."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import requests

MAX_ANSWER_BYTES = 8 * 2**20
"""In memory an answer takes up to 14 times that, and the operator has 256 MiB."""
MAX_OWN_BYTES = 4 * 2**20
LARGE_BYTES = 2**20
"""Of answers beyond this a lane reads one at a time."""
_PIECE_BYTES = 2**18


class SourceError(Exception):
    """The source did not give a usable answer; the message says why.

    `spoilt`: the source answers, but not this query: too large, too slow, or unreadable.
    """

    def __init__(self, message: str, *, spoilt: bool = False) -> None:
        super().__init__(message)
        self.spoilt = spoilt


class Lane:
    """A number of queries at once, in threads of their own: a slow source blocks no other lane."""

    def __init__(self, parallel: int, most_bytes: int, large: threading.Lock) -> None:
        """`large`: held while a large answer is read."""
        self.slots = asyncio.Semaphore(parallel)
        self.threads = ThreadPoolExecutor(parallel, "metrics")
        self.most_bytes = most_bytes
        self.large = large


class TooMuch(Exception):
    """An answer exceeds its limit of bytes or time."""


class Reading(threading.local):
    """The answer that a thread reads: its limits, and whether it is a large one."""

    most_bytes = MAX_ANSWER_BYTES
    large: threading.Lock
    holds = False

    def begin(self, lane: Lane, most_bytes: int) -> None:
        self.most_bytes, self.large, self.holds = min(most_bytes, lane.most_bytes), lane.large, False

    def end(self) -> None:
        if self.holds:
            self.large.release()
            self.holds = False

    def whole(self, response: requests.Response, until: float) -> bytes:
        """The body. Raises TooMuch, and what urllib3 raises."""
        pieces, size, began = [], 0, time.monotonic()
        try:
            while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
                pieces.append(piece)
                size += len(piece)
                if size > self.most_bytes:
                    raise TooMuch(f"its answer is larger than {self.most_bytes / 2**20:.3g} MiB")
                if time.monotonic() > until:
                    raise TooMuch(f"no complete answer within {until - began:.2g} s")
                if size > LARGE_BYTES and not self.holds:
                    self.holds = self.large.acquire(timeout=max(0.0, until - time.monotonic()))
        finally:
            if not response.raw.closed:
                response.close()
        return b"".join(pieces)


def refuses(response: requests.Response) -> bool:
    """The source refuses this query: its limit of samples, bytes or time. Other errors concern the source itself, or a
    proxy before it."""
    if response.status_code in (400, 413, 422):
        return True
    try:
        return orjson.loads(response.content).get("errorType") in ("timeout", "canceled", "execution")
    except (ValueError, AttributeError):
        return False


def shortened(text: str, limit: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
