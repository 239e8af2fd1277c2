"""Anthropic's content blocks, which follow each other, out of what OpenAI's chat streams may interleave."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.prompts.prompt import Body

MAX_CHARACTERS: Final = 32 * 1024 * 1024
"""Of the arguments of calls that are not known to be whole."""
MAX_TRIED_CHARACTERS: Final = 4 * 1024 * 1024
"""Of all attempts to find out whether a call is whole while others wait behind it; beyond, they wait for the end."""


@dataclass(eq=False, slots=True)
class _Block:
    start: Body
    call: str | None
    """Which call it is; None: text."""
    pieces: list[str] = field(default_factory=list)
    """Of a call: all of its arguments; of text: what is not sent yet."""
    sent: int = 0
    """So many pieces."""
    closed: bool = False

    def whole(self) -> bool:
        """Whether nothing can follow. Text is whole once something stands behind it."""
        if self.call is None:
            return True
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        try:
            return isinstance(orjson.loads("".join(self.pieces)), dict)
        except orjson.JSONDecodeError:
            return False


class Blocks:
    """The first block is open and goes on as it comes; what belongs to later ones waits until it is whole. Calls that
    come one after the other, as nearly always, wait for nothing."""

    def __init__(self) -> None:
        self._waiting: deque[_Block] = deque()
        """The open one first."""
        self._calls: dict[str, _Block] = {}
        self._last: str | None = None
        """The call that was spoken of last."""
        self._index = -1
        """Of the open block."""
        self._characters = 0
        self._tried = 0
        """Characters of such attempts."""

    def text(self, text: str, out: list[bytes]) -> None:
        """More of what is said."""
        if not self._waiting or self._waiting[-1].call is not None:
            self._add(_Block({"type": "text", "text": ""}, None), out)
        self._take(self._waiting[-1], text, out)

    def call(self, call: Body, out: list[bytes]) -> None:
        """A call, or more of one. Raises StreamError."""
        given = call.get("function")
        function = given if isinstance(given, dict) else {}
        number = self._number(call)
        if (block := self._calls.get(number)) is None:
            start: Body = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
            block = self._calls[number] = _Block(start, number)
            self._add(block, out)
        self._last = number
        if isinstance(arguments := function.get("arguments"), str) and arguments:
            self._take(block, arguments, out)

    def close(self, out: list[bytes]) -> None:
        """All that waits: nothing more comes."""
        while self._waiting:
            self._drop(out)

    def _number(self, call: Body) -> str:
        """Some providers do not number their calls."""
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

    def _take(self, block: _Block, piece: str, out: list[bytes]) -> None:
        if block.closed:
            if piece.strip():
                raise StreamError("the arguments of a call go on behind their end")
            return
        block.pieces.append(piece)
        self._characters += len(piece)
        if self._characters > MAX_CHARACTERS:
            raise StreamError(f"the arguments of calls are longer than {MAX_CHARACTERS} characters")
        if block is self._waiting[0]:
            self._send(out)
            self._advance(out)

    def _advance(self, out: list[bytes]) -> None:
        while len(self._waiting) > 1 and self._is_whole(self._waiting[0]):
            self._drop(out)

    def _is_whole(self, block: _Block) -> bool:
        if self._tried > MAX_TRIED_CHARACTERS and block.call is not None:
            return False
        self._tried += sum(map(len, block.pieces))
        return block.whole()

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
        """What the open block has that is not sent yet."""
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
    """One of Anthropic's."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"
