"""A JSON Schema as Anthropic's structured outputs take it: a part of JSON Schema, in which objects are closed."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

import orjson

from promptrollout.llm.prompts.prompt import Body

_DEFINITIONS: Final = ("$defs", "definitions")
_FORMATS: Final = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
_WORDS: Final = ("title", "description")
_NUMBER: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_BOUNDS: Final = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _NUMBER,
    "number": _NUMBER,
    "boolean": (),
    "null": (),
    "array": ("minItems", "maxItems", "uniqueItems"),
}
"""By type: what a description says where it cannot be said otherwise."""
_APPLICATORS: Final = frozenset(
    {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "prefixItems"}
    | {"dependentSchemas", "dependentRequired", "dependencies", "unevaluatedProperties", "unevaluatedItems"}
    | {"additionalItems", "contains", "minProperties", "maxProperties", "$dynamicRef", "$recursiveRef"}
)
"""Beside the properties of a closed object, or the items of an array, they could leave no answer that keeps both."""


class _Unsupported(Exception):
    """There is nothing like it."""


def supported_schema(schema: Body) -> Body | None:
    """The schema without those bounds that cannot be said (lengths, ranges, patterns): they stand in its descriptions
    instead, so that a model may keep them. What keeps `schema`, and has no property that it does not name, keeps this.

    None where a closed object would keep out what is let in on purpose (names that are not known, any JSON), where
    schemas are combined, and where one refers to itself.
    """
    try:
        found = _schema(schema)
        named: dict[str, Body] = {}
        pending = list(_refs(found))
        while pending:
            if (ref := pending.pop()) not in named:
                named[ref] = _schema(_definition(schema, ref))
                pending += _refs(named[ref])
        TopologicalSorter({ref: list(_refs(said)) for ref, said in named.items()}).prepare()
    except (_Unsupported, CycleError, RecursionError):
        return None
    for ref, said in named.items():
        _, where, name = ref.split("/")
        found.setdefault(where, {})[name] = said
    return found


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
            return _worded(schema, {name: schema[name]})
    kind = schema.get("type")
    if isinstance(kind, list):
        bare = {name: value for name, value in schema.items() if name not in _WORDS}
        kinds = dict.fromkeys(one for one in kind if isinstance(one, str))
        return _worded(schema, {"anyOf": [_schema({**bare, "type": one}) for one in kinds]})
    if kind == "object" or (kind is None and "properties" in schema):
        return _object(schema)
    if kind == "array" or (kind is None and "items" in schema):
        return _array(schema)
    if kind is None:
        return _union(schema)
    if not isinstance(kind, str) or kind not in _BOUNDS:
        raise _Unsupported
    found: Body = {"type": kind}
    if kind == "string" and schema.get("format") in _FORMATS:
        found["format"] = schema["format"]
    return _worded(schema, found)


def _union(schema: Body) -> Body:
    combined = _APPLICATORS & schema.keys()
    for name in ("anyOf", "oneOf"):
        if combined == {name} and isinstance(schema[name], list):
            return _worded(schema, {"anyOf": [_schema(one) for one in schema[name]]})
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
    found: Body = {"type": "object", "properties": {name: _schema(each) for name, each in properties.items()}}
    if required:
        found["required"] = required
    return _worded(schema, {**found, "additionalProperties": False})


def _array(schema: Body) -> Body:
    if _APPLICATORS & schema.keys():
        raise _Unsupported
    found: Body = {"type": "array", "items": _schema(schema.get("items"))}
    if (least := schema.get("minItems")) in (0, 1):
        found["minItems"] = least
    return _worded(schema, found)


def _worded(schema: Body, found: Body) -> Body:
    """What was found to say of the schema, with its words, and those of its bounds that are left."""
    found |= {name: schema[name] for name in _WORDS if isinstance(schema.get(name), str)}
    names = _BOUNDS.get(found.get("type", ""), ())
    if bounds := {name: schema[name] for name in names if name in schema and name not in found}:
        words = (found.get("description"), orjson.dumps(bounds).decode())
        found["description"] = "\n\n".join(word for word in words if word)
    return found


def _refs(said: Body) -> Iterator[str]:
    """What a schema refers to, as far as it was said."""
    if "$ref" in said:
        yield said["$ref"]
    for each in (*said.get("properties", {}).values(), *said.get("anyOf", ()), *filter(None, [said.get("items")])):
        yield from _refs(each)


def _definition(schema: Body, ref: str) -> Any:
    """What a reference into the schema's own definitions means."""
    parts = ref.split("/")
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS:
        raise _Unsupported
    definitions = schema.get(parts[1])
    if not isinstance(definitions, dict) or parts[2] not in definitions:
        raise _Unsupported
    return definitions[parts[2]]
