"""W3C Baggage: the values that travel with a trace, read from a request's `baggage` header.

After https://www.w3.org/TR/baggage/: members are separated by commas, a member's value is percent-encoded UTF-8 and
may be followed by properties. Malformed members are skipped: baggage must not make a request fail.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

MAX_BYTES: Final = 8192
"""The size that every platform must propagate; members beyond it are ignored."""
MAX_MEMBERS: Final = 64
_KEY: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_BLANK: Final = b" \t"


def parse(header: bytes) -> dict[bytes, bytes]:
    """Values by key, decoded. Of several members of one key the first counts."""
    values: dict[bytes, bytes] = {}
    if len(header) > MAX_BYTES:
        # a member that the limit cuts is ignored
        header = header[: MAX_BYTES + 1].rpartition(b",")[0]
    for member in header.split(b",", MAX_MEMBERS)[:MAX_MEMBERS]:
        key, equals, value = member.partition(b";")[0].partition(b"=")
        key, value = key.strip(_BLANK), value.strip(_BLANK)
        if equals and _KEY.fullmatch(key) and _VALUE.fullmatch(value):
            values.setdefault(key, _decoded(value))
    return values


def _decoded(value: bytes) -> bytes:
    """Percent-decoded UTF-8. As specified, invalid bytes become U+FFFD, and a plus stays a plus."""
    if b"%" not in value:
        return value
    return unquote_to_bytes(value).decode(errors="replace").encode()
