"""Reasoning that a model signed or encrypted for itself: no other model can read it, and some reject it."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.prompts.prompt import Body

_BLOCKS: Final = frozenset({"thinking", "redacted_thinking"})
"""Of a message in Anthropic's form."""
_FIELDS: Final = frozenset({"thinking_blocks", "reasoning_details"})
"""Of a chat message, as common proxies name them."""
_ITEM: Final = "reasoning"
"""Of a list of Responses items."""

TRANSLATED_PREFIX: Final = "rs_told_"
"""Prefix of the ids of translated reasoning items. They are for reading only: OpenAI would not find them if a caller
sent them back."""


def without_translated_reasoning(body: Body) -> Body:
    """The request without the translated reasoning items of earlier answers."""
    items = body.get("input")
    if not isinstance(items, list) or not any(_is_translated(item) for item in items):
        return body
    return {**body, "input": [item for item in items if not _is_translated(item)]}


def without_signed_reasoning(body: Body) -> Body:
    """The request without signed reasoning, for another model than the one that answered: texts and tool calls stay."""
    changes: Body = {}
    for name in ("messages", "input"):
        if isinstance(items := body.get(name), list):
            kept = [_unsigned(item) for item in items if not (isinstance(item, dict) and item.get("type") == _ITEM)]
            if kept != items:
                changes[name] = kept
    return {**body, **changes} if changes else body


def _is_translated(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == _ITEM and str(item.get("id")).startswith(TRANSLATED_PREFIX)


def _unsigned(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    kept = {name: value for name, value in item.items() if name not in _FIELDS}
    if isinstance(content := kept.get("content"), list):
        kept["content"] = [part for part in content if not (isinstance(part, dict) and _is_block(part))]
    return kept


def _is_block(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind in _BLOCKS
