"""A provider's answer as its readers see it, whatever the transport."""

from __future__ import annotations

from typing import Protocol


class Memory(Protocol):
    """The memory that one answer may use."""

    def claim(self, more_bytes: int) -> None:
        """Use so many bytes more. Raises an error of the implementation where there is no room."""


class Answer(Protocol):
    """A provider's answer with status 200: the headers and first bytes have arrived, the rest may follow."""

    deadline: float
    """On `time.perf_counter`; the caller extends it by the time that a slow reader took."""

    @property
    def content_type(self) -> str:
        """Lower case, without parameters."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the caller may see; lower-case names."""

    @property
    def ended(self) -> bool:
        """Everything was read."""

    async def chunk(self) -> bytes:
        """The next bytes; empty at the end. Raises ProviderError."""

    async def read(self, memory: Memory) -> bytes:
        """The whole answer. Raises ProviderError, or what `memory` raises."""

    async def begin(self, max_bytes: int, memory: Memory) -> bytes:
        """The whole answer, or its beginning if it is longer: `chunk` returns the rest. Raises as `read` does."""

    def replace(self, content: bytes) -> None:
        """Return this content from the next `chunk`, instead of what was read."""

    def hurry(self) -> None:
        """Wait only briefly for the rest."""

    async def close(self) -> None:
        """Release the connection, or close it if the answer was not read to its end, so that the provider stops."""
