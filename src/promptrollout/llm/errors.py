"""Why a model is not asked, or does not answer: the caller's fault, the version's, or the provider's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import orjson

ErrorType = Literal[
    "connection",
    "timeout",
    "rate_limited",
    "provider_4xx",
    "provider_5xx",
    "bad_response",
    "circuit_open",
    "render",
    "system_message",
    "stream_broken",
    "internal",
    "reported",
    "unreported",
]
"""Why a request failed, as a metric's label. The set is fixed: series exist at zero from the start."""

ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)

_OF_THE_PROVIDER: frozenset[ErrorType] = frozenset(
    ["connection", "timeout", "rate_limited", "provider_5xx", "bad_response", "circuit_open"]
)

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}


def error_object(status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """The body of an error answer, as OpenAI's SDKs parse it."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


class CallerError(Exception):
    """The request itself is at fault: it is answered 4xx and counts for no arm."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers: dict[str, str] = {}
        """Of the answer, besides its type."""


class PrepareError(Exception):
    """A version's prompt cannot be filled with this request. The caller's fault if no other version can take it."""

    error_type: ErrorType = "render"


class Untranslatable(PrepareError):
    """The provider's protocol cannot say what the request, or the version, asks."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        """The field at fault."""


class ProviderError(Exception):
    """The provider did not answer as it should: counts as an error of the arm.

    `status` is what the caller gets. `unreachable`: there was no connection, or several tries in a row failed as if
    nobody were there.
    """

    def __init__(
        self,
        error_type: ErrorType,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        unreachable: bool = False,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        about_stream_options: bool = False,
    ) -> None:
        super().__init__(message)
        self.error_type: ErrorType = error_type
        self.status = status
        self.code = code or f"provider_{error_type.removeprefix('provider_')}"
        self.param = param
        self.headers = dict(headers or {})
        self.unreachable = unreachable
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.about_stream_options = about_stream_options
        """The provider refuses the request and names that field, which callers seldom send and we always do."""
        self.loading = False
        """The provider is there, and says that its model is not yet."""
        self.of_the_key = False
        """It may be answered with another key."""

    @property
    def another_may_answer(self) -> bool:
        """The request itself is not why it failed."""
        return self.error_type in _OF_THE_PROVIDER or self.of_the_key


def upstream_error(body: bytes) -> dict[str, Any]:
    """`error` of a provider's error answer, whatever shape it came in; empty if there is none to be found."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}
