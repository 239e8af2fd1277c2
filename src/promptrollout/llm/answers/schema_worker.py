"""The worker process that checks answers against schemas of unbounded running time; the kernel limits its CPU time.

It reads requests from its standard input and writes one byte for each to its standard output. It imports next to
nothing of this project, since it starts again each time it was ended.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys
from collections import OrderedDict
from typing import Final

import jsonschema_rs
import orjson

CHECK_CPU_SECONDS: Final = 0.1
CPU_SECONDS_PER_BYTE: Final = 0.2 / 2**20
"""In addition: parsing a megabyte of empty lists takes 60 ms, which is not the version's fault."""
COMPILE_CPU_SECONDS: Final = 1.0
MEMORY_BYTES: Final = 384 * 1024 * 1024
HEADER: Final = struct.Struct("<II")
"""Bytes of the schema, number of texts. Then the schema, and each text after its length."""
LENGTH: Final = struct.Struct("<I")
KEPT: Final = b"1"
NOT_KEPT: Final = b"0"
NOT_COMPILED: Final = b"?"
_KNOWN: Final = 32


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it is for the pod's process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    known: OrderedDict[bytes, jsonschema_rs.Validator] = OrderedDict()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(HEADER.size):
        schema_size, count = HEADER.unpack(header)
        schema = source.read(schema_size)
        texts = [source.read(LENGTH.unpack(source.read(LENGTH.size))[0]) for _ in range(count)]
        sink.write(_answer(known, schema, texts))
        sink.flush()


def _answer(known: OrderedDict[bytes, jsonschema_rs.Validator], schema: bytes, texts: list[bytes]) -> bytes:
    validator = known.pop(schema, None)
    try:
        if validator is None:
            _end_after(COMPILE_CPU_SECONDS)
            validator = jsonschema_rs.validator_for(orjson.loads(schema), offline=True)
        known[schema] = validator
        if len(known) > _KNOWN:
            known.popitem(last=False)
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return NOT_COMPILED
    finally:
        _end_after(0)
    _end_after(CHECK_CPU_SECONDS + CPU_SECONDS_PER_BYTE * sum(map(len, texts)))
    try:
        return KEPT if all(validator.is_valid(orjson.loads(text)) for text in texts) else NOT_KEPT
    except (ValueError, MemoryError):  # not JSON, or a value that the validator does not support
        return NOT_KEPT
    finally:
        _end_after(0)


def _end_after(cpu_seconds: float) -> None:
    """Let the kernel end this process once it has used so much CPU; 0: no limit. This needs no Python code, since none
    can run during a check."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def request(schema: bytes, texts: list[bytes]) -> bytes:
    """The bytes of a request to the worker."""
    parts = [HEADER.pack(len(schema), len(texts)), schema]
    for text in texts:
        parts += (LENGTH.pack(len(text)), text)
    return b"".join(parts)


if __name__ == "__main__":
    main()
