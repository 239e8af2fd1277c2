"""First step of a request's way: whose unit it is, and which arm the unit is assigned to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from promptrollout.api.delivery import Audience, HeaderMatch, Stickiness
from promptrollout.gateway.bucketing import on_canary, shard

Variant = Literal["stable", "canary", "stable-outside", "canary-outside"]
"""`…-outside`: answered by that arm, but no part of the comparison (outside the audience, without a key, or pinned)."""

Headers = Mapping[str, bytes]
"""Lower-case names; values as they came, since their bytes are what is hashed."""

Fields = tuple[tuple[str, ...], ...]
"""Paths into a body, in the order in which they are looked at."""

USER_HEADER = "x-user-id"
CONVERSATION_HEADER = "x-conversation-id"
OPENAI_USER: Fields = (("safety_identifier",), ("user",))
OPENAI_CONVERSATION: Fields = (("metadata", "conversation_id"),)


@dataclass(frozen=True, slots=True)
class Routing:
    """The part of a rollout's configuration that decides on the arm."""

    weight: int
    """Percent on the canary; 0 where there is none or the emergency override is in force."""
    salt: str
    stickiness: Stickiness
    audience: Audience | None


@dataclass(frozen=True, slots=True)
class Assignment:
    variant: Variant
    shard: int = 0
    """The unit's group; without meaning outside the comparison."""
    keyless: bool = False
    """The request brought no stickiness key."""

    @property
    def on_canary(self) -> bool:
        return self.variant in ("canary", "canary-outside")


def assign(
    routing: Routing,
    headers: Headers,
    body: Mapping[str, Any],
    random_unit: Callable[[], bytes],
    user_fields: Fields = OPENAI_USER,
    conversation_fields: Fields = OPENAI_CONVERSATION,
) -> Assignment:
    """The arm of this request. The same unit gets the same arm for as long as weight and salt stand."""
    if routing.audience is not None and not _within(routing.audience, headers):
        return Assignment("stable-outside")
    if routing.stickiness.by == "Request":
        unit = random_unit()
    else:
        unit = unit_of(routing.stickiness, headers, body, user_fields, conversation_fields)
    if not unit:
        return Assignment("stable-outside", keyless=True)
    variant: Variant = "canary" if on_canary(routing.salt, unit, routing.weight) else "stable"
    return Assignment(variant, shard(routing.salt, unit))


def unit_of(
    stickiness: Stickiness,
    headers: Headers,
    body: Mapping[str, Any],
    user_fields: Fields = OPENAI_USER,
    conversation_fields: Fields = OPENAI_CONVERSATION,
) -> bytes:
    """The key that is bucketed: a header, else the body's own field for it; empty if there is none."""
    if stickiness.by == "User":
        return headers.get(USER_HEADER) or _first(body, user_fields)
    if stickiness.by == "Conversation":
        return headers.get(CONVERSATION_HEADER) or _first(body, conversation_fields)
    return headers.get((stickiness.header or "").lower(), b"")


def _first(body: Mapping[str, Any], fields: Fields) -> bytes:
    """The first of these fields that is a key."""
    for path in fields:
        found: Any = body
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        if key := _text(found):
            return key
    return b""


def _text(value: Any) -> bytes:
    """A key from the body. Numbers count as their decimal text; anything else is no key."""
    if isinstance(value, str):
        return value.encode()
    return str(value).encode() if isinstance(value, int) and not isinstance(value, bool) else b""


def _within(audience: Audience, headers: Headers) -> bool:
    return all(_matches(rule, headers) for rule in audience.include) and not any(
        _matches(rule, headers) for rule in audience.exclude
    )


def _matches(rule: HeaderMatch, headers: Headers) -> bool:
    value = headers.get(rule.header.lower())
    return value is not None and value.decode(errors="replace") in rule.values
