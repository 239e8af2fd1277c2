"""Why a model was not called or did not answer: an error of the caller, of the version or of the provider."""

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
    """The request itself is wrong: it is answered 4xx and counts for no arm."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers: dict[str, str] = {}
        """Of the answer, besides its content type."""


class PrepareError(Exception):
    """The version's prompt cannot be used with this request. The caller's error if no other version can be used."""

    error_type: ErrorType = "render"


class Untranslatable(PrepareError):
    """The provider's protocol does not support something in the request or in the version."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        """The field that is not supported."""


class ProviderError(Exception):
    """The provider did not answer as it should: counts as an error of the arm.

    `status` is the caller's. `unreachable`: there was no connection, or several tries in a row failed as if there were
    none.
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
        """The provider rejects the request and names this field, which the gateway adds and callers seldom send."""
        self.loading = False
        """The provider is running, and says that its model is still loading."""
        self.of_the_key = False
        """The request may succeed with another key."""

    @property
    def another_may_answer(self) -> bool:
        """Another provider may succeed: the request itself is not the reason for the failure."""
        return self.error_type in _OF_THE_PROVIDER or self.of_the_key


def upstream_error(body: bytes) -> dict[str, Any]:
    """`error` of a provider's error answer, in any of the known formats; empty if it has none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}
