"""First step of a request's way: whose unit it is, and which arm the unit is assigned to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from promptrollout.api.delivery import Audience, HeaderMatch, Stickiness
from promptrollout.gateway.bucketing import on_canary, shard

Variant = Literal["stable", "canary", "stable-outside"]
"""`stable-outside`: answered by stable, but no part of the comparison (outside the audience, or without a key)."""

Headers = Mapping[str, bytes]
"""Lower-case names; values as they came, since their bytes are what is hashed."""

USER_HEADER = "x-user-id"
CONVERSATION_HEADER = "x-conversation-id"


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
    """The unit's group; without meaning for `stable-outside`."""
    keyless: bool = False
    """The request brought no stickiness key."""


def assign(routing: Routing, headers: Headers, body: Mapping[str, Any], random_unit: Callable[[], bytes]) -> Assignment:
    """The arm of this request. The same unit gets the same arm for as long as weight and salt stand."""
    if routing.audience is not None and not _within(routing.audience, headers):
        return Assignment("stable-outside")
    unit = random_unit() if routing.stickiness.by == "Request" else unit_of(routing.stickiness, headers, body)
    if not unit:
        return Assignment("stable-outside", keyless=True)
    variant: Variant = "canary" if on_canary(routing.salt, unit, routing.weight) else "stable"
    return Assignment(variant, shard(routing.salt, unit))


def unit_of(stickiness: Stickiness, headers: Headers, body: Mapping[str, Any]) -> bytes:
    """The key that is bucketed: a header, else the body's own field for it; empty if there is none."""
    if stickiness.by == "User":
        return headers.get(USER_HEADER) or _text(body.get("safety_identifier")) or _text(body.get("user"))
    if stickiness.by == "Conversation":
        metadata = body.get("metadata")
        named = metadata.get("conversation_id") if isinstance(metadata, dict) else None
        return headers.get(CONVERSATION_HEADER) or _text(named)
    return headers.get((stickiness.header or "").lower(), b"")


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
