"""What an output schema, or a tool's, may cost to compile: a bound by counts, so that it is the same on any machine.

It is held against a schema before that is compiled. What it costs to hold an answer against it is bounded where that
is done, in the gateway.
"""

from __future__ import annotations

from typing import Any, Final

from promptrollout.api.schema_graph import Graph, SchemaRefused

MAX_COMPILE_COST: Final = 50_000
"""Of all schemas of a prompt together; about microseconds."""
MAX_SAME_VALUE_LEVELS: Final = 64
"""Of `$ref`, `allOf` and the like in each other without a property or an item between them: the validator's stack."""
_NODE_COST: Final = 12
_UNEVALUATED_COST: Final = 15
"""Of each way from `unevaluatedProperties` to what has evaluated a property: the validator unfolds them."""


class CompileBudget:
    """What the schemas of one prompt may cost together."""

    def __init__(self) -> None:
        self._left = MAX_COMPILE_COST

    def take(self, schema: Any) -> None:
        """Raises SchemaRefused."""
        self._left -= compile_cost(schema)
        if self._left < 0:
            raise SchemaRefused(
                "this prompt's schemas cost too much to compile: use fewer of them, smaller repetitions in patterns, "
                "or less below unevaluatedProperties"
            )


def compile_cost(schema: Any) -> int:
    """An upper bound, as MAX_COMPILE_COST counts. Raises SchemaRefused where there is none."""
    graph = Graph(schema)
    cost = sum(_NODE_COST + sum(each.compile_cost for each in node.patterns) for node in graph.nodes.values())
    ways = ways_of(graph)
    if any(node.unevaluated for node in graph.nodes.values()):
        if any(node.unknown for node in graph.nodes.values()):
            raise SchemaRefused(
                "unevaluated… is not supported beside $dynamicRef, an inner $id, or a $ref that is not a path in this "
                "schema: use additionalProperties or items"
            )
        cost += _UNEVALUATED_COST * max(ways.values(), default=0)
    return cost


def ways_of(graph: Graph) -> dict[int, int]:
    """How many schemas are applied to one value where each of the graph's is, everything counted as often as there is
    a way to it. Raises SchemaRefused for a cycle, and for what is nested too deeply."""
    ways: dict[int, int] = {}
    levels: dict[int, int] = {}
    for start, first in graph.nodes.items():
        if start in ways:
            continue
        stack = [(start, iter([id(each) for each in first.same_value]))]
        on_stack = {start}
        while stack:
            current, inner = stack[-1]
            found = next((each for each in inner if each in graph.nodes and each not in ways), None)
            if found is not None:
                if found in on_stack:
                    raise SchemaRefused("$ref leads back to itself for the same value: put it in properties or items")
                on_stack.add(found)
                stack.append((found, iter([id(each) for each in graph.nodes[found].same_value])))
                continue
            stack.pop()
            on_stack.discard(current)
            below = [id(each) for each in graph.nodes[current].same_value]
            ways[current] = 1 + sum(ways.get(each, 1) for each in below)
            levels[current] = 1 + max((levels.get(each, 1) for each in below), default=0)
            if levels[current] > MAX_SAME_VALUE_LEVELS:
                raise SchemaRefused(
                    f"more than {MAX_SAME_VALUE_LEVELS} levels of $ref, allOf, anyOf and the like: simplify it"
                )
    return ways
