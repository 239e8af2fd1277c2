"""W3C Baggage: the values that travel with a trace, read from a request's `baggage` header.

After https://www.w3.org/TR/baggage/: members are separated by commas, a member's value is percent-encoded UTF-8 and
may be followed by properties. What is malformed is skipped, as a trace's baggage is never worth an error.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

MAX_BYTES: Final = 8192
"""What every platform has to propagate; members beyond it are not read."""
MAX_MEMBERS: Final = 64
_KEY: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_BLANK: Final = b" \t"


def parse(header: bytes) -> dict[bytes, bytes]:
    """Values by key, decoded. Of several members of one key the first counts."""
    found: dict[bytes, bytes] = {}
    if len(header) > MAX_BYTES:
        # the member that the limit cuts through is not read at all
        header = header[: MAX_BYTES + 1].rpartition(b",")[0]
    for member in header.split(b",", MAX_MEMBERS)[:MAX_MEMBERS]:
        key, equals, value = member.partition(b";")[0].partition(b"=")
        key, value = key.strip(_BLANK), value.strip(_BLANK)
        if equals and _KEY.fullmatch(key) and _VALUE.fullmatch(value):
            found.setdefault(key, _decoded(value))
    return found


def _decoded(value: bytes) -> bytes:
    """UTF-8. As the specification says, what is none becomes U+FFFD; a plus is a plus."""
    if b"%" not in value:
        return value
    return unquote_to_bytes(value).decode(errors="replace").encode()
