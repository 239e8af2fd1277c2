"""Which version this pod is busy with at this moment, kept where it outlives the process: a crash leaves its name.

Whatever the event loop does for one version without a pause (fill its prompt, read and judge an answer), and whatever
the thread that loads configurations compiles, is named in a file that is mapped into memory: to write there is no
system call, and what was written stays when the process dies, however it does. Only one such piece of work is under
way in each of the two threads, so that there are two places in the file.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from promptrollout.api.delivery import DiedIn

logger = logging.getLogger(__name__)

FILE: Final = "in-flight"
_RECORD: Final = struct.Struct("<B64s80s8s")
_BYTES: Final = 4096

Variant = Literal["stable", "canary"]


class Spans:
    """In memory only, unless a file is opened before anything is busy."""

    def __init__(self) -> None:
        self._bytes: bytearray | mmap.mmap = bytearray(_BYTES)
        self.died_in: list[DiedIn] = []
        """What the process before this one was busy with when it died."""

    def open(self, folder: Path) -> None:
        """Read what the process before left, and go on in its file. Without a disk it goes on in memory."""
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            left = path.read_bytes() if path.exists() else b""
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _BYTES)  # a full disk must show here, not as a signal later
            with path.open("r+b") as file:
                self._bytes = mmap.mmap(file.fileno(), _BYTES)
        except OSError as error:
            logger.error("what this pod is busy with is not kept over a crash: %s", error)
            return
        self.died_in = _read(left)
        for found in self.died_in:
            logger.error(
                "the process before this one died while it worked for %s, %s of rollout %s",
                found.digest,
                found.variant,
                found.rollout_uid,
            )

    def place(self, number: int) -> memoryview:
        """Where one record stands."""
        return memoryview(self._bytes)[number * _RECORD.size : (number + 1) * _RECORD.size]


class Busy:
    """While it is entered, this version is worked for, without a pause. Not within itself."""

    __slots__ = ("_place", "_record")

    def __init__(self, spans: Spans, uid: str, digest: str, variant: Variant, *, loading: bool = False) -> None:
        self._record = _RECORD.pack(1, uid.encode()[:64], digest.encode(), variant.encode())
        self._place = spans.place(1 if loading else 0)

    def __enter__(self) -> None:
        self._place[:] = self._record

    def __exit__(self, *exc_info: object) -> None:
        self._place[0] = 0


def _read(left: bytes) -> list[DiedIn]:
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    found: list[DiedIn] = []
    for number in range(2):
        piece = left[number * _RECORD.size : (number + 1) * _RECORD.size]
        if len(piece) < _RECORD.size:
            break
        busy, *texts = _RECORD.unpack(piece)
        if busy != 1:
            continue
        with suppress(ValueError):  # not what was written
            uid, digest, variant = (text.rstrip(b"\0").decode("ascii") for text in texts)
            found.append(DiedIn.model_validate({"rolloutUID": uid, "digest": digest, "variant": variant, "at": at}))
    return found
