"""Whatever schema Anthropic's structured outputs are asked for, what the version's own means can be answered."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.llm.protocols.anthropic_schema import supported_schema

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "abcdef"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
SCALARS = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "integer", "number", "boolean", "null", ["string", "null"]])},
    optional={"maxLength": st.integers(0, 3), "minimum": st.integers(-1, 2)},
) | st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", 1, None]), min_size=1, max_size=2)})


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    return (
        st.fixed_dictionaries({"type": st.just("object"), "properties": properties})
        | st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional={"minItems": st.integers(0, 2)})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)})
    )


def _closed(schema: Any) -> Any:
    """The schema as its author means it: without properties that it does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(each) for name, each in schema.items()}
    return found | ({"additionalProperties": False} if schema.get("type") == "object" else {})


@settings(max_examples=300, deadline=None)
@given(st.recursive(SCALARS, _composed, max_leaves=5), st.lists(VALUES, min_size=1, max_size=8))
def test_whatever_keeps_the_schema_can_be_answered(schema: dict[str, Any], values: list[Any]) -> None:
    found = supported_schema(schema)
    assert found is not None
    asked, meant = jsonschema_rs.validator_for(found), jsonschema_rs.validator_for(_closed(schema))
    assert all(asked.is_valid(value) for value in values if meant.is_valid(value))
