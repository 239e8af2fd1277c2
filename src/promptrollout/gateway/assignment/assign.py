"""Assign a request to an arm: by its stickiness unit, the audience and testers (docs/reference/stickiness.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from promptrollout.api.delivery import Audience, RequestMatch, Stickiness
from promptrollout.api.names import HEADER_VARIANT
from promptrollout.gateway.assignment import baggage
from promptrollout.gateway.assignment.bucketing import shard, unit_hash, within
from promptrollout.llm.protocols.base import OPENAI_CONVERSATION, OPENAI_USER, Fields

Variant = Literal["stable", "canary", "stable-outside", "canary-outside"]
"""`…-outside`: answered by that arm, but not part of the comparison (outside the audience, without a key, forced, or
pinned)."""

Headers = Mapping[str, bytes]
"""Lower-case names; unchanged values, since their bytes are hashed."""

USER_HEADER: Final = "x-user-id"
CONVERSATION_HEADER: Final = "x-conversation-id"
# OpenTelemetry's names for the same
USER_BAGGAGE: Final = b"user.id"
CONVERSATION_BAGGAGE: Final = b"gen_ai.conversation.id"


@dataclass(frozen=True, slots=True)
class Rule:
    """A RequestMatch, compiled."""

    header: str
    """Lower case; empty: the rule is on `baggage`."""
    baggage: bytes
    values: frozenset[bytes]

    @staticmethod
    def of(match: RequestMatch) -> Rule:
        values = frozenset(value.encode() for value in match.values)
        return Rule((match.header or "").lower(), (match.baggage or "").encode(), values)


@dataclass(frozen=True, slots=True)
class Routing:
    """The part of a rollout's configuration that the assignment depends on."""

    weight: int
    """Percent on the canary; 0 if there is none, or while the emergency override is in force."""
    salt: str
    by: Literal["User", "Conversation", "Request", "Header"]
    header: str
    """Lower case; with `by: Header`."""
    include: tuple[Rule, ...]
    exclude: tuple[Rule, ...]
    has_audience: bool
    testers: tuple[Rule, ...]
    canary_loaded: bool
    """There is a canary that testers may choose."""

    @staticmethod
    def of(
        weight: int,
        salt: str,
        stickiness: Stickiness,
        audience: Audience | None = None,
        testers: Iterable[RequestMatch] = (),
        *,
        canary_loaded: bool = True,
    ) -> Routing:
        return Routing(
            weight=weight,
            salt=salt,
            by=stickiness.by,
            header=(stickiness.header or "").lower(),
            include=tuple(map(Rule.of, audience.include)) if audience else (),
            exclude=tuple(map(Rule.of, audience.exclude)) if audience else (),
            has_audience=audience is not None,
            testers=tuple(map(Rule.of, testers)),
            canary_loaded=canary_loaded,
        )


@dataclass(slots=True)  # not frozen: making one would take three times as long
class Assignment:
    variant: Variant
    shard: int = 0
    """The unit's group; meaningless outside the comparison."""
    keyless: bool = False
    """The request has no stickiness key."""
    unit: int | None = None
    """The hash of its key; None if no key was used."""
    forced: bool = False
    """A tester chose the variant."""

    @property
    def on_canary(self) -> bool:
        return self.variant in ("canary", "canary-outside")


class _RequestView:
    """The parts of a request that rules use; its baggage is parsed once, and only if a rule needs it."""

    __slots__ = ("_members", "headers")

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self._members: Mapping[bytes, bytes] | None = None

    def member(self, key: bytes) -> bytes | None:
        if self._members is None:
            header = self.headers.get("baggage")
            self._members = baggage.parse(header) if header else {}
        return self._members.get(key)

    def matches(self, rule: Rule) -> bool:
        value = self.headers.get(rule.header) if rule.header else self.member(rule.baggage)
        return value is not None and value in rule.values


def assign(
    routing: Routing,
    headers: Headers,
    body: Mapping[str, Any],
    random_unit: Callable[[], bytes],
    user_fields: Fields = OPENAI_USER,
    conversation_fields: Fields = OPENAI_CONVERSATION,
) -> Assignment:
    """The arm of this request. A unit gets the same arm as long as weight and salt do not change."""
    view = _RequestView(headers)
    if routing.testers and (forced := _forced(routing, view)) is not None:
        return forced
    if routing.has_audience and not _within(routing, view):
        return Assignment("stable-outside")
    by_request = routing.by == "Request"
    unit = random_unit() if by_request else _unit(routing, view, body, user_fields, conversation_fields)
    if not unit:
        return Assignment("stable-outside", keyless=True)
    hashed = unit_hash(routing.salt, unit)
    variant: Variant = "canary" if within(hashed, routing.weight) else "stable"
    return Assignment(variant, shard(routing.salt, unit), unit=None if by_request else hashed)


def _within(routing: Routing, view: _RequestView) -> bool:
    """Whether the request is in the audience."""
    return all(map(view.matches, routing.include)) and not any(map(view.matches, routing.exclude))


def _forced(routing: Routing, view: _RequestView) -> Assignment | None:
    """The variant that a tester chose; None for other callers, and for other values."""
    wanted = view.headers.get(HEADER_VARIANT)
    if wanted not in (b"stable", b"canary") or not any(map(view.matches, routing.testers)):
        return None
    variant: Variant = "canary-outside" if wanted == b"canary" and routing.canary_loaded else "stable-outside"
    return Assignment(variant, forced=True)


def _unit(
    routing: Routing, view: _RequestView, body: Mapping[str, Any], user_fields: Fields, conversation_fields: Fields
) -> bytes:
    """The stickiness key: of the header, else of the body's fields, else of the trace's baggage."""
    headers, by = view.headers, routing.by
    if by == "User":
        return headers.get(USER_HEADER) or _first(body, user_fields) or view.member(USER_BAGGAGE) or b""
    if by == "Conversation":
        key = headers.get(CONVERSATION_HEADER) or _first(body, conversation_fields)
        return key or view.member(CONVERSATION_BAGGAGE) or b""
    return headers.get(routing.header, b"")


def _first(body: Mapping[str, Any], fields: Fields) -> bytes:
    """The first of these fields that has a key."""
    for path in fields:
        value: Any = body
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if key := _text(value):
            return key
    return b""


def _text(value: Any) -> bytes:
    """A key from the body. Numbers count as their decimal text; other types are not keys."""
    if isinstance(value, str):
        return value.encode()
    return str(value).encode() if isinstance(value, int) and not isinstance(value, bool) else b""
