"""What is said of a provider that did not answer, to callers: in words, and without its address."""

from __future__ import annotations

import math
import os
from typing import Final

import aiohttp

from promptrollout.llm.errors import ProviderError
from promptrollout.llm.providers.circuit import Circuit

THE_WHOLE: Final = "the whole answer"
_WORDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientProxyConnectionError, "the proxy that the gateway's environment names does not answer"),
    (aiohttp.ClientConnectorDNSError, "its host name cannot be resolved"),
    (aiohttp.ConnectionTimeoutError, "no connection in time"),
    (aiohttp.ClientSSLError, "TLS failed"),
    (aiohttp.ServerDisconnectedError, "it hung up before it answered"),
    (aiohttp.ClientPayloadError, "it hung up in the middle of its answer"),
)


def circuit_open(provider: str, circuit: Circuit) -> ProviderError:
    seconds = math.ceil(circuit.retry_after_seconds) or 1
    message = f"provider {provider} failed most of the last requests, and is not asked for a while: try again later"
    return ProviderError(
        "circuit_open", 503, message, headers={"retry-after": str(seconds)}, unreachable=circuit.unreachable
    )


def crowded(provider: str) -> ProviderError:
    """Not asked, as those who wait for it take the places of others. Counts as what it is: a provider too slow."""
    message = f"the canary's requests that wait for provider {provider} fill this gateway pod: try again later"
    return ProviderError("circuit_open", 503, message, headers={"retry-after": "1"})


def timed_out(provider: str, what: str) -> ProviderError:
    return ProviderError("timeout", 504, f"provider {provider} took too long for {what}")


def broken(provider: str, error: BaseException) -> ProviderError:
    message = f"the connection to provider {provider} broke: {reason(error)}"
    return ProviderError("connection", 502, message, retryable=True)


def key_not_bound(provider: str) -> ProviderError:
    message = (
        f"provider {provider} is not asked: `hosts` in the Secret of its key does not name the host of its baseURL; "
        "add it there"
    )
    return ProviderError("connection", 502, message, code="provider_key_not_bound", unreachable=True)


def address_refused(provider: str) -> ProviderError:
    message = (
        f"provider {provider} is not asked: gateways may not connect to its address; see the chart's value "
        "gateway.allowedProviderNetworks"
    )
    return ProviderError("connection", 502, message, code="provider_address_refused", unreachable=True)


def certificate_problem(error: aiohttp.ClientConnectorCertificateError) -> str:
    """In OpenSSL's words: self-signed, expired, another host's."""
    return str(getattr(error.certificate_error, "verify_message", "") or "it is not valid")


def reason(error: BaseException) -> str:
    """In words, and without the address: it is nobody's business outside."""
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words
    number = getattr(getattr(error, "os_error", None) or error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else "the connection failed"
