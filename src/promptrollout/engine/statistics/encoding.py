"""A test's sums as a short text for status: exact to the last bit, and refused if another definition wrote it."""

import base64
import math
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator

MOST = 1e30
"""Larger than any sum of counts, costs or logarithms."""
VERSION = 5
"""Of the meaning of the sums. A change restarts the evidence of running rollouts."""
REMEMBERED = 4096
"""Texts written last (some 6 MB): the next plan reads what this one wrote, and base85 costs as much as an interval."""
_written: OrderedDict[str, bytes] = OrderedDict()


def encode(definition: str, numbers: Iterable[float], singles: Iterable[float] = ()) -> str:
    """`<version>:<definition>:<base85 of little-endian doubles, then of floats in single precision>`."""
    doubles, floats = tuple(numbers), tuple(singles)
    raw = struct.pack(f"<{len(doubles)}d{len(floats)}f", *doubles, *floats)
    packed = base64.b85encode(raw).decode()
    _written[packed] = raw
    while len(_written) > REMEMBERED:
        _written.popitem(last=False)
    return f"{VERSION}:{definition}:{packed}"


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
        raw = _written.get(packed) or base64.b85decode(packed)
    except ValueError as error:
        raise ValueError(f"damaged checkpoint ({error}): its evidence restarts") from error
    floats, odd = divmod(len(raw) - 8 * length, 4)
    if odd or floats not in singles:
        raise ValueError(f"checkpoint of {len(raw)} bytes does not hold {length} numbers: its evidence restarts")
    values = struct.unpack(f"<{length}d{floats}f", raw)
    if not all(abs(x) <= MOST or x == -math.inf for x in values):
        raise ValueError("damaged checkpoint (a number is larger than any sum can be): its evidence restarts")
    return iter(values[:length]), iter(values[length:])
