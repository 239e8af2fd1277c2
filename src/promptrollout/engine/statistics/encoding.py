"""A test's sums as a short text for status: exact to the last bit, and refused if another definition wrote it."""

import base64
import math
import struct
from collections.abc import Iterable, Iterator

MOST = 1e30
"""Larger than any sum of counts, costs or logarithms."""
VERSION = 5
"""Of the meaning of the sums. A change restarts the evidence of running rollouts."""


def encode(definition: str, numbers: Iterable[float], singles: Iterable[float] = ()) -> str:
    """`<version>:<definition>:<base64 of little-endian doubles, then of floats in single precision>`.

    Base85 would be a tenth shorter, and a hundred times slower: it took most of a plan's time.
    """
    doubles, floats = tuple(numbers), tuple(singles)
    raw = struct.pack(f"<{len(doubles)}d{len(floats)}f", *doubles, *floats)
    return f"{VERSION}:{definition}:{base64.b64encode(raw).decode()}"


def decode(
    definition: str, text: str, length: int, singles: Iterable[int] = (0,)
) -> tuple[Iterator[float], Iterator[float]]:
    """The `length` doubles and the floats again, of which there may be as many as one of `singles` says.

    ValueError if the text is damaged or belongs to another version or definition.
    """
    version, _, rest = text.partition(":")
    written_for, _, packed = rest.partition(":")
    if version != str(VERSION):
        raise ValueError(f"checkpoint of version {version[:8]!r}, this operator reads {VERSION}: its evidence restarts")
    if written_for != definition:
        raise ValueError(f"checkpoint of definition {written_for[:16]!r}, not {definition!r}: its evidence restarts")
    try:
        raw = base64.b64decode(packed, validate=True)
    except ValueError as error:
        raise ValueError(f"damaged checkpoint ({error}): its evidence restarts") from error
    floats, odd = divmod(len(raw) - 8 * length, 4)
    if odd or floats not in singles:
        raise ValueError(f"checkpoint of {len(raw)} bytes does not hold {length} numbers: its evidence restarts")
    values = struct.unpack(f"<{length}d{floats}f", raw)
    if not all(-MOST <= x <= MOST or x == -math.inf for x in values):
        raise ValueError("damaged checkpoint (a number is larger than any sum can be): its evidence restarts")
    return iter(values[:length]), iter(values[length:])
