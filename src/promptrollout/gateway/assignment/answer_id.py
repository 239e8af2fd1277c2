"""Replace the provider's id with our response id, in whole answers and in each event of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from promptrollout.gateway.assignment.assign import Variant
from promptrollout.gateway.assignment.response_id import ResponseId, ResponseIds


class AnswerId:
    """The id of one answer, made when the provider's id is first seen."""

    def __init__(
        self,
        ids: ResponseIds,
        version: str,
        variant: Variant | None,
        shard: int,
        provider: bytes,
        began_seconds: int | None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._ids = ids
        self._of = version, variant, shard
        self._provider, self._began_seconds = provider, began_seconds
        self._wall_clock = wall_clock
        self._upstream = self._replacement = ""
        self._replacements: tuple[tuple[bytes, bytes], ...] = ()

    def replace_in(self, body: dict[str, Any], path: Sequence[str]) -> bool:
        """Replace the id in `body`, at `path`; whether there was one."""
        holder: Any = body
        for name in path[:-1]:
            holder = holder.get(name)
            if not isinstance(holder, dict):
                return False
        upstream = holder.get(path[-1])
        if not isinstance(upstream, str) or not upstream:
            return False
        if upstream != self._upstream:
            self._make(upstream, path[-1])
        holder[path[-1]] = self._replacement
        return True

    def replaced(self, payload: bytes) -> bytes | None:
        """The payload that the body was parsed from, with our id. None if it must be serialized again, because the id
        occurs more than once or is escaped."""
        for old, new in self._replacements:
            if (times := payload.count(old)) == 1:
                return payload.replace(old, new, 1)
            if times:
                return None
        return None

    def _make(self, upstream: str, name: str) -> None:
        at = int(self._wall_clock())
        began = at if self._began_seconds is None else self._began_seconds
        self._upstream = upstream
        self._replacement = self._ids.wrap(ResponseId(upstream, *self._of, at, self._provider, began))
        # quotes inside a text are escaped in JSON, so a plain `"id":"…"` is a field
        self._replacements = tuple(
            (f'"{name}":{space}"{upstream}"'.encode(), f'"{name}":{space}"{self._replacement}"'.encode())
            for space in ("", " ")
        )
