"""Authentication at a metrics source: static headers, and a token or a password from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from requests import PreparedRequest
from requests.auth import AuthBase, HTTPBasicAuth


class SourceAccess(AuthBase):
    """Headers of every request. Files are read each time: projected tokens and Secrets are replaced in place.

    `basic`: user name and the password's file. Raises OSError if a file cannot be read.
    """

    def __init__(
        self, headers: Mapping[str, str], bearer_token_file: str | None, basic: tuple[str, str] | None = None
    ) -> None:
        self._headers = dict(headers)
        self._token_file = Path(bearer_token_file) if bearer_token_file else None
        self._basic = basic

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers.update(self._headers)
        if self._token_file is not None:
            request.headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        if self._basic is not None:
            user, password_file = self._basic
            # only the line's end goes: a password may begin or end with a space
            password = Path(password_file).read_text("utf-8").rstrip("\r\n")
            HTTPBasicAuth(user.encode(), password.encode())(request)
        return request
