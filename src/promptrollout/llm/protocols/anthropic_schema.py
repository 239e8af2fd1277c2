"""A JSON Schema for Anthropic's structured outputs, which support a part of JSON Schema with closed objects."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

import orjson

from promptrollout.llm.prompts.prompt import Body

_DEFINITIONS: Final = ("$defs", "definitions")
_FORMATS: Final = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
_TEXTS: Final = ("title", "description")
_NUMBER: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_BOUNDS: Final = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _NUMBER,
    "number": _NUMBER,
    "boolean": (),
    "null": (),
    "array": ("minItems", "maxItems", "uniqueItems"),
}
"""Keywords by type; those that are not supported are written into the description."""
_APPLICATORS: Final = frozenset(
    {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "prefixItems"}
    | {"dependentSchemas", "dependentRequired", "dependencies", "unevaluatedProperties", "unevaluatedItems"}
    | {"additionalItems", "contains", "minProperties", "maxProperties", "$dynamicRef", "$recursiveRef"}
)
"""Next to the properties of a closed object, or the items of an array, they might allow no answer at all."""


class _Unsupported(Exception):
    """Structured outputs do not support this schema."""


def supported_schema(schema: Body) -> Body | None:
    """The schema without unsupported bounds (lengths, ranges, patterns): these go into its descriptions, so that the
    model can follow them. Every answer that matches `schema`, and has no property that it does not name, matches this.

    None if a closed object would exclude what the schema allows on purpose (unknown names, any JSON), if schemas are
    combined, or if one refers to itself.
    """
    try:
        supported = _schema(schema)
        named: dict[str, Body] = {}
        refs = list(_refs(supported))
        while refs:
            if (ref := refs.pop()) not in named:
                named[ref] = _schema(_definition(schema, ref))
                refs += _refs(named[ref])
        TopologicalSorter({ref: list(_refs(definition)) for ref, definition in named.items()}).prepare()
    except (_Unsupported, CycleError, RecursionError):
        return None
    for ref, definition in named.items():
        _, where, name = ref.split("/")
        supported.setdefault(where, {})[name] = definition
    return supported


def _schema(schema: Any) -> Body:
    if not isinstance(schema, dict):
        raise _Unsupported
    if isinstance(ref := schema.get("$ref"), str):
        return {"$ref": ref}
    for name in ("enum", "const"):
        if name in schema:
            values = schema[name] if name == "enum" else [schema[name]]
            if not isinstance(values, list) or any(isinstance(value, dict | list) for value in values):
                raise _Unsupported
            return _described(schema, {name: schema[name]})
    kind = schema.get("type")
    if isinstance(kind, list):
        bare = {name: value for name, value in schema.items() if name not in _TEXTS}
        kinds = dict.fromkeys(one for one in kind if isinstance(one, str))
        return _described(schema, {"anyOf": [_schema({**bare, "type": one}) for one in kinds]})
    if kind == "object" or (kind is None and "properties" in schema):
        return _object(schema)
    if kind == "array" or (kind is None and "items" in schema):
        return _array(schema)
    if kind is None:
        return _union(schema)
    if not isinstance(kind, str) or kind not in _BOUNDS:
        raise _Unsupported
    supported: Body = {"type": kind}
    if kind == "string" and schema.get("format") in _FORMATS:
        supported["format"] = schema["format"]
    return _described(schema, supported)


def _union(schema: Body) -> Body:
    combined = _APPLICATORS & schema.keys()
    for name in ("anyOf", "oneOf"):
        if combined == {name} and isinstance(schema[name], list):
            return _described(schema, {"anyOf": [_schema(one) for one in schema[name]]})
    raise _Unsupported


def _object(schema: Body) -> Body:
    properties, required = schema.get("properties"), schema.get("required", [])
    closed = schema.get("additionalProperties")
    if properties is None and closed is False:
        properties = {}
    if not isinstance(properties, dict) or closed not in (None, False) or _APPLICATORS & schema.keys():
        raise _Unsupported
    if not isinstance(required, list) or any(not isinstance(name, str) or name not in properties for name in required):
        raise _Unsupported
    supported: Body = {"type": "object", "properties": {name: _schema(each) for name, each in properties.items()}}
    if required:
        supported["required"] = required
    return _described(schema, {**supported, "additionalProperties": False})


def _array(schema: Body) -> Body:
    if _APPLICATORS & schema.keys():
        raise _Unsupported
    supported: Body = {"type": "array", "items": _schema(schema.get("items"))}
    if (least := schema.get("minItems")) in (0, 1):
        supported["minItems"] = least
    return _described(schema, supported)


def _described(schema: Body, supported: Body) -> Body:
    """The supported schema with its title and description, and with the unsupported bounds in the description."""
    supported |= {name: schema[name] for name in _TEXTS if isinstance(schema.get(name), str)}
    names = _BOUNDS.get(supported.get("type", ""), ())
    if bounds := {name: schema[name] for name in names if name in schema and name not in supported}:
        words = (supported.get("description"), orjson.dumps(bounds).decode())
        supported["description"] = "\n\n".join(word for word in words if word)
    return supported


def _refs(supported: Body) -> Iterator[str]:
    """The references in a supported schema."""
    if "$ref" in supported:
        yield supported["$ref"]
    for each in (
        *supported.get("properties", {}).values(),
        *supported.get("anyOf", ()),
        *filter(None, [supported.get("items")]),
    ):
        yield from _refs(each)


def _definition(schema: Body, ref: str) -> Any:
    """The definition that a reference names, in the schema's own definitions."""
    parts = ref.split("/")
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS:
        raise _Unsupported
    definitions = schema.get(parts[1])
    if not isinstance(definitions, dict) or parts[2] not in definitions:
        raise _Unsupported
    return definitions[parts[2]]
