"""Kubernetes ServiceAccount tokens: what the API server says of them, remembered for a bounded time and number."""

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
"""A token that was deleted or whose ServiceAccount is gone is good for at most so long."""
BAD_SECONDS: Final = 10.0
OUTAGE_SECONDS: Final = 600.0
"""While the API server cannot be asked, a token that was good stays so for at most so long after it was last asked."""
MAX_REMEMBERED: Final = 10_000
MAX_REVIEWS: Final = 8
"""At once."""
MAX_WAITING: Final = 256
"""Tokens that wait for one of these; callers with further ones are told to try again."""
MAX_TOKEN_BYTES: Final = 8 * 1024

ACCESS_PATH: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
CHECK_SECONDS: Final = 60.0
"""How often a pod asks whether it may review tokens at all: before any caller finds out."""

Post = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Posts an object to a path, returns the API server's answer. Raises ApiException or ApiUnavailable."""


@dataclass(slots=True)
class _Remembered:
    caller: Caller | None
    """None: no token of a ServiceAccount that may call."""
    asked_at: float
    expires_at: float
    """By the token's own claim, on the wall clock."""


@dataclass(frozen=True, slots=True)
class ServiceAccountRule:
    """Whose tokens are taken, and what for."""

    namespace: str
    name: str | None = None
    """None: all of the namespace."""
    tenant: str | None = None
    rollouts: frozenset[str] | None = None


class TokenReviews:
    """Asks once for each token, however many requests bring it at the same time."""

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
        """This gateway may not ask: no token is taken."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Remembered]] = {}
        self._places = asyncio.Semaphore(MAX_REVIEWS)

    def __len__(self) -> int:
        return len(self._known)

    async def check(self) -> None:
        """Ask whether this gateway may ask. Where that is not answered, what is known stays."""
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
            logger.error("ServiceAccount tokens cannot be looked at, and are all refused: %s", FIX)
        self.forbidden = forbidden

    async def find(self, token: bytes) -> Caller | None:
        """The ServiceAccount with this token; None: not one that may call. Raises AuthenticationUnavailable."""
        expires_at = _expiry(token, self.audience)
        now = self._wall_clock()
        if expires_at is None or expires_at <= now:
            return None  # nothing that the API server need be asked about
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            seconds = GOOD_SECONDS if known.caller is not None else BAD_SECONDS
            if self._clock() - known.asked_at < seconds:
                return known.caller
        try:
            return (await self._asked(digest, token, expires_at)).caller
        except AuthenticationUnavailable:
            if known is None or known.caller is None or self._clock() - known.asked_at >= OUTAGE_SECONDS:
                raise
            return known.caller

    async def _asked(self, digest: bytes, token: bytes, expires_at: float) -> _Remembered:
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= MAX_WAITING:
                raise AuthenticationUnavailable("too many new tokens wait for the API server: try again")
            task = self._asking[digest] = asyncio.create_task(self._ask(digest, token, expires_at))
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        return await asyncio.shield(task)  # a caller who hangs up is not the only one who waits

    async def _ask(self, digest: bytes, token: bytes, expires_at: float) -> _Remembered:
        spec = {"token": token.decode("ascii"), "audiences": [self.audience]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        async with self._places:
            try:
                answer = await self._post(PATH, body)
            except ApiException as error:
                self.forbidden = self.forbidden or error.status == 403
                # nothing of what it says: it may quote the request
                logger.error("TokenReview: the API server answers %s; %s", error.status, FIX)
                raise AuthenticationUnavailable("the API server does not review tokens for this gateway") from None
            except ApiUnavailable:
                logger.warning("TokenReview: the API server cannot be reached")
                raise AuthenticationUnavailable("the API server cannot be asked about this token: try again") from None
        found = _Remembered(self._caller(answer.get("status") or {}), self._clock(), expires_at)
        self._known[digest] = found
        self._known.move_to_end(digest)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _caller(self, status: Mapping[str, Any]) -> Caller | None:
        # an API server that knows no audiences answers without any: then the token may be for somebody else
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
    """Whether it is worth asking: a JWT, not a key."""
    return credential.startswith(b"eyJ") and credential.count(b".") == 2 and len(credential) <= MAX_TOKEN_BYTES


def _expiry(token: bytes, audience: str) -> float | None:
    """When the token says that it ends, if it says that it is for us. Nothing of this is believed: it only spares the
    API server what it would refuse."""
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
