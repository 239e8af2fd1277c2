"""The response id that callers get: a signed token around the provider's own id, so that a vote needs no shared store.

`chatcmpl-` + 36 characters + the rest of the provider's id. The 36 are base64url of 27 bytes: variant, shard, the
rollout's tag, the version's short digest, the time of the answer, and a message authentication code over all of it.
Nothing in it says who the user is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from dataclasses import dataclass
from typing import Final

from promptrollout.gateway.route import Variant

_HEAD: Final = struct.Struct(">BB4s5sI")
_MAC_BYTES: Final = 12
# 15 and 12 bytes make 36 characters without padding, so no bit of the text is free
_SIGNED_CHARACTERS: Final = 36
# the upper six bits of the first byte: a signed part begins with `P`, which no prefix of a provider contains
_FORMAT: Final = 0x3C
_VARIANTS: Final[tuple[Variant | None, ...]] = ("stable", "canary", "stable-outside", None)
"""By the lower two bits of the first byte. None: counted for neither arm."""
_CODED: Final = 0x20
"""In the second byte, beside the shard: the rest of the provider's id is base64url, since it is not safe in a URL."""
MAX_REST: Final = 256
"""An id with more characters behind its prefix is passed on as it is."""
MAX_CHARACTERS: Final = 512

_PREFIX: Final = re.compile(r"(?:[a-z]{1,16}[-_])?")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]*")
_TOKEN: Final = re.compile(r"([a-z]{1,16}[-_])?(P[A-Za-z0-9_-]{35})([A-Za-z0-9._~-]{0,256})")


@dataclass(frozen=True, slots=True)
class ResponseId:
    """What a response id says of an answer."""

    upstream: str
    """The provider's own id."""
    version: str
    """The short digest of the version that the request counts for."""
    variant: Variant | None
    """None: the request counts for neither arm."""
    shard: int
    at_seconds: int
    """Since the epoch."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """A text that has the form of a response id."""

    prefix: str
    head: bytes
    mac: bytes
    rest: str

    @property
    def tag(self) -> bytes:
        """Of the rollout by which it would have been given."""
        return bytes(_HEAD.unpack(self.head)[2])


def parse(text: str) -> Unverified | None:
    """None: no response id of any gateway."""
    found = _TOKEN.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if found is None:
        return None
    raw = base64.urlsafe_b64decode(found[2])
    return Unverified(found[1] or "", raw[: _HEAD.size], raw[_HEAD.size :], found[3])


class ResponseIds:
    """Makes and reads the ids of one rollout under its key, which all pods have from its delivery."""

    def __init__(self, rollout_uid: str, key: bytes) -> None:
        self.tag = hashlib.sha256(rollout_uid.encode()).digest()[:4]
        self._key = key

    def wrap(self, given: ResponseId) -> str:
        """The caller's id for an answer; the provider's as it is if that is too long."""
        upstream = given.upstream
        found = _PREFIX.match(upstream)
        prefix = found[0] if found else ""
        rest, bits = upstream[len(prefix) :], given.shard
        if _PLAIN.fullmatch(rest) is None:
            rest, bits = base64.urlsafe_b64encode(rest.encode()).decode().rstrip("="), bits | _CODED
        if len(rest) > MAX_REST:
            return upstream
        first = _FORMAT | _VARIANTS.index(given.variant)
        head = _HEAD.pack(first, bits, self.tag, bytes.fromhex(given.version), given.at_seconds)
        signed = base64.urlsafe_b64encode(head + self._mac(prefix, head, rest)).decode()
        return f"{prefix}{signed}{rest}"

    def unwrap(self, text: str) -> ResponseId | None:
        """What an id says; None if it was not made under this key, or was changed since."""
        found = parse(text)
        if found is None or not hmac.compare_digest(found.mac, self._mac(found.prefix, found.head, found.rest)):
            return None
        first, bits, _, version, at_seconds = _HEAD.unpack(found.head)
        rest = found.rest
        if bits & _CODED:
            rest = base64.urlsafe_b64decode(rest + "=" * (-len(rest) % 4)).decode()
        return ResponseId(
            f"{found.prefix}{rest}", version.hex(), _VARIANTS[first ^ _FORMAT], bits & (_CODED - 1), at_seconds
        )

    def _mac(self, prefix: str, head: bytes, rest: str) -> bytes:
        signed = b"%b\0%b%b" % (prefix.encode(), head, rest.encode())
        return hmac.digest(self._key, signed, "sha256")[:_MAC_BYTES]
