"""The latest known version of each object, by kind, namespace and name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from promptrollout.api.names import LABEL_ROLLOUT
from promptrollout.operator.cluster.queue import Key

Object = dict[str, Any]
Change = Literal["put", "deleted"]


class Store:
    """Filled by watches, by lists and by the answers to our own writes, in whatever order they arrive.

    `changed` is called with the key, the object before and the object after (None: gone) when something really changed.
    """

    def __init__(self, changed: Callable[[Key, Object | None, Object | None], None] | None = None) -> None:
        self._objects: dict[tuple[str, str], dict[str, Object]] = {}
        self._of_rollout: dict[tuple[str, str, str], set[str]] = {}
        self._changed = changed or (lambda _key, _before, _after: None)

    def put(self, kind: str, item: Object, *, even_older: bool = False, quiet: bool = False) -> bool:
        """Store an object unless it is older than the known one. True if it was new.

        `quiet`: the answer to a write of our own, after which there is nothing to do.
        """
        metadata = item["metadata"]
        metadata.pop("managedFields", None)
        key = Key(kind, sys.intern(metadata.get("namespace", "")), metadata["name"])
        space = self._objects.setdefault((kind, key.namespace), {})
        before = space.get(key.name)
        if before is not None and not even_older and not _newer(before["metadata"], metadata):
            return False
        self._index(key, before, None)
        space[key.name] = item
        self._index(key, None, item)
        if not quiet:
            self._changed(key, before, item)
        return True

    def remove(self, kind: str, namespace: str, name: str, uid: str) -> bool:
        """Forget an object if its uid is still this one. True if it was known."""
        space = self._objects.get((kind, namespace), {})
        before = space.get(name)
        if before is None or before["metadata"]["uid"] != uid:
            return False
        del space[name]
        self._index(Key(kind, namespace, name), before, None)
        self._changed(Key(kind, namespace, name), before, None)
        return True

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._objects.get((kind, namespace), {}).get(name)

    def replace_list(self, kind: str, items: list[Object], known_before: dict[str, tuple[Key, str]]) -> int:
        """A complete list, begun when `known_before` was known. Returns how many changes no watch had reported.

        Also goes back in time: after a restore from backup, everything is older than what was known.
        """
        corrections = 0
        for item in items:
            metadata = item["metadata"]
            current = self.get(kind, metadata.get("namespace", ""), metadata["name"])
            unmoved = (
                current is not None
                and known_before.get(current["metadata"]["uid"], (None, ""))[1]
                == (current["metadata"]["resourceVersion"])
            )
            if (
                unmoved
                and current is not None
                and metadata["resourceVersion"] == current["metadata"]["resourceVersion"]
            ):
                continue
            corrections += self.put(kind, item, even_older=unmoved)
        present = {item["metadata"]["uid"] for item in items}
        for uid, (key, _) in known_before.items():
            if uid not in present:
                corrections += self.remove(kind, key.namespace, key.name, uid)
        return corrections

    def in_namespace(self, kind: str, namespace: str) -> list[Object]:
        return list(self._objects.get((kind, namespace), {}).values())

    def of_rollout(self, kind: str, namespace: str, rollout: str) -> list[Object]:
        """Objects that carry the rollout's label: without this, each reconcile would walk through all versions."""
        space = self._objects.get((kind, namespace), {})
        return [space[name] for name in self._of_rollout.get((kind, namespace, rollout), ())]

    def _index(self, key: Key, before: Object | None, after: Object | None) -> None:
        for item in (before, after):
            rollout = ((item or {}).get("metadata", {}).get("labels") or {}).get(LABEL_ROLLOUT)
            if not rollout:
                continue
            place = (key.kind, key.namespace, rollout)
            if item is after:
                self._of_rollout.setdefault(place, set()).add(key.name)
            elif names := self._of_rollout.get(place):
                names.discard(key.name)
                if not names:
                    del self._of_rollout[place]

    def all(self, kind: str) -> Iterator[Object]:
        for (each, _), space in list(self._objects.items()):
            if each == kind:
                yield from list(space.values())

    def known(self, kind: str, namespace: str | None = None) -> dict[str, tuple[Key, str]]:
        """Of one kind, by uid: key and resource version."""
        found = {}
        for item in self.all(kind) if namespace is None else self.in_namespace(kind, namespace):
            metadata = item["metadata"]
            key = Key(kind, metadata.get("namespace", ""), metadata["name"])
            found[metadata["uid"]] = (key, metadata["resourceVersion"])
        return found


def _newer(before: Object, after: Object) -> bool:
    """Resource versions of one API server grow over all objects, also from an old object of a name to a new one."""
    try:
        return int(after["resourceVersion"]) > int(before["resourceVersion"])
    except ValueError:
        return bool(after["resourceVersion"] != before["resourceVersion"])
