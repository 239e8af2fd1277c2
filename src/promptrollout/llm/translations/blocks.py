"""Anthropic's content blocks, one after the other, from OpenAI's chat streams, which may interleave them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.prompts.prompt import Body

MAX_CHARACTERS: Final = 32 * 1024 * 1024
"""Of the arguments of tool calls that are not known to be complete."""
MAX_TRIED_CHARACTERS: Final = 4 * 1024 * 1024
"""Parsed to test whether a call is complete while others wait for it; beyond this they wait for the end."""


@dataclass(eq=False, slots=True)
class _Block:
    start: Body
    call: str | None
    """The number of the tool call; None: text."""
    pieces: list[str] = field(default_factory=list)
    """Of a call: all of its arguments; of text: what was not sent yet."""
    sent: int = 0
    """How many pieces were sent."""
    closed: bool = False

    def complete(self) -> bool:
        """Whether nothing can follow. Text is complete once another block follows it."""
        if self.call is None:
            return True
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        try:
            return isinstance(orjson.loads("".join(self.pieces)), dict)
        except orjson.JSONDecodeError:
            return False


class Blocks:
    """The first block is open and is sent as it comes; later ones wait until it is complete. Calls that come one after
    the other, as they nearly always do, do not wait."""

    def __init__(self) -> None:
        self._waiting: deque[_Block] = deque()
        """The open block first."""
        self._calls: dict[str, _Block] = {}
        self._last: str | None = None
        """The number of the last call."""
        self._index = -1
        """The index of the open block."""
        self._characters = 0
        self._tried = 0
        """Characters parsed in tests for completeness."""

    def text(self, text: str, out: list[bytes]) -> None:
        """Add text."""
        if not self._waiting or self._waiting[-1].call is not None:
            self._add(_Block({"type": "text", "text": ""}, None), out)
        self._append(self._waiting[-1], text, out)

    def call(self, call: Body, out: list[bytes]) -> None:
        """Add a tool call, or more of its arguments. Raises StreamError."""
        parsed = call.get("function")
        function = parsed if isinstance(parsed, dict) else {}
        number = self._number(call)
        if (block := self._calls.get(number)) is None:
            start: Body = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
            block = self._calls[number] = _Block(start, number)
            self._add(block, out)
        self._last = number
        if isinstance(arguments := function.get("arguments"), str) and arguments:
            self._append(block, arguments, out)

    def close(self, out: list[bytes]) -> None:
        """Send everything that waits: the stream has ended."""
        while self._waiting:
            self._drop(out)

    def _number(self, call: Body) -> str:
        """The number of a call; some providers send none."""
        number, own_id = call.get("index"), call.get("id")
        if isinstance(number, int):
            return str(number)
        if own_id or self._last is None:
            return f"id {own_id or len(self._calls)}"
        return self._last

    def _add(self, block: _Block, out: list[bytes]) -> None:
        self._waiting.append(block)
        if len(self._waiting) == 1:
            self._open(out)
        else:
            self._advance(out)

    def _append(self, block: _Block, piece: str, out: list[bytes]) -> None:
        if block.closed:
            if piece.strip():
                raise StreamError("a tool call has more arguments after their end")
            return
        block.pieces.append(piece)
        self._characters += len(piece)
        if self._characters > MAX_CHARACTERS:
            raise StreamError(f"the arguments of tool calls are longer than {MAX_CHARACTERS} characters")
        if block is self._waiting[0]:
            self._send(out)
            self._advance(out)

    def _advance(self, out: list[bytes]) -> None:
        while len(self._waiting) > 1 and self._is_complete(self._waiting[0]):
            self._drop(out)

    def _is_complete(self, block: _Block) -> bool:
        if self._tried > MAX_TRIED_CHARACTERS and block.call is not None:
            return False
        self._tried += sum(map(len, block.pieces))
        return block.complete()

    def _drop(self, out: list[bytes]) -> None:
        """Close the open block, open the next."""
        out.append(event("content_block_stop", index=self._index))
        block = self._waiting.popleft()
        block.closed = True
        self._characters -= sum(map(len, block.pieces))
        block.pieces.clear()
        if self._waiting:
            self._open(out)

    def _open(self, out: list[bytes]) -> None:
        self._index += 1
        out.append(event("content_block_start", index=self._index, content_block=self._waiting[0].start))
        self._send(out)

    def _send(self, out: list[bytes]) -> None:
        """Send what the open block has that was not sent yet."""
        block = self._waiting[0]
        for piece in block.pieces[block.sent :]:
            delta = {"type": "text_delta", "text": piece}
            if block.call is not None:
                delta = {"type": "input_json_delta", "partial_json": piece}
            out.append(event("content_block_delta", index=self._index, delta=delta))
        if block.call is None:
            self._characters -= sum(map(len, block.pieces))
            block.pieces.clear()
        block.sent = len(block.pieces)


def event(kind: str, **fields: Any) -> bytes:
    """One event of Anthropic's API."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"
