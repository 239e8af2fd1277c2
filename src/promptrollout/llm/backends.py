"""How a request in a caller's protocol reaches a provider: in which protocol, on which path, with which translation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.protocols import BY_NAME
from promptrollout.llm.protocols.base import Protocol
from promptrollout.llm.providers import KINDS
from promptrollout.llm.providers.endpoint import Endpoint
from promptrollout.llm.translations import TRANSLATIONS
from promptrollout.llm.translations.base import Translation


@dataclass(frozen=True, slots=True)
class BackendRoute:
    """From a caller's protocol to one kind of provider."""

    protocol: Protocol
    """The provider's protocol."""
    path: str
    translation: Translation | None
    """None: caller and provider use the same protocol."""


def route_to(provider: Endpoint, protocol: Protocol) -> BackendRoute:
    """The route from the caller's protocol to this provider. Raises Untranslatable or CallerError if there is none."""
    route = ROUTES.get((protocol.name, provider.kind))
    if route is None:
        if not protocol.sampled:
            # another arm's answer would be about another request, and no arm is to blame
            message = f"this rollout's provider has {provider.kind}'s API, which does not support this URL"
            raise CallerError(404, "not_supported", f"{message}: use a tokenizer of its model", "model")
        raise Untranslatable("model", f"its provider has {provider.kind}'s API, which does not support this URL")
    return route


def _routes() -> dict[tuple[str, str], BackendRoute]:
    routes: dict[tuple[str, str], BackendRoute] = {}
    for kind, provider in KINDS.items():
        for name in BY_NAME:
            if name in provider.paths:
                routes[name, kind] = BackendRoute(BY_NAME[name], provider.paths[name], None)
                continue
            for native, path in provider.paths.items():
                if translation := TRANSLATIONS.get((name, native)):
                    routes[name, kind] = BackendRoute(BY_NAME[native], path, translation)
                    break
    return routes


ROUTES: Final[Mapping[tuple[str, str], BackendRoute]] = _routes()
"""By the caller's protocol and the provider's kind."""
