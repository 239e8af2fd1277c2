"""What a provider's error answer means: for the caller, for the counters, and for a retry."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from promptrollout.llm.errors import ErrorType, ProviderError, upstream_error

DOWN_STATUS: Final = frozenset([502, 503, 504])
"""The answers of a proxy or load balancer for a provider that is down."""
UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
AUTH_CODE: Final = "provider_auth"
_NO_SUCH_PATH: Final = frozenset([404, 405])
_RETRIED_STATUS: Final = DOWN_STATUS | {429}
_SHOWN_HEADERS: Final = ("retry-after", "x-request-id")
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
"""A header with such characters cannot be forwarded."""
_SHOWN_CHARACTERS: Final = 4096


def refusal(
    provider: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    redacted: Callable[[str], str],
    doubt: str | None = None,
) -> ProviderError:
    """The error to raise. `redacted` removes from the provider's texts what the caller must not see. `doubt`: what is
    probably wrong with the base URL, if a 404 confirms it."""
    error = upstream_error(body)
    text, code, param = (
        redacted(value)[:_SHOWN_CHARACTERS] if isinstance(value := error.get(field), str) else None
        for field in ("message", "code", "param")
    )
    message = (f"provider {provider} answered {status}" + ("" if text is None else f": {text}"))[:_SHOWN_CHARACTERS]
    error_type: ErrorType
    refused_key = status == UNAUTHORIZED or (status == FORBIDDEN and not _moderated(error))
    if refused_key:
        # about the gateway's key, not the caller's: a 401 would look like the gateway's own
        error_type, shown, code = "provider_4xx", 502, AUTH_CODE
        message = f"{message}; it rejected the gateway's key: see apiKeySecretRef of ModelProvider {provider}"
    elif status == 429:
        error_type, shown = "rate_limited", 429
    elif 400 <= status < 500:
        error_type, shown = "provider_4xx", status
        if doubt is not None and status in _NO_SUCH_PATH:
            message = f"{message}; baseURL of ModelProvider {provider} {doubt}"
    elif status >= 500:
        error_type, shown = "provider_5xx", 503 if status == 503 else 502
    else:
        error_type, shown = "bad_response", 502
    failure = ProviderError(
        error_type,
        shown,
        message,
        code=code,
        param=param,
        headers={
            name: redacted(headers[name])
            for name in _SHOWN_HEADERS
            if name in headers and not CONTROL.search(headers[name])
        },
        retryable=status in _RETRIED_STATUS,
        retry_after_seconds=_retry_after(headers.get("retry-after")),
        about_stream_options=status in (400, 422) and b"stream_options" in body,
    )
    failure.of_the_key = refused_key or status == 429
    return failure


def _moderated(error: Mapping[str, Any]) -> bool:
    """A 403 of OpenRouter that has reasons of its moderation is about the input, not about the key."""
    metadata = error.get("metadata")
    return isinstance(metadata, dict) and "reasons" in metadata


def _retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, which is a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
