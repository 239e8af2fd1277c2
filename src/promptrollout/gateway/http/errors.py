"""Errors of callers that no model causes: keys, limits, methods."""

from __future__ import annotations

from promptrollout.llm.errors import CallerError


class Unauthenticated(CallerError):
    """The request has no key, or an unknown one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(401, code, message)
        self.headers["www-authenticate"] = "Bearer"


class AuthenticationUnavailable(CallerError):
    """The token cannot be reviewed now."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "authentication_unavailable", message)
        self.headers["retry-after"] = "1"


class RateLimited(CallerError):
    """The caller exceeded its rate limit."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(429, "rate_limit_exceeded", f"too many requests with this key: wait {retry_after_seconds} s")
        self.headers["retry-after"] = str(retry_after_seconds)


class MethodNotAllowed(CallerError):
    """The URL does not support the method."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(405, "method_not_allowed", f"this URL supports {allowed}, not {method}")
        self.headers["allow"] = allowed


class Overloaded(CallerError):
    """This pod has as many requests as it can answer."""

    def __init__(self, retry_seconds: int = 1) -> None:
        super().__init__(503, "overloaded", "this gateway pod has as many requests as it can answer: try again")
        self.headers["retry-after"] = str(retry_seconds)


class ClientGone(Exception):
    """The caller disconnected; no answer can be sent."""
