"""What a metrics source wants to see before it answers: static headers, and a token from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from requests import PreparedRequest
from requests.auth import AuthBase


class SourceAccess(AuthBase):
    """Headers of every request. The token's file is read each time: projected tokens and Secrets are replaced in place.

    Raises OSError if the file cannot be read.
    """

    def __init__(self, headers: Mapping[str, str], bearer_token_file: str | None) -> None:
        self._headers = dict(headers)
        self._token_file = Path(bearer_token_file) if bearer_token_file else None

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers.update(self._headers)
        if self._token_file is not None:
            request.headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        return request
