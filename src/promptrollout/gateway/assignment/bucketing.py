"""Which units get the canary: flagd's fractional rule, which others can reproduce (docs/reference/stickiness.md)."""

from __future__ import annotations

from typing import Final

import mmh3

from promptrollout.api.names import SHARDS

TOTAL: Final = 10_000
"""Number of buckets; one percent of weight is a hundred of them."""
_SHARD_SEED: Final = 0x53484152
"""`SHAR`, big-endian."""


def unit_hash(salt: str, unit: bytes) -> int:
    """Unsigned MurmurHash3 x86 32 (seed 0) of salt and unit, UTF-8, concatenated."""
    return mmh3.hash(salt.encode() + unit, 0, False)


def bucket(hashed: int) -> int:
    """The bucket of the unit of this hash, 0..9999."""
    return (hashed * TOTAL) >> 32


def within(hashed: int, weight: int) -> bool:
    """Whether the unit of this hash is among the first `weight` percent. A growing weight only adds units, since the
    canary's buckets come first."""
    return bucket(hashed) < weight * (TOTAL // 100)


def shard(salt: str, unit: bytes) -> int:
    """The unit's group, 0..31, for the variance between units: the same hash with another seed, so that the groups
    are the same mix in both arms whatever the weight."""
    return mmh3.hash(salt.encode() + unit, _SHARD_SEED, False) * SHARDS >> 32
