"""Providers with Anthropic's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from promptrollout.api.provider import Auth
from promptrollout.llm.providers.endpoint import Endpoint

VERSION: Final = "2023-06-01"
"""Version of the API, in a header of each request unless the caller sets another."""
_PATHS: Final = {"messages": "/messages", "count_tokens": "/messages/count_tokens"}


class AnthropicProvider(Endpoint):
    """Gets its key in a header of its own."""

    kind: ClassVar = "Anthropic"
    paths: ClassVar[Mapping[str, str]] = _PATHS
    auth: ClassVar = Auth(header="x-api-key", scheme="")
    constant_headers: ClassVar[Mapping[str, str]] = {"anthropic-version": VERSION}
