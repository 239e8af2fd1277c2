"""Which version this process is working on, in a file that outlives it: after a crash the file still names the version.

Work that the event loop does for one version without a pause (prepare its request, read and check an answer), and what
the loading thread compiles, is named in a memory-mapped file: a write there is no system call, and survives the process
however it dies. Each of the two threads does one such piece of work at a time, so the file has two records.
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


class InFlightFile:
    """In memory only, unless a file is opened before any work is marked."""

    def __init__(self) -> None:
        self._bytes: bytearray | mmap.mmap = bytearray(_BYTES)
        self.died_in: list[DiedIn] = []
        """What the previous process was working on when it died."""

    def open(self, folder: Path) -> None:
        """Read what the previous process left, and write to its file from now on. Without a disk it stays in memory."""
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            left = path.read_bytes() if path.exists() else b""
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _BYTES)  # a full disk must fail here, not with a signal later
            with path.open("r+b") as file:
                self._bytes = mmap.mmap(file.fileno(), _BYTES)
        except OSError as error:
            logger.error(
                "cannot open %s: a crash of this pod will not name the version that caused it: %s", path, error
            )
            return
        self.died_in = _read(left)
        for died_in in self.died_in:
            logger.error(
                "the previous process died while it worked on %s (%s of rollout %s)",
                died_in.digest,
                died_in.variant,
                died_in.rollout_uid,
            )

    def record(self, number: int) -> memoryview:
        """The bytes of one record."""
        return memoryview(self._bytes)[number * _RECORD.size : (number + 1) * _RECORD.size]


class InFlightMark:
    """Entered while this process works on a version without a pause. Not reentrant."""

    __slots__ = ("_content", "_record")

    def __init__(self, file: InFlightFile, uid: str, digest: str, variant: Variant, *, loading: bool = False) -> None:
        self._content = _RECORD.pack(1, uid.encode()[:64], digest.encode(), variant.encode())
        self._record = file.record(1 if loading else 0)

    def __enter__(self) -> None:
        self._record[:] = self._content

    def __exit__(self, *exc_info: object) -> None:
        self._record[0] = 0


def _read(left: bytes) -> list[DiedIn]:
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    died_in: list[DiedIn] = []
    for number in range(2):
        record = left[number * _RECORD.size : (number + 1) * _RECORD.size]
        if len(record) < _RECORD.size:
            break
        in_flight, *texts = _RECORD.unpack(record)
        if in_flight != 1:
            continue
        with suppress(ValueError):  # not a record that this gateway wrote
            uid, digest, variant = (text.rstrip(b"\0").decode("ascii") for text in texts)
            died_in.append(DiedIn.model_validate({"rolloutUID": uid, "digest": digest, "variant": variant, "at": at}))
    return died_in
