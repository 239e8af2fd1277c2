"""The format in which a caller reads errors: that of the path's protocol, or where the path has none by its headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from promptrollout.gateway.applications import ofrep, render, usage
from promptrollout.gateway.applications.feedback import FEEDBACK_PATH, SCORES_PATH
from promptrollout.llm.protocols import PROTOCOLS
from promptrollout.llm.protocols.chat import CHAT
from promptrollout.llm.protocols.messages import ANTHROPIC_HEADER, MESSAGES

_ANTHROPIC_HEADER: Final = ANTHROPIC_HEADER.encode()
_BELOW_MESSAGES: Final = "/v1/messages/"
_OWN: Final = frozenset({FEEDBACK_PATH, SCORES_PATH, usage.PATH})
"""Paths of our own API: its callers read our errors, with code and field."""


class ErrorFormat(Protocol):
    """Writes the body of an error. Equal formats write equal bodies, so that these can be cached."""

    def __hash__(self) -> int: ...

    def error_body(self, status: int, message: str, code: str | None = None, param: str | None = None) -> bytes: ...


def error_format_of(path: str, headers: Iterable[tuple[bytes, bytes]]) -> ErrorFormat:
    """The format for a request with this path and these headers (lower-case names)."""
    if protocol := PROTOCOLS.get(path):
        return protocol
    if path.startswith(ofrep.ROOT):
        return ofrep.OfrepErrors.of(path)
    if path.startswith(_BELOW_MESSAGES):
        return MESSAGES
    if path in _OWN or path.startswith(render.PREFIX):
        return CHAT
    return MESSAGES if any(name == _ANTHROPIC_HEADER for name, _ in headers) else CHAT
