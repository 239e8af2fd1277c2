"""Review Kubernetes ServiceAccount tokens at the API server; results are cached, limited in time and number."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from promptrollout.cluster import ApiException, ApiUnavailable
from promptrollout.gateway.auth.caller_keys import Caller
from promptrollout.gateway.http.errors import AuthenticationUnavailable

logger = logging.getLogger(__name__)

PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
GOOD_SECONDS: Final = 60.0
"""A valid result is cached for so long: a deleted token, or one of a deleted ServiceAccount, stays valid no longer."""
BAD_SECONDS: Final = 10.0
OUTAGE_SECONDS: Final = 600.0
"""While the API server is unreachable, a token stays valid for at most so long after its last review."""
MAX_REMEMBERED: Final = 10_000
MAX_REVIEWS: Final = 8
"""Reviews at the same time."""
MAX_WAITING: Final = 256
"""Tokens that wait for their review; callers with further ones are told to try again."""
MAX_TOKEN_BYTES: Final = 8 * 1024

ACCESS_PATH: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
CHECK_SECONDS: Final = 60.0
"""How often a pod checks that it may review tokens, so that a missing permission is reported early."""

Post = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Posts an object to a path and returns the API server's answer. Raises ApiException or ApiUnavailable."""


@dataclass(slots=True)
class _Remembered:
    caller: Caller | None
    """None: not a token of an allowed ServiceAccount."""
    asked_at: float
    expires_at: float
    """The token's own claim, on the wall clock."""


@dataclass(frozen=True, slots=True)
class ServiceAccountRule:
    """An allowed ServiceAccount, and what it may use."""

    namespace: str
    name: str | None = None
    """None: all ServiceAccounts of the namespace."""
    tenant: str | None = None
    rollouts: frozenset[str] | None = None


class TokenReviews:
    """Reviews each token once, however many requests send it at the same time."""

    def __init__(
        self,
        audience: str,
        rules: tuple[ServiceAccountRule, ...],
        post: Post,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.audience = audience
        self._rules = rules
        self._post = post
        self.forbidden = False
        """This gateway may not review tokens: all are rejected."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._reviewing: dict[bytes, asyncio.Task[_Remembered]] = {}
        self._places = asyncio.Semaphore(MAX_REVIEWS)

    def __len__(self) -> int:
        return len(self._known)

    async def check(self) -> None:
        """Check whether this gateway may review tokens. Without an answer, the last result stays."""
        wanted = {"group": "authentication.k8s.io", "resource": "tokenreviews", "verb": "create"}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wanted},
        }
        try:
            answer = await self._post(ACCESS_PATH, body)
        except (ApiException, ApiUnavailable):
            return
        forbidden = (answer.get("status") or {}).get("allowed") is not True
        if forbidden and not self.forbidden:
            logger.error("the gateway may not review ServiceAccount tokens, so all of them are rejected: %s", FIX)
        self.forbidden = forbidden

    async def find(self, token: bytes) -> Caller | None:
        """The ServiceAccount with this token; None: it is not allowed. Raises AuthenticationUnavailable."""
        expires_at = _expiry(token, self.audience)
        now = self._wall_clock()
        if expires_at is None or expires_at <= now:
            return None  # no review is needed
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            seconds = GOOD_SECONDS if known.caller is not None else BAD_SECONDS
            if self._clock() - known.asked_at < seconds:
                return known.caller
        try:
            return (await self._review_once(digest, token, expires_at)).caller
        except AuthenticationUnavailable:
            if known is None or known.caller is None or self._clock() - known.asked_at >= OUTAGE_SECONDS:
                raise
            return known.caller

    async def _review_once(self, digest: bytes, token: bytes, expires_at: float) -> _Remembered:
        task = self._reviewing.get(digest)
        if task is None:
            if len(self._reviewing) >= MAX_WAITING:
                raise AuthenticationUnavailable("too many tokens wait for their review by the API server: try again")
            task = self._reviewing[digest] = asyncio.create_task(self._review(digest, token, expires_at))
            task.add_done_callback(lambda _: self._reviewing.pop(digest, None))
        return await asyncio.shield(task)  # other requests may wait for the same review if this caller disconnects

    async def _review(self, digest: bytes, token: bytes, expires_at: float) -> _Remembered:
        spec = {"token": token.decode("ascii"), "audiences": [self.audience]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        async with self._places:
            try:
                answer = await self._post(PATH, body)
            except ApiException as error:
                self.forbidden = self.forbidden or error.status == 403
                # without the error's text, which may quote the request
                logger.error("TokenReview: the API server answered %s; %s", error.status, FIX)
                raise AuthenticationUnavailable("the API server refuses to review tokens for this gateway") from None
            except ApiUnavailable:
                logger.warning("TokenReview: the API server cannot be reached")
                raise AuthenticationUnavailable(
                    "the API server cannot be reached to review this token: try again"
                ) from None
        result = _Remembered(self._caller(answer.get("status") or {}), self._clock(), expires_at)
        self._known[digest] = result
        self._known.move_to_end(digest)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return result

    def _caller(self, status: Mapping[str, Any]) -> Caller | None:
        # an API server without support for audiences returns none: the token may be for another audience
        if status.get("authenticated") is not True or self.audience not in (status.get("audiences") or []):
            return None
        user = (status.get("user") or {}).get("username")
        parts = user.split(":") if isinstance(user, str) else []
        if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
            return None
        for rule in self._rules:
            if rule.namespace == parts[2] and rule.name in (None, parts[3]):
                return Caller(f"{parts[2]}/{parts[3]}", rule.tenant, rule.rollouts)
        return None


FIX: Final = "let the gateway's ServiceAccount create tokenreviews: the chart's value gateway.tokenReviewers"


def looks_like_token(credential: bytes) -> bool:
    """Whether a credential is a JWT, and not a key."""
    return credential.startswith(b"eyJ") and credential.count(b".") == 2 and len(credential) <= MAX_TOKEN_BYTES


def _expiry(token: bytes, audience: str) -> float | None:
    """The token's own expiry, if it is for this audience. It is not trusted: it only avoids reviews that would fail."""
    try:
        part = token.split(b".")[1]
        claims = orjson.loads(base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True))
        token.decode("ascii")
    except (binascii.Error, orjson.JSONDecodeError, UnicodeDecodeError, IndexError):
        return None
    if not isinstance(claims, dict):
        return None
    audiences, expires_at = claims.get("aud"), claims.get("exp")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        return None
    return float(expires_at) if isinstance(expires_at, int | float) and not isinstance(expires_at, bool) else None
