"""The keys of one provider: used in turn; a rejected one rests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

MAX_KEYS: Final = 64
REFUSED_SECONDS: Final = 60.0
"""A rejected key (401) rests so long: it may be new, and not known everywhere yet."""
LIMITED_SECONDS: Final = 10.0
"""A rate-limited key (429) rests so long, unless the provider sends Retry-After."""
LIMITED_MAX_SECONDS: Final = 60.0


class KeyRing:
    """Round robin over the keys that do not rest. If all rest, the one whose rest ends first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._keys: tuple[str, ...] = ()
        self._resting_until: dict[str, float] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"  # a key must never be logged

    def replace(self, keys: Sequence[str]) -> None:
        """Use these keys from now on; those that were there before continue to rest."""
        self._keys = tuple(dict.fromkeys(keys))
        self._resting_until = {key: until for key, until in self._resting_until.items() if key in self._keys}

    def next(self) -> str | None:
        """The key for the next try; None if none is needed."""
        keys = self._keys
        if len(keys) < 2:
            return keys[0] if keys else None
        self._turn = (self._turn + 1) % len(keys)
        if not self._resting_until:
            return keys[self._turn]
        in_turn = keys[self._turn :] + keys[: self._turn]
        now = self._clock()
        return min(in_turn, key=lambda key: max(now, self._resting_until.get(key, now)))

    def rest(self, key: str | None, seconds: float) -> None:
        """Use other keys for so long, if there are any."""
        if key is not None and key in self._keys:
            self._resting_until[key] = self._clock() + seconds

    def works(self, key: str | None) -> None:
        """The provider accepted the key: it no longer rests."""
        if self._resting_until and key is not None:
            self._resting_until.pop(key, None)

    @property
    def another(self) -> bool:
        """Whether there is a key that does not rest."""
        now = self._clock()
        return any(self._resting_until.get(key, now) <= now for key in self._keys)

    def redacted(self, text: str) -> str:
        """The text without the keys: some providers repeat what they were sent."""
        for key in self._keys:
            text = text.replace(key, "[key]")
        return text


def parse_keys(content: str) -> list[str]:
    """One key per line. Raises ValueError, which does not quote the content."""
    keys = [line.strip() for line in content.splitlines() if line.strip()]
    if not keys or len(keys) > MAX_KEYS or not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError(f"must have one to {MAX_KEYS} lines, each a key of printable ASCII")
    return keys
