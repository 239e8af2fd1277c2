"""A test's sums as a short text for status: exact to the last bit, and refused if another definition wrote it."""

import base64
import binascii
import struct
from collections.abc import Iterable, Iterator

VERSION = 1
"""Of the meaning of the sums. A change restarts the evidence of running rollouts."""


def encode(definition: str, numbers: Iterable[float]) -> str:
    """`<version>:<definition>:<base64 of little-endian doubles>`."""
    values = tuple(numbers)
    packed = base64.b64encode(struct.pack(f"<{len(values)}d", *values)).decode()
    return f"{VERSION}:{definition}:{packed}"


def decode(definition: str, text: str, length: int) -> Iterator[float]:
    """The numbers again; ValueError if the text is damaged or belongs to another version or definition."""
    version, _, rest = text.partition(":")
    written_for, _, packed = rest.partition(":")
    if version != str(VERSION):
        raise ValueError(f"checkpoint of version {version[:8]!r}, this operator reads {VERSION}: its evidence restarts")
    if written_for != definition:
        raise ValueError(f"checkpoint of definition {written_for[:16]!r}, not {definition!r}: its evidence restarts")
    try:
        raw = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"damaged checkpoint ({error}): its evidence restarts") from error
    if len(raw) != 8 * length:
        raise ValueError(f"checkpoint of {len(raw)} bytes instead of {8 * length}: its evidence restarts")
    return iter(struct.unpack(f"<{length}d", raw))
