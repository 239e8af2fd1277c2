"""Which units meet the canary: flagd's fractional rule, so that other systems can reproduce it (docs/stickiness.md)."""

from __future__ import annotations

from typing import Final

import mmh3

from promptrollout.api.names import SHARDS

TOTAL: Final = 10_000
"""Buckets; a percent of weight is a hundred of them."""
_SHARD_SEED: Final = 0x53484152
"""`SHAR`, big-endian."""


def bucket(salt: str, unit: bytes) -> int:
    """The unit's bucket, 0..9999, from unsigned MurmurHash3 x86 32 (seed 0) of salt and unit, UTF-8, concatenated."""
    return (mmh3.hash(salt.encode() + unit, 0, False) * TOTAL) >> 32


def on_canary(salt: str, unit: bytes, weight: int) -> bool:
    """Whether the unit is among the first `weight` percent. Growth only adds units: the canary's buckets come first."""
    return bucket(salt, unit) < weight * (TOTAL // 100)


def shard(salt: str, unit: bytes) -> int:
    """The unit's group, 0..31, for the variance between units: the same hash with another seed, so that the groups
    are the same mix in both arms whatever the weight."""
    return mmh3.hash(salt.encode() + unit, _SHARD_SEED, False) * SHARDS >> 32
