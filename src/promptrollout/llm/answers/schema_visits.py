"""An upper bound, from the schema alone, of the validation work for each value of an answer.

A schema that applies two schemas to the same value within `anyOf`, each of which applies two more, doubles the time of
a validation with each level; so does a union that applies itself twice to a property. The bound counts how often
schemas are applied to one value, over all paths that lead to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from promptrollout.api.schema_graph import Graph, Node, SchemaRefused
from promptrollout.api.schema_limits import ways_of

MAX_VISITS: Final = 20_000
_MAX_UNIQUE: Final = 20
_MAX_STEPS: Final = 200_000
"""Of computing the bound. A schema that takes more has none."""
_MAX_ROUNDS: Final = 300

_Counts = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Visits:
    """Each is the largest number for any value of any answer."""

    keywords: int
    """Keywords that are evaluated, and the entries in them."""
    positions: int
    """For each character of a text: positions in regular expressions that a match can be at, and keywords that read
    it."""
    numbers: bool = False
    """Numbers are compared exactly: the bound holds unless an answer has some with large exponents."""


def visits(schema: Any) -> Visits | None:
    """None: no bound is known, or it is beyond MAX_VISITS."""
    try:
        graph = Graph(schema)
        ways = ways_of(graph)
    except SchemaRefused:
        return None
    if any(node.unevaluated or node.unknown or node.slow for node in graph.nodes.values()):
        return None
    if max(ways.values(), default=0) > MAX_VISITS:
        return None
    lists = _nested_lists(graph)
    bound = None if lists is None else _Bound(graph).bound()
    if bound is None or lists is None:
        return None
    numbers = any(node.numbers for node in graph.nodes.values())
    return Visits(bound.keywords * max(1, lists), bound.positions * max(1, lists), numbers)


def _nested_lists(graph: Graph) -> int | None:
    """How many schemas with `uniqueItems` are nested at most: each of them reads everything in its list.
    None: no bound is known."""
    unique = [each for each, node in graph.nodes.items() if node.unique]
    if len(unique) > _MAX_UNIQUE:
        return None
    most = 0
    for start in unique:
        seen: set[int] = set()
        waiting = _inner(graph.nodes[start])
        while waiting:
            inner = id(waiting.pop())
            if inner in graph.nodes and inner not in seen:
                seen.add(inner)
                waiting += _inner(graph.nodes[inner])
        if start in seen:
            return None
        most = max(most, 1 + sum(each in seen for each in unique))
    return most


def _inner(node: Node) -> list[Any]:
    further = (*node.properties.values(), node.other_property, node.other_item)
    return [*node.same_value, *node.items, *node.each, *further]


class _TooMany(Exception):
    """More steps, or more visits, than allowed."""


class _Bound:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._left = _MAX_STEPS
        self._applied: dict[int, list[tuple[Node, int]]] = {}
        self._largest: dict[int, _Counts] = {}

    def bound(self) -> Visits | None:
        """Goes through all schemas that are applied to values until no number grows. The numbers grow for ever if a
        schema is applied more than once to a value inside its own."""
        try:
            starts = self._starts()
            for _ in range(_MAX_ROUNDS):
                changed = False
                for start in starts:
                    before, now = self._largest[start], self._inside(start)
                    if now[0] > MAX_VISITS:
                        return None
                    changed = changed or now != before
                    self._largest[start] = now
                if not changed:
                    keywords, positions = self._largest.get(id(self._graph.root), (1, 0))
                    return Visits(keywords, positions)
        except _TooMany:
            pass
        return None

    def _starts(self) -> list[int]:
        """Schemas that are applied to whole values, the innermost first."""
        order: list[int] = []
        waiting: list[Any] = [self._graph.root]
        seen: set[int] = set()
        while waiting:
            schema = waiting.pop()
            if id(schema) in seen or id(schema) not in self._graph.nodes:
                continue
            seen.add(id(schema))
            order.append(id(schema))
            applied = self._applied[id(schema)] = self._at_once(schema)
            self._largest[id(schema)] = _own(applied)
            for node, _ in applied:
                self._step(len(node.properties) + len(node.items) + len(node.each) + 1)
                waiting += (*node.properties.values(), *node.items, *node.each, node.other_property, node.other_item)
        order.reverse()
        return order

    def _at_once(self, schema: Any) -> list[tuple[Node, int]]:
        """The schemas that are applied to a value together with this one, and how often. The graph has no cycles
        there."""
        below: dict[int, Counter[int]] = {}
        stack = [schema]
        while stack:
            current = stack[-1]
            waiting = [each for each in self._nodes(current) if id(each) not in below]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if id(current) in below:
                continue
            counts = Counter({id(current): 1})
            for each in self._nodes(current):
                counts.update(below[id(each)])
                self._step(len(below[id(each)]))
            below[id(current)] = counts
        return [(self._graph.nodes[each], times) for each, times in below[id(schema)].items()]

    def _nodes(self, schema: Any) -> list[Any]:
        same = self._graph.nodes[id(schema)].same_value
        self._step(len(same) + 1)
        return [each for each in same if id(each) in self._graph.nodes]

    def _inside(self, start: int) -> _Counts:
        """The largest numbers for a value that the schema is applied to, or for one inside it."""
        applied = self._applied[start]
        largest = _own(applied)
        for properties in (True, False):
            base, more = (0, 0), dict[str | int, _Counts]()
            for node, times in applied:
                other = self._of(node.other_property if properties else node.other_item)
                for each in node.each:
                    base = _plus(base, self._of(each), times)
                base = _plus(base, other, times)
                named = node.properties.items() if properties else enumerate(node.items)
                for name, schema in named:
                    own = self._of(schema)
                    difference = own[0] - other[0], own[1] - other[1]
                    more[name] = _plus(more.get(name, (0, 0)), difference, times)
                self._step(len(node.each) + len(node.properties) + len(node.items) + 1)
            for extra in [(0, 0), *more.values()]:
                total = _plus(base, extra, 1)
                largest = max(largest[0], total[0]), max(largest[1], total[1])
        return largest

    def _of(self, schema: Any) -> _Counts:
        if schema is None:
            return (0, 0)
        return self._largest.get(id(schema), (1, 0))

    def _step(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _TooMany


def _own(applied: list[tuple[Node, int]]) -> _Counts:
    return (
        sum(node.weight * times for node, times in applied),
        sum((node.characters + sum(each.positions for each in node.patterns)) * times for node, times in applied),
    )


def _plus(one: _Counts, other: _Counts, times: int) -> _Counts:
    return one[0] + other[0] * times, one[1] + other[1] * times
