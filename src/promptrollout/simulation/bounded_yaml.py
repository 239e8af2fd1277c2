"""Untrusted YAML: refused before its aliases or its depth exhaust memory or time."""

from typing import Any, Final

import yaml

MOST_BY_ALIASES: Final = 100_000
"""Nodes that all aliases of a stream may add. Other nodes are bounded by the length of the text."""
MOST_LEVELS: Final = 100
"""Of nested lists and mappings, aliases followed."""


class BoundedLoader(yaml.SafeLoader):
    """As kubectl reads YAML: dates stay text. Raises yaml.MarkedYAMLError if there is too much."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = 0
        self._by_aliases = 0
        self._level = 0
        self._deepest = 0
        self._shapes: dict[yaml.Node, tuple[int, int]] = {}
        """Of each node that is complete: how many nodes it is, and how many levels, with all aliases followed."""

    def compose_document(self) -> yaml.Node | None:
        self._shapes.clear()
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node is not None:
                self._follow(node, event)
            return node
        before, outside = self._nodes, self._deepest
        self._nodes += 1
        self._level += 1
        self._deepest = self._level
        self._refuse_depth(event)
        node = super().compose_node(parent, index)
        if node is not None:
            self._shapes[node] = self._nodes - before, self._deepest - self._level
        self._deepest = max(outside, self._deepest)
        self._level -= 1
        return node

    def _follow(self, node: yaml.Node, event: yaml.Event) -> None:
        """Count what an alias stands for."""
        if node not in self._shapes:
            raise _refused("an alias refers to a value that contains it: write the value out", event)
        nodes, levels = self._shapes[node]
        self._nodes += nodes
        self._by_aliases += nodes
        if self._by_aliases > MOST_BY_ALIASES:
            raise _refused(f"aliases stand for more than {MOST_BY_ALIASES:,} values: write the values out", event)
        self._deepest = max(self._deepest, self._level + 1 + levels)
        self._refuse_depth(event)

    def _refuse_depth(self, event: yaml.Event) -> None:
        if self._deepest > MOST_LEVELS:
            raise _refused(f"nested more than {MOST_LEVELS} levels deep", event)


BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag != "tag:yaml.org,2002:timestamp"]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(text: str) -> Any:
    """The only document of a text. ValueError if it is not valid."""
    try:
        return yaml.load(text, BoundedLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"no YAML: {error}") from None


def _refused(reason: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=event.start_mark)  # type: ignore[arg-type]
