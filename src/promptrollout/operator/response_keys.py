"""The keys that a rollout's response ids are signed with: drawn once, and changed in turn when the delivery changes."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Final

from promptrollout.api.delivery import DeliverySpec, ResponseKeys
from promptrollout.engine.draft import timestamp

SIGNS_SECONDS: Final = 30 * 86_400.0
"""At least so long does a key sign, and as long is it believed afterwards: longer than votes are counted (a day),
conversations are pinned (half a day) and OpenAI keeps answers to go on from (30 days)."""


def kept(existing: DeliverySpec | None) -> tuple[str, ResponseKeys | None]:
    """The key that signs and those beside it, as long as nothing else changes. All are new where there is none: whoever
    took out a key that leaked wants none of those that leaked with it."""
    if existing is None or existing.response_key is None:
        return _key(), None
    return existing.response_key, existing.response_keys


def in_turn(signing: str, beside: ResponseKeys | None, now: float) -> tuple[str, ResponseKeys]:
    """The same for a delivery that changes anyway: the next key signs if this one did so long enough. Pods have known
    it since it was drawn, so none that is a moment behind refuses what another one signed."""
    if beside is None:
        return signing, ResponseKeys(next=_key(), rotated_at=timestamp(int(now)))
    if now - datetime.fromisoformat(beside.rotated_at).timestamp() < SIGNS_SECONDS:
        return signing, beside
    return beside.next, ResponseKeys(next=_key(), previous=signing, rotated_at=timestamp(int(now)))


def _key() -> str:
    return secrets.token_hex(32)
