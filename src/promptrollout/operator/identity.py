"""Work that is done once per object: a prompt is parsed and hashed when it changes, not at every interval."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class OncePerObject(Generic[K, V]):
    """Remembers a function's result for the very object (not for an equal one) that it was given.

    For objects that nobody changes: items of the store, which are replaced as a whole, and frozen models.
    """

    def __init__(self, function: Callable[[K], V], size: int = 20_000) -> None:
        self._function = function
        self._size = size
        self._known: OrderedDict[int, tuple[K, V]] = OrderedDict()

    def __call__(self, subject: K) -> V:
        found = self._known.get(id(subject))
        if found is not None:
            self._known.move_to_end(id(subject))
            return found[1]
        result = self._function(subject)
        self._known[id(subject)] = (subject, result)  # holding it keeps its id its own
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return result
