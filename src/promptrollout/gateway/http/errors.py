"""What a caller is told where no model is to blame: keys, limits, methods."""

from __future__ import annotations

from promptrollout.llm.errors import CallerError


class Unauthenticated(CallerError):
    """The request brings no key, or none that is known."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(401, code, message)
        self.headers["www-authenticate"] = "Bearer"


class AuthenticationUnavailable(CallerError):
    """Nobody can say now whose token it is."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "authentication_unavailable", message)
        self.headers["retry-after"] = "1"


class RateLimited(CallerError):
    """This caller has sent all the requests that it may for now."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(429, "rate_limit_exceeded", f"too many requests with this key: wait {retry_after_seconds} s")
        self.headers["retry-after"] = str(retry_after_seconds)


class MethodNotAllowed(CallerError):
    """The URL takes another method."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(405, "method_not_allowed", f"this URL takes {allowed}, not {method}")
        self.headers["allow"] = allowed


class Overloaded(CallerError):
    """This pod has all the requests that it takes."""

    def __init__(self, retry_seconds: int = 1) -> None:
        super().__init__(503, "overloaded", "this gateway pod is answering all the requests that it takes: try again")
        self.headers["retry-after"] = str(retry_seconds)


class ClientGone(Exception):
    """The caller hung up; there is nobody to answer."""
