"""Authenticate the caller of a request. Its key or token is checked here, and not passed on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from promptrollout.api.conditions import ConditionReason
from promptrollout.api.gateway import AuthMode as AuthMode
from promptrollout.api.names import HEADER_TENANT
from promptrollout.api.pod_settings import PodSettings
from promptrollout.gateway.auth.caller_keys import ANONYMOUS, Caller, CallerKeys
from promptrollout.gateway.auth.token_reviews import FIX, ServiceAccountRule, TokenReviews, looks_like_token
from promptrollout.gateway.http.errors import Unauthenticated

logger = logging.getLogger(__name__)


MAX_KEY_BYTES: Final = 4096
LOG_SECONDS: Final = 60.0
"""Rejected keys and tokens are logged at most once in so long, with their number."""
_BEARER: Final = b"bearer "
# the headers in which the SDKs of OpenAI, Anthropic and Azure send a key
_KEY_HEADERS: Final = ("x-api-key", "api-key")


@dataclass(frozen=True)
class Auth:
    """Authentication as the Deployment configures it."""

    mode: AuthMode = "None"
    audience: str = PodSettings.model_fields["auth_audience"].default
    service_accounts: tuple[ServiceAccountRule, ...] = ()


class Authenticator:
    """Knows the callers. Without keys and tokens it admits every request."""

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
        self._rejections = 0
        self._logged_at = -math.inf

    async def caller(self, headers: dict[str, bytes]) -> Caller:
        """The caller with these headers. Removes the credentials from them, so that nothing later can forward or log
        them, and sets the caller's tenant. Raises Unauthenticated, AuthenticationUnavailable."""
        credential = _credential(headers)
        if self.keys is None and self.tokens is None:
            return ANONYMOUS
        if not credential:
            raise Unauthenticated("missing_api_key", "no API key: send Authorization: Bearer, x-api-key or api-key")
        caller = self.keys.find(credential) if self.keys is not None and len(credential) <= MAX_KEY_BYTES else None
        if caller is None and self.tokens is not None and looks_like_token(credential):
            caller = await self.tokens.find(credential)
        if caller is None:
            raise self._rejected(credential)
        headers.pop(HEADER_TENANT, None)
        if caller.tenant is not None:
            headers[HEADER_TENANT] = caller.tenant.encode()
        return caller

    def _rejected(self, credential: bytes) -> Unauthenticated:
        self._rejections += 1
        now = self._clock()
        if now - self._logged_at >= LOG_SECONDS:
            logger.warning("%d requests with an invalid key or token since the last such message", self._rejections)
            self._rejections, self._logged_at = 0, now
        if self.tokens is not None and looks_like_token(credential):
            message = (
                f"token rejected: it must be an unexpired token of an allowed ServiceAccount with audience "
                f"{self.tokens.audience!r}"
            )
            return Unauthenticated("invalid_api_key", message)
        return Unauthenticated("invalid_api_key", "this gateway does not know the API key")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Why valid callers are refused: reason and message."""
        if self.keys is not None and not self.keys:
            yield ConditionReason.NO_KEYS, "no caller keys are configured: every key is refused"
        if self.tokens is not None and self.tokens.forbidden:
            yield ConditionReason.TOKEN_REVIEWS_FORBIDDEN, f"the gateway may not review tokens: {FIX}"

    def refresh(self) -> None:
        """Read changed key files; log their problems."""
        if self.keys is None:
            return
        for problem in self.keys.refresh():
            logger.warning("caller keys: %s. The last valid content stays in use, if this pod has read one", problem)
        if self._had_keys and not self.keys:
            logger.warning(
                "no caller keys are configured: every request gets 401. Check the Secret that auth.keysSecretRef names"
            )
        self._had_keys = bool(self.keys)


def _credential(headers: dict[str, bytes]) -> bytes:
    """Remove all credentials; returns the first one."""
    authorization = headers.pop("authorization", b"")
    others = [headers.pop(name, b"") for name in _KEY_HEADERS]
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return next((value.strip() for value in others if value), b"")


def authenticator_for(auth: Auth, keys: CallerKeys, tokens: TokenReviews | None) -> Authenticator:
    """The authenticator of a mode."""
    return Authenticator(
        keys if auth.mode in ("Keys", "KeysAndServiceAccounts") else None,
        tokens if auth.mode in ("ServiceAccounts", "KeysAndServiceAccounts") else None,
    )
