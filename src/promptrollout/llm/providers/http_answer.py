"""A provider's answer over HTTP: read within its timeouts and within the pod's memory."""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from typing import Final

import aiohttp

from promptrollout.llm.answers.answer import Memory
from promptrollout.llm.errors import ProviderError
from promptrollout.llm.providers.failures import WHOLE_ANSWER, broken, timed_out
from promptrollout.llm.providers.refusal import CONTROL

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
REST_SECONDS: Final = 0.5
"""For what follows the end marker of a stream."""

# about the account, the connection or this gateway: not for callers
_OWN_HEADERS: Final = frozenset(
    {"alt-svc", "connection", "content-encoding", "content-length", "date", "keep-alive", "openai-organization"}
    | {
        "openai-project",
        "anthropic-organization-id",
        "server",
        "set-cookie",
        "strict-transport-security",
        "transfer-encoding",
        "via",
    }
)


class HttpAnswer:
    """An answer over HTTP."""

    def __init__(
        self, provider: str, response: aiohttp.ClientResponse, first: bytes, deadline: float, idle_seconds: float
    ) -> None:
        self._provider = provider
        self._response = response
        self._first = first
        self._idle_seconds = idle_seconds
        self.deadline = deadline

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def headers(self) -> dict[str, str]:
        return {
            shown: value
            for name, value in self._response.headers.items()
            if (shown := _shown(name)) and not CONTROL.search(value)
        }

    async def chunk(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        left = self.deadline - time.perf_counter()
        content = self._response.content
        try:
            if content.at_eof():
                return b""
            async with asyncio.timeout(max(0.0, min(left, self._idle_seconds))):
                return await content.readany()
        except TimeoutError as error:
            what = WHOLE_ANSWER if left <= self._idle_seconds else "the next piece of its answer"
            raise timed_out(self._provider, what) from error
        except (aiohttp.ClientError, OSError) as error:
            raise broken(self._provider, error) from error

    async def read(self, memory: Memory) -> bytes:
        payload = await self.begin(MAX_ANSWER_BYTES, memory)
        if not self.ended:
            raise ProviderError(
                "bad_response", 502, f"the answer of provider {self._provider} is longer than {MAX_ANSWER_BYTES} bytes"
            )
        return payload

    def replace(self, content: bytes) -> None:
        self._first = content

    def hurry(self) -> None:
        self._idle_seconds = min(self._idle_seconds, REST_SECONDS)

    @property
    def ended(self) -> bool:
        return not self._first and self._response.content.at_eof()

    async def begin(self, max_bytes: int, memory: Memory) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await self.chunk():
            size += len(piece)
            memory.claim(len(piece))
            if size > max_bytes:
                self._first = piece
                break
            pieces.append(piece)
        return b"".join(pieces)

    async def close(self) -> None:
        self._response.close() if not self._response.content.at_eof() else self._response.release()


@lru_cache(maxsize=1024)
def _shown(name: str) -> str | None:
    """The name of a header as callers see it; None: they do not get it."""
    name = name.lower()
    return None if name in _OWN_HEADERS or name.startswith(("cf-", "access-control-")) else name
