"""The errors that callers get when a provider does not answer: in plain words, and without its address."""

from __future__ import annotations

import math
import os
from typing import Final

import aiohttp

from promptrollout.llm.errors import ProviderError
from promptrollout.llm.providers.circuit import Circuit

WHOLE_ANSWER: Final = "the whole answer"
_WORDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientProxyConnectionError, "the proxy of the gateway's environment does not answer"),
    (aiohttp.ClientConnectorDNSError, "its host name cannot be resolved"),
    (aiohttp.ConnectionTimeoutError, "the connection timed out"),
    (aiohttp.ClientSSLError, "the TLS handshake failed"),
    (aiohttp.ServerDisconnectedError, "it closed the connection before it answered"),
    (aiohttp.ClientPayloadError, "it closed the connection in the middle of its answer"),
)


def circuit_open(provider: str, circuit: Circuit) -> ProviderError:
    seconds = math.ceil(circuit.retry_after_seconds) or 1
    message = f"provider {provider} failed most recent requests and is not called for a while: try again later"
    return ProviderError(
        "circuit_open", 503, message, headers={"retry-after": str(seconds)}, unreachable=circuit.unreachable
    )


def crowded(provider: str) -> ProviderError:
    """Not called, because the requests that wait for it take the places of others: the provider is too slow."""
    message = f"provider {provider} is too slow: the canary's waiting requests fill this gateway pod; try again later"
    return ProviderError("circuit_open", 503, message, headers={"retry-after": "1"})


def timed_out(provider: str, what: str) -> ProviderError:
    return ProviderError("timeout", 504, f"provider {provider} took too long for {what}")


def broken(provider: str, error: BaseException) -> ProviderError:
    message = f"the connection to provider {provider} failed: {reason(error)}"
    return ProviderError("connection", 502, message, retryable=True)


def key_not_bound(provider: str) -> ProviderError:
    message = (
        f"provider {provider} gets no requests: `hosts` in its key's Secret does not name the host of its baseURL; "
        "add it there"
    )
    return ProviderError("connection", 502, message, code="provider_key_not_bound", unreachable=True)


def address_refused(provider: str) -> ProviderError:
    message = (
        f"provider {provider} gets no requests: gateways may not connect to its address; see the chart's value "
        "gateway.allowedProviderNetworks"
    )
    return ProviderError("connection", 502, message, code="provider_address_refused", unreachable=True)


def certificate_problem(error: aiohttp.ClientConnectorCertificateError) -> str:
    """OpenSSL's reason: self-signed, expired, of another host."""
    return str(getattr(error.certificate_error, "verify_message", "") or "it is not valid")


def reason(error: BaseException) -> str:
    """The reason in words, without the address, which callers must not see."""
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words
    number = getattr(getattr(error, "os_error", None) or error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else "the connection failed"
