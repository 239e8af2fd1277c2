"""First step of a request's way: who sent it. A key or a token is looked at here, and goes no further."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from promptrollout.api.gateway import AuthMode as AuthMode
from promptrollout.api.names import HEADER_TENANT
from promptrollout.api.pod_settings import PodSettings
from promptrollout.gateway.auth.caller_keys import ANYBODY, Caller, CallerKeys
from promptrollout.gateway.auth.token_reviews import FIX, ServiceAccountRule, TokenReviews, looks_like_token
from promptrollout.gateway.http.errors import Unauthenticated

logger = logging.getLogger(__name__)


MAX_KEY_BYTES: Final = 4096
SAY_SECONDS: Final = 60.0
"""Unknown keys are logged so often, however many there are."""
_BEARER: Final = b"bearer "
# where SDKs put a key: OpenAI's, Anthropic's, Azure's
_KEY_HEADERS: Final = ("x-api-key", "api-key")


@dataclass(frozen=True)
class Auth:
    """What the Deployment says of it."""

    mode: AuthMode = "None"
    audience: str = PodSettings.model_fields["auth_audience"].default
    service_accounts: tuple[ServiceAccountRule, ...] = ()


class Authenticator:
    """Knows the callers. Without keys and tokens to look at, everybody is one."""

    def __init__(
        self,
        keys: CallerKeys | None = None,
        tokens: TokenReviews | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys = keys
        self.tokens = tokens
        self._had_keys = True
        self._clock = clock
        self._unknown = 0
        self._said_at = -math.inf

    async def caller(self, headers: dict[str, bytes]) -> Caller:
        """Who sends these headers. Takes the credentials out of them, so that nothing later can pass them on or log
        them, and sets the caller's tenant. Raises Unauthenticated, AuthenticationUnavailable."""
        credential = _credential(headers)
        if self.keys is None and self.tokens is None:
            return ANYBODY
        if not credential:
            raise Unauthenticated("missing_api_key", "no API key: send Authorization: Bearer, x-api-key or api-key")
        caller = self.keys.find(credential) if self.keys is not None and len(credential) <= MAX_KEY_BYTES else None
        if caller is None and self.tokens is not None and looks_like_token(credential):
            caller = await self.tokens.find(credential)
        if caller is None:
            raise self._refused(credential)
        headers.pop(HEADER_TENANT, None)
        if caller.tenant is not None:
            headers[HEADER_TENANT] = caller.tenant.encode()
        return caller

    def _refused(self, credential: bytes) -> Unauthenticated:
        self._unknown += 1
        now = self._clock()
        if now - self._said_at >= SAY_SECONDS:
            logger.warning("%d requests with a key or token that is not taken since this was last said", self._unknown)
            self._unknown, self._said_at = 0, now
        if self.tokens is not None and looks_like_token(credential):
            message = (
                f"the token is not taken: it must be of a ServiceAccount that may call, made for the audience "
                f"{self.tokens.audience}, and not expired"
            )
            return Unauthenticated("invalid_api_key", message)
        return Unauthenticated("invalid_api_key", "the API key is not one of this gateway's")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Why nobody is let in who should be: reason and message."""
        if self.keys is not None and not self.keys:
            yield "NoKeys", "it has no callers' keys: every key is refused"
        if self.tokens is not None and self.tokens.forbidden:
            yield "TokenReviewsForbidden", f"it may not review tokens: {FIX}"

    def refresh(self) -> None:
        """Read keys that rotated; say what is wrong with them."""
        if self.keys is None:
            return
        for problem in self.keys.refresh():
            logger.warning("caller keys: %s: its last good state, if this pod has one, stays in use", problem)
        if self._had_keys and not self.keys:
            logger.warning(
                "caller keys: there are none: nobody is let in; look at the Secret that auth.keysSecretRef names"
            )
        self._had_keys = bool(self.keys)


def _credential(headers: dict[str, bytes]) -> bytes:
    """The first that there is, taken out together with the others."""
    authorization = headers.pop("authorization", b"")
    others = [headers.pop(name, b"") for name in _KEY_HEADERS]
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return next((value.strip() for value in others if value), b"")


def made(auth: Auth, keys: CallerKeys, tokens: TokenReviews | None) -> Authenticator:
    """The authenticator of a mode."""
    return Authenticator(
        keys if auth.mode in ("Keys", "KeysAndServiceAccounts") else None,
        tokens if auth.mode in ("ServiceAccounts", "KeysAndServiceAccounts") else None,
    )
