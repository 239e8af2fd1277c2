"""How a request in a caller's protocol reaches a provider: in which protocol, on which path, translated by what."""

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
class Way:
    """From a protocol to a kind of provider."""

    protocol: Protocol
    """That the provider is spoken to in."""
    path: str
    translation: Translation | None
    """None: caller and provider speak the same."""


def way(protocol: Protocol, provider: Endpoint) -> Way:
    """How to reach this provider. Raises Untranslatable where there is none, or CallerError."""
    found = WAYS.get((protocol.name, provider.kind))
    if found is None:
        if not protocol.sampled:
            # another arm's answer would be about another request, and no arm is to blame
            message = (
                f"the provider of this rollout's version speaks {provider.kind}'s API, which has nothing like this"
            )
            raise CallerError(404, "not_supported", f"{message}: ask a tokenizer of its model", "model")
        message = f"its provider speaks {provider.kind}'s API, which has nothing like this URL"
        raise Untranslatable("model", message)
    return found


def _ways() -> dict[tuple[str, str], Way]:
    found: dict[tuple[str, str], Way] = {}
    for kind, provider in KINDS.items():
        for name in BY_NAME:
            if name in provider.paths:
                found[name, kind] = Way(BY_NAME[name], provider.paths[name], None)
                continue
            for native, path in provider.paths.items():
                if translation := TRANSLATIONS.get((name, native)):
                    found[name, kind] = Way(BY_NAME[native], path, translation)
                    break
    return found


WAYS: Final[Mapping[tuple[str, str], Way]] = _ways()
"""By the protocol's name and the provider's kind."""
