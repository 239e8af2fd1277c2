"""The response id that callers get: a signed token around the provider's own id, so that a vote needs no shared store.

`chatcmpl-` + 40 characters + the rest of the provider's id. The 40 are base64url of 30 bytes: variant, shard, the
rollout's tag, the version's short digest, the time of the answer, the provider's tag, how long before the conversation
began, and a message authentication code over all of it. Nothing in it says who the user is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from promptrollout.api.delivery import DeliverySpec
from promptrollout.api.signing_key import SigningKeySpec
from promptrollout.gateway.assignment.assign import Variant

_HEAD: Final = struct.Struct(">BB3s5sI2sH")
_MAC_BYTES: Final = 12
# 18 and 12 bytes make 40 characters without padding, so no bit of the text is free
# the upper six bits of the first byte: a signed part begins with `P`, which no prefix of a provider contains
_FORMAT: Final = 0x3C
_CODED: Final = 0x01
"""In the first byte: the rest of the provider's id is base64url, since it is not safe in a URL."""
_RENDERED: Final = 0x02
"""In the first byte: not an answer's id, but a rendered prompt's, which says where to report. Nothing that a provider
says is ever signed as that."""
_VARIANTS: Final[tuple[Variant | None, ...]] = (None, "stable", "canary", "stable-outside", "canary-outside")
"""By the upper three bits of the second byte; the lower five are the shard."""
_MAX_EARLIER: Final = 0xFFFF
MAX_REST: Final = 256
"""An id with more characters behind its prefix is passed on as it is."""
MAX_CHARACTERS: Final = 512
MAX_AHEAD_SECONDS: Final = 60.0
"""Clocks of pods differ by less: an id of a later time was not given yet."""

_PREFIX: Final = re.compile(r"(?:[a-z]{1,16}[-_])?")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]*")
_TOKEN: Final = re.compile(r"([a-z]{1,16}[-_])?(P[A-Za-z0-9_-]{39})([A-Za-z0-9._~-]{0,256})")


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
    """Of the answer, since the epoch."""
    provider: bytes
    """The tag of the provider that answered: what it keeps of a conversation is there alone."""
    began_seconds: int
    """Since the epoch: when the conversation that is pinned to the version began, at most 18 h before the answer."""
    rendered: bool = False
    """Of a prompt that was rendered for an application; `upstream` is ours then."""
    readable: bool = False
    """It is signed with a key that people could read: enough for a conversation to go on, not for evidence."""


@cache
def provider_tag(base_url: str) -> bytes:
    return hashlib.sha256(base_url.encode()).digest()[:2]


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
    """Makes and reads the ids of one rollout under its key, which all pods have. `others` are keys that sign no longer,
    or not yet; `readable` those that people could read, and that only conversations are believed with."""

    def __init__(
        self, rollout_uid: str, key: bytes, others: Sequence[bytes] = (), readable: Sequence[bytes] = ()
    ) -> None:
        self.tag = hashlib.sha256(rollout_uid.encode()).digest()[:3]
        self._key = key
        self._keys = (key, *others)
        self._readable = tuple(each for each in readable if each not in self._keys)

    @staticmethod
    def of(spec: DeliverySpec, held: SigningKeySpec | None = None) -> ResponseIds | None:
        """By the rollout's PromptSigningKey; by the keys of its delivery as long as they stand there, since other pods
        may know no others. None: of an operator that knows neither yet."""
        beside = spec.response_keys
        told = [] if beside is None else [beside.previous, beside.next]
        own = [] if held is None else [held.key, held.next, held.previous]
        found = [key for key in (spec.response_key, *own) if key is not None]
        if not found:
            return None
        signing, *others = found
        if spec.response_key is not None:
            others += [key for key in told if key is not None]
        readable = [] if held is None else held.readable
        first, second = ([bytes.fromhex(key) for key in keys] for keys in (others, readable))
        return ResponseIds(spec.rollout_uid, bytes.fromhex(signing), first, second)

    def wrap(self, given: ResponseId) -> str:
        """The caller's id for an answer; the provider's as it is if that is too long."""
        upstream = given.upstream
        found = _PREFIX.match(upstream)
        prefix = found[0] if found else ""
        rest, first = upstream[len(prefix) :], _FORMAT
        if _PLAIN.fullmatch(rest) is None:
            rest, first = base64.urlsafe_b64encode(rest.encode()).decode().rstrip("="), first | _CODED
        if len(rest) > MAX_REST:
            return upstream
        if given.rendered:
            first |= _RENDERED
        arm = _VARIANTS.index(given.variant) << 5 | given.shard
        version, at = bytes.fromhex(given.version), given.at_seconds
        earlier = min(max(0, at - given.began_seconds), _MAX_EARLIER)
        head = _HEAD.pack(first, arm, self.tag, version, at, given.provider, earlier)
        signed = base64.urlsafe_b64encode(head + _mac(self._key, prefix, head, rest)).decode()
        return f"{prefix}{signed}{rest}"

    def unwrap(self, text: str, now: float) -> ResponseId | None:
        """What an id says; None if it was not made under these keys, was changed since, or is of a time to come.
        `now`: since the epoch."""
        found = parse(text)
        if found is None:
            return None
        readable = False
        if not _made_under(self._keys, found):
            if not _made_under(self._readable, found):
                return None
            readable = True
        first, arm, _, version, at, provider, earlier = _HEAD.unpack(found.head)
        if at > now + MAX_AHEAD_SECONDS:
            return None
        rest = found.rest
        if first & _CODED:
            rest = base64.urlsafe_b64decode(rest + "=" * (-len(rest) % 4)).decode()
        # one that this release does not know counts for neither arm
        upstream, variant = f"{found.prefix}{rest}", dict(enumerate(_VARIANTS)).get(arm >> 5)
        rendered = bool(first & _RENDERED)
        return ResponseId(
            upstream, version.hex(), variant, arm & 31, at, provider, at - earlier, rendered, readable=readable
        )


def _made_under(keys: Sequence[bytes], found: Unverified) -> bool:
    return any(hmac.compare_digest(found.mac, _mac(key, found.prefix, found.head, found.rest)) for key in keys)


def _mac(key: bytes, prefix: str, head: bytes, rest: str) -> bytes:
    signed = b"%b\0%b%b" % (prefix.encode(), head, rest.encode())
    return hmac.digest(key, signed, "sha256")[:_MAC_BYTES]
