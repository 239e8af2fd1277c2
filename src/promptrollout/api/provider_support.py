"""What a prompt uses that its provider's API does not support."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic.alias_generators import to_camel

from promptrollout.api.prompt import PromptSpec

_ANTHROPIC: Final = ("seed", "presence_penalty", "frequency_penalty")


def unsupported(prompt: PromptSpec, provider_type: str | None) -> Iterator[tuple[str, str]]:
    """Where in the spec, and why, for a ModelProvider of this type."""
    if provider_type != "Anthropic":
        return
    for name in _ANTHROPIC:
        if prompt.parameters is not None and getattr(prompt.parameters, name) is not None:
            yield f"parameters.{to_camel(name)}", "Anthropic's API does not support it: remove it"
    for index, tool in enumerate(prompt.tools or ()):
        function = tool.get("function")
        named = isinstance(function, dict) and isinstance(function.get("name"), str)
        if not named and "input_schema" not in tool:
            yield f"tools[{index}]", "Anthropic's API supports only functions, or tools in its own format"
