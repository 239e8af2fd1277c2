"""What the answers of a metrics source may cost: places for queries, bytes and time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import requests

MAX_ANSWER_BYTES = 8 * 2**20
"""In memory an answer takes up to 14 times that, and the operator has to do with 256 MiB."""
MAX_OWN_BYTES = 4 * 2**20
LARGE_BYTES = 2**20
"""Of answers beyond this a lane reads one at a time."""
_PIECE_BYTES = 2**18


class SourceError(Exception):
    """The source did not give a usable answer; the message says why.

    `spoilt`: it is there, and it is what was asked for that it cannot answer: too much, too slow, or unreadable.
    """

    def __init__(self, message: str, *, spoilt: bool = False) -> None:
        super().__init__(message)
        self.spoilt = spoilt


class Lane:
    """So many queries at once, in threads that nobody else waits for: a source may hold them for long."""

    def __init__(self, parallel: int, most_bytes: int, large: threading.Lock) -> None:
        """`large`: held while a large answer is read."""
        self.slots = asyncio.Semaphore(parallel)
        self.threads = ThreadPoolExecutor(parallel, "metrics")
        self.most_bytes = most_bytes
        self.large = large


class TooMuch(Exception):
    """An answer has more bytes, or takes more time, than it may."""


class Reading(threading.local):
    """The answer that a thread is at: what it may cost, and whether it is one of the large ones."""

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
                    raise TooMuch(f"no whole answer within {until - began:.2g} s")
                if size > LARGE_BYTES and not self.holds:
                    self.holds = self.large.acquire(timeout=max(0.0, until - time.monotonic()))
        finally:
            if not response.raw.closed:
                response.close()
        return b"".join(pieces)


def refuses(response: requests.Response) -> bool:
    """This query, and not all: for a limit of samples, bytes or time. The other errors are of the source, or of what
    stands before it."""
    if response.status_code in (400, 413, 422):
        return True
    try:
        return orjson.loads(response.content).get("errorType") in ("timeout", "canceled", "execution")
    except (ValueError, AttributeError):
        return False


def shortened(text: str, limit: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
