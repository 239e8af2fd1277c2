"""The token of a rendered prompt: signed, so that a report of its use can be believed without a shared store."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import astuple, dataclass, fields
from typing import Final

import orjson

_SIGNATURE_BYTES: Final = 16
_MAX_CHARACTERS: Final = 2048


@dataclass(frozen=True, slots=True)
class RenderId:
    """What a report has to be counted for. Nothing in it says who the user is."""

    rollout_uid: str
    rollout: str
    version: str
    """The short digest."""
    variant: str
    shard: int
    at_seconds: int
    """Since the epoch."""
    process: str
    """Which process waits for the report."""
    address: str
    """Host and port of its pod; empty where it does not know them."""
    number: int
    """Of the render, in its process."""


class RenderIds:
    """Makes and reads tokens under one key."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or os.urandom(32)

    def sign(self, render: RenderId) -> str:
        payload = orjson.dumps(astuple(render))
        return base64.urlsafe_b64encode(self._signature(payload) + payload).rstrip(b"=").decode()

    def read(self, token: str) -> RenderId | None:
        """None: not made under this key."""
        if len(token) > _MAX_CHARACTERS or not token.isascii():
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(payload)):
            return None
        values = orjson.loads(payload)
        # signed by another release, maybe
        return RenderId(*values) if len(values) == len(fields(RenderId)) else None

    def _signature(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, b"render:" + payload, hashlib.sha256)[:_SIGNATURE_BYTES]
