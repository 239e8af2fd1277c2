"""docs/reference/fields: every field of each kind, by the schema that the API server checks."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from promptrollout.api.crds import PRESERVE, RULES, Schema, kind_schema
from promptrollout.api.meta import CustomResource
from promptrollout.cli.reference.markdown import HEAD, anchor, code, prose

_REFERENCE: Final = {"name", "key"}
"""Fields of what refers to another object: they need no section of their own."""


def fields_page(kind: type[CustomResource]) -> str:
    """Every field of a kind: type, bounds, default and meaning, by the schema that the API server checks."""
    schema = kind_schema(kind)
    lines = [HEAD, f"# Fields of {kind.kind_name}", "", prose(schema["description"]), ""]
    names = ", ".join(f"`{name}`" for name in (kind.plural, *kind.short_names))
    lines += [f"With kubectl: {names}. `metadata.name` has at most {kind.max_name_length} characters.", ""]
    shown: dict[str, str] = {}
    for part in ("spec", "status"):
        if part in schema["properties"]:
            lines += _section(part, schema["properties"][part], 2, shown)
    return "\n".join(lines)


def _section(path: str, schema: Schema, level: int, shown: dict[str, str]) -> Iterator[str]:
    """An object's fields, then those of the objects in it. `shown`: sections by their content, to refer to."""
    yield from (f"{'#' * level} `{path}`", "")
    if description := schema.get("description"):
        yield from (prose(description), "")
    required = schema.get("required", ())
    inner: list[tuple[str, Schema]] = []
    for name, field in schema["properties"].items():
        of, suffix = _object_in(field)
        link = ""
        if name == "conditions":
            link = " Their types and reasons: [conditions](../conditions.md)."
        elif of is not None and not set(of["properties"]) <= _REFERENCE:
            content = repr(_bare(of))
            if content not in shown:
                shown[content] = f"{path}.{name}{suffix}"
                inner.append((shown[content], of))
            link = f" See [{shown[content]}](#{anchor(shown[content])})."
        facts = ", ".join([_type(field), *(["required"] if name in required else []), *_bounds(field)])
        yield f"- **`{name}`** ({facts}). {prose(field.get('description', ''))}{link}"
    rules = [rule for rule in schema.get(RULES, ()) if rule.get("message")]
    if rules:
        yield from ("", "The API server also checks:", "")
        yield from (f"- {prose(rule['message'])}" for rule in rules)
    yield ""
    for inner_path, of in inner:
        yield from _section(inner_path, of, min(level + 1, 3), shown)


def _bare(node: Any) -> Any:
    """A schema without what may differ where the same object stands in spec and status: defaults, rules and words."""
    if isinstance(node, dict):
        return {key: _bare(value) for key, value in node.items() if key not in ("default", "description", RULES)}
    return [_bare(each) for each in node] if isinstance(node, list) else node


def _object_in(field: Schema) -> tuple[Schema | None, str]:
    """The object that a field is, is a list of, or maps to; and how a path says so."""
    if "properties" in field:
        return field, ""
    if "items" in field and "properties" in field["items"]:
        return field["items"], "[]"
    values = field.get("additionalProperties")
    if isinstance(values, dict) and "properties" in values:
        return values, ".KEY"
    return None, ""


def _type(field: Schema) -> str:
    if field.get(PRESERVE) and "properties" not in field:
        return "any JSON object" if field.get("type") == "object" else "any JSON"
    if len(field.get("properties", {})) > 0 and set(field["properties"]) <= _REFERENCE:
        return "object of " + " and ".join(code(name) for name in field["properties"])
    match field.get("type"):
        case "array":
            return f"list of {_plural(_type(field['items']))}"
        case "object" if isinstance(values := field.get("additionalProperties"), dict):
            return f"map of {_plural(_type(values))}"
        case kind:
            return str(kind or "any JSON")


def _plural(kind: str) -> str:
    return kind if kind.startswith(("any", "list", "map")) else re.sub("^(string|integer|object|boolean)", r"\1s", kind)


def _bounds(field: Schema) -> Iterator[str]:
    of = field["items"] if field.get("type") == "array" else field
    if "enum" in of:
        yield "one of " + ", ".join(code(str(value)) for value in of["enum"])
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " entries"),
    ):
        schema = of if unit in ("", " characters") else field
        if text := _range(schema.get(low), schema.get(high), unit):
            yield text
    if "format" in of:
        yield f"format `{of['format']}`"
    if "pattern" in of:
        yield f"pattern {code(of['pattern'])}"
    if "default" in field:
        default = field["default"]
        yield f"default {code(default if isinstance(default, str) else json.dumps(default))}"


def _range(low: float | None, high: float | None, unit: str) -> str:
    """`low` 0 says nothing of a length."""
    if high is None:
        return f"at least {low:,}{unit}" if low is not None else ""
    if low is None or (unit and not low):
        return f"at most {high:,}{unit}"
    return f"{low:,} to {high:,}{unit}" if low != high else f"{low:,}{unit}"
