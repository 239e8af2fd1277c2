"""The response id that callers get: a signed token with the provider's own id, so that votes need no shared store.

`chatcmpl-` + 40 characters + the rest of the provider's id. The 40 are base64url of 30 bytes: variant, shard, the
rollout's tag, the version's short digest, the time of the answer, the provider's tag, how much earlier the conversation
began, and a message authentication code over all of it. It contains nothing about the user.
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
# 18 and 12 bytes make 40 characters without padding, so no bit of the text is unused
# the upper six bits of the first byte: a signed part begins with `P`, which no prefix of a provider contains
_FORMAT: Final = 0x3C
_CODED: Final = 0x01
"""Flag in the first byte: the rest of the provider's id is base64url, since it is not safe in a URL."""
_RENDERED: Final = 0x02
"""Flag in the first byte: the id of a rendered prompt, which names the pod to report to. An id from a provider is never
signed with this flag."""
_VARIANTS: Final[tuple[Variant | None, ...]] = (None, "stable", "canary", "stable-outside", "canary-outside")
"""By the upper three bits of the second byte; the lower five are the shard."""
_MAX_EARLIER: Final = 0xFFFF
MAX_REST: Final = 256
"""An id with more characters after its prefix is forwarded unchanged."""
MAX_CHARACTERS: Final = 512
MAX_AHEAD_SECONDS: Final = 60.0
"""The clocks of pods differ by less: an id with a later time is not genuine."""

_PREFIX: Final = re.compile(r"(?:[a-z]{1,16}[-_])?")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]*")
_TOKEN: Final = re.compile(r"([a-z]{1,16}[-_])?(P[A-Za-z0-9_-]{39})([A-Za-z0-9._~-]{0,256})")


@dataclass(frozen=True, slots=True)
class ResponseId:
    """The content of a response id."""

    upstream: str
    """The provider's own id."""
    version: str
    """The short digest of the version that the request counts for."""
    variant: Variant | None
    """None: the request counts for neither arm."""
    shard: int
    at_seconds: int
    """Time of the answer, since the epoch."""
    provider: bytes
    """The tag of the provider that answered: only that one has what it stored of a conversation."""
    began_seconds: int
    """Since the epoch: when the pinned conversation began, at most 18 h before the answer."""
    rendered: bool = False
    """It is the id of a rendered prompt; `upstream` is the gateway's own then."""
    readable: bool = False
    """It is signed with a key that people could read: it can continue a conversation, but is no evidence."""


@cache
def provider_tag(base_url: str) -> bytes:
    return hashlib.sha256(base_url.encode()).digest()[:2]


@dataclass(frozen=True, slots=True)
class Unverified:
    """A text with the format of a response id."""

    prefix: str
    head: bytes
    mac: bytes
    rest: str

    @property
    def tag(self) -> bytes:
        """The tag of the rollout that it names."""
        return bytes(_HEAD.unpack(self.head)[2])


def parse(text: str) -> Unverified | None:
    """None: not a response id."""
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        return None
    raw = base64.urlsafe_b64decode(match[2])
    return Unverified(match[1] or "", raw[: _HEAD.size], raw[_HEAD.size :], match[3])


class ResponseIds:
    """Makes and reads the ids of one rollout with its key, which all pods have. `others` are keys that no longer sign,
    or not yet; `readable` are keys that people could read: ids signed with them only continue conversations."""

    def __init__(
        self, rollout_uid: str, key: bytes, others: Sequence[bytes] = (), readable: Sequence[bytes] = ()
    ) -> None:
        self.tag = hashlib.sha256(rollout_uid.encode()).digest()[:3]
        self._key = key
        self._keys = (key, *others)
        self._readable = tuple(each for each in readable if each not in self._keys)

    @staticmethod
    def of(spec: DeliverySpec, signing_key: SigningKeySpec | None = None) -> ResponseIds | None:
        """With the keys of the rollout's PromptSigningKey; with those of its delivery as long as it has some, since
        other pods may have no others. None: an operator of an earlier release has neither."""
        response_keys = spec.response_keys
        delivered = [] if response_keys is None else [response_keys.previous, response_keys.next]
        owned = [] if signing_key is None else [signing_key.key, signing_key.next, signing_key.previous]
        keys_in_order = [key for key in (spec.response_key, *owned) if key is not None]
        if not keys_in_order:
            return None
        signing, *others = keys_in_order
        if spec.response_key is not None:
            others += [key for key in delivered if key is not None]
        readable = [] if signing_key is None else signing_key.readable
        first, second = ([bytes.fromhex(key) for key in keys] for keys in (others, readable))
        return ResponseIds(spec.rollout_uid, bytes.fromhex(signing), first, second)

    def wrap(self, answer: ResponseId) -> str:
        """The caller's id for an answer; the provider's own if that is too long."""
        upstream = answer.upstream
        match = _PREFIX.match(upstream)
        prefix = match[0] if match else ""
        rest, first = upstream[len(prefix) :], _FORMAT
        if _PLAIN.fullmatch(rest) is None:
            rest, first = base64.urlsafe_b64encode(rest.encode()).decode().rstrip("="), first | _CODED
        if len(rest) > MAX_REST:
            return upstream
        if answer.rendered:
            first |= _RENDERED
        arm = _VARIANTS.index(answer.variant) << 5 | answer.shard
        version, at = bytes.fromhex(answer.version), answer.at_seconds
        earlier = min(max(0, at - answer.began_seconds), _MAX_EARLIER)
        head = _HEAD.pack(first, arm, self.tag, version, at, answer.provider, earlier)
        signed = base64.urlsafe_b64encode(head + _mac(self._key, prefix, head, rest)).decode()
        return f"{prefix}{signed}{rest}"

    def unwrap(self, text: str, now: float) -> ResponseId | None:
        """The content of an id; None if it was not signed with these keys, was changed, or has a future time. `now`:
        since the epoch."""
        token = parse(text)
        if token is None:
            return None
        readable = False
        if not _signed_with(self._keys, token):
            if not _signed_with(self._readable, token):
                return None
            readable = True
        first, arm, _, version, at, provider, earlier = _HEAD.unpack(token.head)
        if at > now + MAX_AHEAD_SECONDS:
            return None
        rest = token.rest
        if first & _CODED:
            rest = base64.urlsafe_b64decode(rest + "=" * (-len(rest) % 4)).decode()
        # a variant that this release does not know counts for neither arm
        upstream, variant = f"{token.prefix}{rest}", dict(enumerate(_VARIANTS)).get(arm >> 5)
        rendered = bool(first & _RENDERED)
        return ResponseId(
            upstream, version.hex(), variant, arm & 31, at, provider, at - earlier, rendered, readable=readable
        )


def _signed_with(keys: Sequence[bytes], token: Unverified) -> bool:
    return any(hmac.compare_digest(token.mac, _mac(key, token.prefix, token.head, token.rest)) for key in keys)


def _mac(key: bytes, prefix: str, head: bytes, rest: str) -> bytes:
    signed = b"%b\0%b%b" % (prefix.encode(), head, rest.encode())
    return hmac.digest(key, signed, "sha256")[:_MAC_BYTES]
