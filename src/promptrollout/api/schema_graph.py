"""A JSON Schema as a graph: which schemas are applied to the same value, and which to the values inside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from promptrollout.api.pattern_size import PatternSize, pattern_size

_SAME_VALUE: Final = ("if", "then", "else", "not")
_SAME_VALUE_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SAME_VALUE_MAPS: Final = ("dependentSchemas", "dependencies")
_EACH_VALUE: Final = ("contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
_DEFINITIONS: Final = ("$defs", "definitions")
_DYNAMIC_REFS: Final = ("$dynamicRef", "$recursiveRef")
_SUBSCHEMAS: Final = frozenset(
    {*_SAME_VALUE, *_SAME_VALUE_LISTS, *_SAME_VALUE_MAPS, *_EACH_VALUE, *_DEFINITIONS, *_DYNAMIC_REFS}
    | {"$ref", "properties", "patternProperties", "additionalProperties", "prefixItems", "items", "additionalItems"}
)
_SLOW_FORMATS: Final = frozenset({"regex", "idn-email", "idn-hostname"})
"""Some drafts compile or convert the text of the answer."""
_EACH_CHARACTER: Final = ("format", "contentMediaType", "contentEncoding", "maxLength", "minLength", "uniqueItems")
"""They read each character of a text; some drafts parse what is in it."""
_LIMITS: Final = ("multipleOf", "maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum")
_SAME_AS: Final = ("const", "enum")
_INTEGER_COST: Final = 20
"""Of one of `_LIMITS`, in keywords."""
_NUMBER_COST: Final = 80
"""Of a number that is compared exactly: up to 4 microseconds, by fractions of any size."""
_UNIQUE_COST: Final = 400
"""Of `uniqueItems`, for each value: a few items are compared pair by pair, and so exactly."""
_USUAL_NUMBERS: Final = (1e-30, 1e30)
"""What is smaller or larger is compared by fractions of hundreds of digits."""
_POINTER: Final = re.compile(r"#(?:/.*)?", re.DOTALL)


MAX_SCHEMAS: Final = 4_000


class SchemaRefused(ValueError):
    """What it would cost is too much, or has no bound; the message says what to change."""


@dataclass(slots=True)
class Node:
    """One schema: its own keywords in numbers, and the schemas in it."""

    weight: int = 1
    """Values in its own keywords, numbers counted by what they cost: how much there is to look at for one value."""
    characters: int = 0
    """How often its own keywords, patterns aside, read a text from beginning to end."""
    numbers: bool = False
    """It compares numbers exactly: what that takes depends on the exponents of those in the answer."""
    unique: bool = False
    """`uniqueItems`: it reads everything that is in a list."""
    patterns: list[PatternSize] = field(default_factory=list)
    same_value: list[Any] = field(default_factory=list)
    """Schemas applied to the same value."""
    properties: dict[str, Any] = field(default_factory=dict)
    other_property: Any = None
    """Applied to properties that have no schema of their own."""
    items: list[Any] = field(default_factory=list)
    other_item: Any = None
    each: list[Any] = field(default_factory=list)
    """Applied to every property, or to every item."""
    definitions: list[Any] = field(default_factory=list)
    unevaluated: bool = False
    unknown: bool = False
    """It refers to what this graph does not know."""
    slow: bool = False
    """It has a keyword whose cost grows with the text of an answer in an unknown way."""


class Graph:
    """Nodes are known by the `id` of their part of the schema, which the graph keeps alive. Raises SchemaRefused for
    too many of them."""

    def __init__(self, schema: Any) -> None:
        self.root = schema
        self.nodes: dict[int, Node] = {}
        """Everything that can be reached from the root, definitions included."""
        self._id = schema.get("$id") if isinstance(schema, dict) else None
        waiting = [schema]
        while waiting:
            found = waiting.pop()
            if id(found) in self.nodes or not isinstance(found, dict):
                continue
            if len(self.nodes) == MAX_SCHEMAS:
                raise SchemaRefused(f"more than {MAX_SCHEMAS} schemas in one: simplify it")
            node = self.nodes[id(found)] = self._node(found)
            waiting += (*node.same_value, *node.properties.values(), *node.items, *node.each, *node.definitions)
            waiting += (node.other_property, node.other_item)

    def _node(self, schema: dict[str, Any]) -> Node:
        node = Node()
        for name, value in schema.items():
            if name not in _SUBSCHEMAS:
                _add_own(name, value, node)
            elif name in _SAME_VALUE:
                node.same_value.append(value)
            elif name in _SAME_VALUE_LISTS:
                node.same_value += _list(value)
            elif name in _SAME_VALUE_MAPS:
                node.same_value += [each for each in _map(value).values() if not isinstance(each, list)]
            elif name in _EACH_VALUE:
                node.each.append(value)
                node.unevaluated = node.unevaluated or name.startswith("unevaluated")
            elif name in _DEFINITIONS:
                node.definitions += _map(value).values()
            elif name == "$ref":
                self._add_reference(value, node)
            elif name in _DYNAMIC_REFS:
                node.unknown = True
            else:
                _add_children(name, value, schema, node)
        if isinstance(pattern := schema.get("pattern"), str):
            node.patterns.append(pattern_size(pattern))
        node.slow = node.slow or schema.get("format") in _SLOW_FORMATS
        if schema is not self.root and isinstance(schema.get("$id", schema.get("id")), str):
            node.unknown = True  # references are relative to it
        return node

    def _add_reference(self, reference: Any, node: Node) -> None:
        if not isinstance(reference, str):
            return
        found = self._resolved(reference)
        if found is None:
            node.unknown = True
        else:
            node.same_value.append(found)

    def _resolved(self, reference: str) -> Any:
        """The schema that a reference within this document names; None: not found, or elsewhere."""
        if isinstance(self._id, str) and self._id and reference.startswith(self._id):
            reference = reference[len(self._id) :] or "#"
        if not _POINTER.fullmatch(reference):
            return None
        found = self.root
        for part in unquote(reference[1:]).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and len(name) < 9 and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found


def _add_own(name: str, value: Any, node: Node) -> None:
    """Of a keyword without schemas in it."""
    if name not in _LIMITS and name not in _SAME_AS:
        node.weight += values_in(value) if isinstance(value, dict | list) else 1
        node.characters += name in _EACH_CHARACTER
        if name == "uniqueItems" and value is True:
            node.unique = node.numbers = True
            node.weight += _UNIQUE_COST
        return
    for each in _values(value):
        if isinstance(each, int | float) and not isinstance(each, bool):
            cheap = name in _LIMITS and isinstance(each, int) and abs(each) < 2**53
            node.weight += _INTEGER_COST if cheap else _NUMBER_COST
            node.numbers = True
            node.slow = node.slow or (each != 0 and not _USUAL_NUMBERS[0] <= abs(each) <= _USUAL_NUMBERS[1])
        else:
            node.weight += 1


def _add_children(name: str, value: Any, schema: dict[str, Any], node: Node) -> None:
    """Of a keyword about properties or items."""
    if name == "properties":
        node.properties = dict(_map(value))
        node.weight += len(node.properties)
    elif name == "patternProperties":
        node.each += _map(value).values()
        node.patterns += [pattern_size(pattern) for pattern in _map(value)]
    elif name == "additionalProperties":
        node.other_property = value
    elif name == "prefixItems":
        node.items = _list(value)
    elif name == "items" and isinstance(value, list):  # of older drafts
        node.items = node.items or value
        node.other_item = schema.get("additionalItems")
    elif name == "items":
        node.other_item = value


def values_in(value: Any) -> int:
    """How many JSON values there are in this one, itself included."""
    return sum(1 for _ in _values(value))


def _values(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        yield found
        if isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
