"""Reasoning that a model signed or encrypted for itself: no other model can read it, and some refuse it."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.llm.prompts.prompt import Body

_BLOCKS: Final = frozenset({"thinking", "redacted_thinking"})
"""Of a message in Anthropic's form."""
_FIELDS: Final = frozenset({"thinking_blocks", "reasoning_details"})
"""Of a chat message, as common proxies tell it."""
_ITEM: Final = "reasoning"
"""Of a list of Responses items."""


TOLD: Final = "rs_told_"
"""How ids of reasoning items begin that were translated: to be read, not to be sent back. OpenAI would look for them
among its own, in vain."""


def without_told_reasoning(body: Body) -> Body:
    """The request without such items of an answer before."""
    given = body.get("input")
    if not isinstance(given, list) or not any(_was_told(item) for item in given):
        return body
    return {**body, "input": [item for item in given if not _was_told(item)]}


def without_signed_reasoning(body: Body) -> Body:
    """The request for another model than the one that answered before: what was said and called stays."""
    changes: Body = {}
    for name in ("messages", "input"):
        if isinstance(found := body.get(name), list):
            kept = [_unsigned(item) for item in found if not (isinstance(item, dict) and item.get("type") == _ITEM)]
            if kept != found:
                changes[name] = kept
    return {**body, **changes} if changes else body


def _was_told(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == _ITEM and str(item.get("id")).startswith(TOLD)


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
