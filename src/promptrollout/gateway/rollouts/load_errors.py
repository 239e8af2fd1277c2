"""Why a delivery cannot be loaded; each message says what to fix."""

from __future__ import annotations


class LoadError(Exception):
    """The delivery cannot be loaded; the message says what to fix."""


class KeyMissing(LoadError):
    """A provider's key or CA file is missing or not valid; loaded again when it changes."""


class KeyNotBound(KeyMissing):
    """The key's Secret does not name the provider's host; loaded again when it does."""

    def __init__(self, provider: str, host: str, problem: str) -> None:
        super().__init__(
            f"ModelProvider {provider}: its key may not be sent to {host}: `hosts` of its Secret {problem}: add the "
            "host there"
        )
        self.provider = provider


class ProviderAddressRefused(LoadError):
    """Gateways may not connect to the provider's address."""

    def __init__(self, provider: str, why: str) -> None:
        super().__init__(
            f"ModelProvider {provider}: baseURL is {why}, which is not allowed; see the chart's "
            "gateway.allowedProviderNetworks"
        )
        self.provider = provider
