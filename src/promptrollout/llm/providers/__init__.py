"""The providers of language models: one module per kind of API. A new kind is one file and one line here."""

from collections.abc import Mapping
from typing import Final

from promptrollout.llm.providers.anthropic import AnthropicProvider
from promptrollout.llm.providers.endpoint import Endpoint
from promptrollout.llm.providers.openai import OpenAIProvider

KINDS: Final[Mapping[str, type[Endpoint]]] = {kind.kind: kind for kind in (OpenAIProvider, AnthropicProvider)}
"""By ModelProvider's `type`."""
