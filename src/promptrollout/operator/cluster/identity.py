"""Work that is done once per object: a prompt is parsed and hashed when it changes, not at every interval."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from promptrollout.operator.cluster.queue import Key

M = TypeVar("M", bound=BaseModel)
V = TypeVar("V")
Object = dict[str, Any]


class OncePerObject(Generic[V]):
    """A function's result for API objects of one kind: of each, for the very version (not for an equal one) that was
    asked for last. For items of the store, which are replaced as a whole."""

    _by_kind: defaultdict[str, list[OncePerObject[Any]]] = defaultdict(list)

    def __init__(self, kind: str, function: Callable[[Object], V]) -> None:
        self._function = function
        self._known: dict[tuple[str, str], tuple[Object, V]] = {}
        self._by_kind[kind].append(self)

    def __call__(self, item: Object) -> V:
        place = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
        found = self._known.get(place)
        if found is None or found[0] is not item:
            found = self._known[place] = (item, self._function(item))
        return found[1]

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def forget(cls, key: Key) -> None:
        """The object is gone."""
        for each in cls._by_kind[key.kind]:
            each._known.pop((key.namespace, key.name), None)


class OncePerModel(Generic[M, V]):
    """A function's result for the very model (not for an equal one) that it was given, as long as that lives."""

    def __init__(self, function: Callable[[M], V]) -> None:
        self._function = function
        self._known: dict[int, tuple[weakref.ref[M], V]] = {}

    def __call__(self, model: M) -> V:
        place = id(model)
        found = self._known.get(place)
        if found is not None and found[0]() is model:
            return found[1]
        result = self._function(model)
        self._known[place] = (weakref.ref(model, lambda _: self._known.pop(place, None)), result)
        return result

    def __len__(self) -> int:
        return len(self._known)
