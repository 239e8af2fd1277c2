"""Why a delivery cannot be served; each message says what to mend."""

from __future__ import annotations


class LoadError(Exception):
    """The delivery cannot be served; the message says what to mend."""


class KeyMissing(LoadError):
    """A provider's file of keys, or of its CA, is not there yet; worth another try when it is."""


class KeyNotBound(KeyMissing):
    """The key's Secret does not name the provider's host; worth another try when it does."""

    def __init__(self, provider: str, host: str, problem: str) -> None:
        super().__init__(
            f"the key of ModelProvider {provider} is not sent to {host}: `hosts` of its Secret {problem}: add it there"
        )
        self.provider = provider


class ProviderAddressRefused(LoadError):
    """The provider's address is one that gateways may not connect to."""

    def __init__(self, provider: str, why: str) -> None:
        super().__init__(
            f"baseURL of ModelProvider {provider} is {why}: refused; see the chart's gateway.allowedProviderNetworks"
        )
        self.provider = provider
