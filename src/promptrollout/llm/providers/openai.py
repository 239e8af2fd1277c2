"""Providers with OpenAI's API: OpenAI, vLLM, Ollama, Bedrock's compatible endpoint, other gateways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from promptrollout.llm.providers.endpoint import Endpoint

_PATHS: Final = {"chat": "/chat/completions", "responses": "/responses", "embeddings": "/embeddings"}


class OpenAIProvider(Endpoint):
    """Gets its key as a Bearer token."""

    kind: ClassVar = "OpenAI"
    paths: ClassVar[Mapping[str, str]] = _PATHS
