"""What a provider's answer is to those who read it, whatever it comes over."""

from __future__ import annotations

from typing import Protocol


class Memory(Protocol):
    """What one answer may hold of the process's memory."""

    def claim(self, more_bytes: int) -> None:
        """Hold so much more. Raises an error of its owner's where there is no room."""


class Answer(Protocol):
    """The provider has begun to answer 200: the headers and the first bytes are here, the rest may follow."""

    deadline: float
    """On `time.perf_counter`; the caller moves it by the time that a slow reader took."""

    @property
    def content_type(self) -> str:
        """Lower case, without parameters."""

    @property
    def headers(self) -> dict[str, str]:
        """What the caller may see of them; lower-case names."""

    @property
    def ended(self) -> bool:
        """All of it was read."""

    async def chunk(self) -> bytes:
        """The next bytes; empty at the end. Raises ProviderError."""

    async def read(self, memory: Memory) -> bytes:
        """All of it. Raises ProviderError, or what `memory` raises."""

    async def begin(self, max_bytes: int, memory: Memory) -> bytes:
        """All of it, or the beginning where it is longer: `chunk` has the rest then. Raises as `read` does."""

    def replace(self, content: bytes) -> None:
        """Give out this next, in the place of what was read."""

    def hurry(self) -> None:
        """Wait for the rest for a moment only."""

    async def close(self) -> None:
        """Give the connection back, or cut it where the answer is not read to its end: the provider stops working."""
