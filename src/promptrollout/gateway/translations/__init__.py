"""How callers of one protocol reach providers that speak another: a pair of functions and a translator of streams."""

from collections.abc import Mapping
from typing import Final

from promptrollout.gateway.translations.base import Translation

TRANSLATIONS: Final[Mapping[tuple[str, str], Translation]] = {}
"""By the names of the caller's protocol and the provider's."""
