"""Call a provider over HTTP, and retry as long as it has not answered."""

from __future__ import annotations

import asyncio
import io
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import ClassVar, Final
from urllib.parse import urlencode, urlsplit

import aiohttp

from promptrollout.api.base_url import base_url_doubt
from promptrollout.api.delivery import ProviderConfig
from promptrollout.api.networks import Networks
from promptrollout.api.provider import RESERVED_HEADERS, Auth
from promptrollout.llm.errors import ProviderError
from promptrollout.llm.providers.addresses import ascii_host, refused_address, socket_factory
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.failures import (
    WHOLE_ANSWER,
    address_refused,
    broken,
    certificate_problem,
    circuit_open,
    key_not_bound,
    reason,
    timed_out,
)
from promptrollout.llm.providers.http_answer import HttpAnswer
from promptrollout.llm.providers.key_hosts import KeyHosts
from promptrollout.llm.providers.keys import LIMITED_MAX_SECONDS, LIMITED_SECONDS, REFUSED_SECONDS, KeyRing
from promptrollout.llm.providers.refusal import DOWN_STATUS, UNAUTHORIZED, refusal
from promptrollout.proxy import proxy_of

logger = logging.getLogger(__name__)

PIECEWISE_BYTES: Final = 256 * 1024
"""A larger request is written in pieces: in one piece it would block the event loop."""
MAX_ERROR_BYTES: Final = 64 * 1024
BACKOFF_FIRST_SECONDS: Final = 0.25
BACKOFF_MAX_SECONDS: Final = 8.0
RETRY_AFTER_MAX_SECONDS: Final = 60.0
"""If a provider asks for a longer pause, the caller gets its error with its Retry-After."""
COLD_AFTER_SECONDS: Final = 60.0
"""An endpoint that has not answered for so long may have been scaled to zero."""
LOGGED_AGAIN_SECONDS: Final = 60.0
LOADING_PAUSE_SECONDS: Final = 1.0
LOADING_PAUSE_MAX_SECONDS: Final = 5.0


class Endpoint:
    """One endpoint with its connections and its keys.

    Subclasses define a kind of API: the paths of its protocols, and how the key is sent.
    """

    kind: ClassVar[str]
    """As ModelProvider's `type`."""
    paths: ClassVar[Mapping[str, str]]
    """After the base URL, by protocol. Other protocols are translated to the first one."""
    auth: ClassVar[Auth] = Auth()
    """How the key is sent, unless the ModelProvider configures it."""
    constant_headers: ClassVar[Mapping[str, str]] = {}
    """Headers of each request, unless the ModelProvider or the caller sets them."""

    def __init__(
        self,
        name: str,
        base_url: str,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        networks: Networks | None = None,
    ) -> None:
        self.name = name
        self.base_url = base_url
        self.keys = KeyRing(clock)
        self._key_hosts: KeyHosts | None = None
        self._key_may_go = True
        self.networks = networks or Networks()
        self.literal_refusal = self.networks.refusal_of_host(ascii_host(base_url))
        """Why its address may not be called, if the base URL has an address. A name is resolved when a connection is
        made; a proxy resolves it itself, out of this gateway's sight."""
        self.refused_at: str | None = None
        """Why the last try to connect was refused because of its address; None: it was not."""
        self.trust: ssl.SSLContext | bool = True
        """For https: what verifies its certificate. True: the public CAs; False: it is not verified."""
        self.in_flight = 0
        self.retries = 0
        self.supports_stream_options = True
        """False once a request failed because of the `stream_options` that the gateway adds, and succeeded without."""
        self._query = ""
        self._own_headers: Mapping[str, str] = self.constant_headers
        self._key_header, self._key_prefix = _auth_parts(self.auth)
        self._rng = rng or random.Random()
        self._session: aiohttp.ClientSession | None = None
        self._proxy = proxy_of(base_url)
        self._clock = clock
        self._answered_at: float | None = None
        self._warned_at: dict[str, float] = {}
        self._address = urlsplit(base_url).netloc.rpartition("@")[2]

    def configure(self, config: ProviderConfig) -> None:
        """Set what all requests have in common."""
        self._query = "?" + urlencode([(each.name, each.value) for each in config.query]) if config.query else ""
        self._key_header, self._key_prefix = _auth_parts(config.auth or self.auth)
        configured = {each.name.lower(): each.value for each in config.headers}
        allowed = {name: value for name, value in configured.items() if name not in RESERVED_HEADERS}
        self._own_headers = {**self.constant_headers, **allowed}

    @property
    def key_hosts(self) -> KeyHosts | None:
        """The hosts that the keys may be sent to; None: their Secret does not name any."""
        return self._key_hosts

    @key_hosts.setter
    def key_hosts(self, hosts: KeyHosts | None) -> None:
        self._key_hosts = hosts
        self._key_may_go = hosts is None or hosts.allow(self.base_url)

    @property
    def key_not_bound(self) -> bool:
        """It has keys, but their Secret names only other hosts."""
        return not self._key_may_go and len(self.keys) > 0

    @property
    def key_unbound(self) -> bool:
        """It has keys, and their Secret names no hosts."""
        return self._key_hosts is None and len(self.keys) > 0

    async def call(
        self,
        payload: bytes,
        config: ProviderConfig,
        headers: Mapping[str, str],
        circuit: Circuit,
        *,
        path: str,
        since: float | None = None,
        wait_unreachable: bool = True,
        patience_seconds: float = RETRY_AFTER_MAX_SECONDS,
    ) -> HttpAnswer:
        """Send a request to a path; return when the first bytes of a 200 have arrived. Raises ProviderError.

        The total timeout runs from `since`, on `time.perf_counter`, when the caller's request came: a fallback has what
        is left of it. Connection failures, 429, 502, 503 and 504 are retried, within the timeout and the circuit's
        budget, after a pause of at most `patience_seconds`. With `wait_unreachable` off, an unreachable provider is not
        retried, because another one answers.
        """
        started = time.perf_counter()
        deadline = (started if since is None else since) + config.timeouts.total_seconds
        if started >= deadline:
            # the providers before used all of it, which says nothing about this one
            raise timed_out(self.name, WHOLE_ANSWER)
        self._require_permission(circuit)
        if not circuit.allows():
            raise circuit_open(self.name, circuit)
        circuit.add_retry_budget(config.retry_budget_percent)
        cold_until = started + config.timeouts.cold_start_seconds if self._is_cold() else started
        tries = 0
        while True:
            key = self.keys.next()
            try:
                return await self._try(path, payload, config, headers, circuit, key, deadline, cold_until)
            except ProviderError as error:
                now = time.perf_counter()
                if error.loading and now < cold_until:
                    pause = min(LOADING_PAUSE_MAX_SECONDS, error.retry_after_seconds or LOADING_PAUSE_SECONDS)
                else:
                    if error.of_the_key and tries < len(self.keys) - 1 and self.keys.another:
                        pause = 0.0
                    elif not error.retryable or tries >= config.max_retries:
                        raise
                    else:
                        pause = self._pause_seconds(tries, error.retry_after_seconds)
                    if (error.unreachable and not wait_unreachable) or pause > patience_seconds:
                        raise
                    tries += 1
                    if now + pause >= deadline or not circuit.spend_retry():
                        raise
                if now + pause >= deadline:
                    raise
            self.retries += 1
            await asyncio.sleep(pause)

    async def probe(self, config: ProviderConfig) -> bool:
        """Whether the endpoint answers at all; completions may still fail."""
        timeout = aiohttp.ClientTimeout(total=config.timeouts.connect_seconds + 5.0)
        if self.key_not_bound or (self._proxy is not None and self.literal_refusal is not None):
            return False
        try:
            async with self._sessions().get(
                f"{self.base_url}/models{self._query}",
                headers=self._headers({}, self.keys.next()),
                timeout=timeout,
                allow_redirects=False,
                ssl=self.trust,
                proxy=self._proxy,
            ) as response:
                return response.status < min(DOWN_STATUS)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _require_permission(self, circuit: Circuit) -> None:
        """Raises ProviderError if nothing may be sent. That says nothing about the version, so it counts as an
        unreachable provider: stable answers, and it decides nothing."""
        if self.key_not_bound:
            raise self._unreached(circuit, key_not_bound(self.name), "`hosts` of its key's Secret does not name it")
        if self._proxy is not None and (why := self.literal_refusal) is not None:
            self.refused_at = why
            raise self._unreached(circuit, address_refused(self.name), f"is not allowed: {why}")

    def _is_cold(self) -> bool:
        return self._answered_at is None or self._clock() - self._answered_at > COLD_AFTER_SECONDS

    async def _try(
        self,
        path: str,
        payload: bytes,
        config: ProviderConfig,
        headers: Mapping[str, str],
        circuit: Circuit,
        key: str | None,
        deadline: float,
        cold_until: float,
    ) -> HttpAnswer:
        timeouts = config.timeouts
        now = time.perf_counter()
        seconds = min(max(timeouts.first_byte_seconds, cold_until - now), deadline - now)
        response: aiohttp.ClientResponse | None = None
        answered = False
        circuit.in_flight += 1
        try:
            async with asyncio.timeout(seconds):
                response = await self._sessions().post(
                    f"{self.base_url}{path}{self._query}",
                    data=payload if len(payload) <= PIECEWISE_BYTES else io.BytesIO(payload),
                    headers=self._headers(headers, key),
                    allow_redirects=False,
                    timeout=_connect_timeout(timeouts.connect_seconds),
                    ssl=self.trust,
                    proxy=self._proxy,
                )
                if response.status != 200:
                    body = await _read_some(response)
                    doubt = base_url_doubt(self.base_url)
                    refused = refusal(self.name, response.status, response.headers, body, self.keys.redacted, doubt)
                    refused.loading = response.status == 503 and time.perf_counter() < cold_until
                    self._record_refusal(refused, response.status, circuit, key)
                    raise refused
                first = await response.content.readany()
            circuit.record_answer()
            self.refused_at = None
            self.keys.works(key)
            self._answered_at = self._clock()
            answered = True
            return HttpAnswer(self.name, response, first, deadline, timeouts.idle_seconds)
        except aiohttp.ClientConnectorCertificateError as error:
            message = f"provider {self.name} has a certificate that is not trusted; see tls of its ModelProvider"
            failure = ProviderError("connection", 502, message, unreachable=True)
            raise self._unreached(circuit, failure, f"certificate not trusted: {certificate_problem(error)}") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if (refused_here := refused_address(error)) is not None:
                self.refused_at = refused_here.why
                why = f"{refused_here.address} is not allowed: {refused_here.why}"
                raise self._unreached(circuit, address_refused(self.name), why) from error
            self.refused_at = None
            message = f"provider {self.name} cannot be reached: {reason(error)}"
            # the provider did nothing for this request, so another one may answer it after the first failure
            failure = ProviderError("connection", 502, message, unreachable=True, retryable=True)
            raise self._unreached(circuit, failure, reason(error)) from error
        except TimeoutError as error:
            # after other providers it had only the rest of the time, which says nothing about its speed
            if seconds > min(timeouts.first_byte_seconds, timeouts.total_seconds) / 2:
                circuit.record_silence()
                self._failing(circuit, f"connected, but no first byte within {seconds:.0f} s")
            failure = timed_out(self.name, "the first byte")
            failure.unreachable = circuit.unreachable
            raise failure from error
        except aiohttp.ClientHttpProxyError as error:
            why = f"the proxy of the environment answered {error.status}"
            message = f"provider {self.name} cannot be reached: {why}"
            failure = ProviderError("connection", 502, message, unreachable=True, retryable=True)
            raise self._unreached(circuit, failure, why) from error
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            raise ProviderError("bad_response", 502, f"provider {self.name} does not speak HTTP") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreached(circuit, broken(self.name, error), reason(error)) from error
        finally:
            circuit.in_flight -= 1
            if response is not None and not answered:
                response.close()

    def _record_refusal(self, refused: ProviderError, status: int, circuit: Circuit, key: str | None) -> None:
        """Note what an error answer says about the provider and the key."""
        if refused.loading:
            return
        if status in DOWN_STATUS:
            self._unreached(circuit, refused, f"answered {status}")
        elif status >= 500:
            circuit.record_error()
            self._failing(circuit, f"answered {status}")
        elif status == 429:
            circuit.record_rate_limit()
            seconds = refused.retry_after_seconds
            self.keys.rest(key, LIMITED_SECONDS if seconds is None else min(seconds, LIMITED_MAX_SECONDS))
        else:
            circuit.record_answer()  # any other answer shows that the provider is up
            if status == UNAUTHORIZED:
                self.keys.rest(key, REFUSED_SECONDS)
            if refused.of_the_key:
                self._warn("key", str(refused))

    def _unreached(self, circuit: Circuit, error: ProviderError, why: str) -> ProviderError:
        circuit.record_unreachable()
        error.unreachable = error.unreachable or circuit.unreachable
        self._failing(circuit, why)
        return error

    def _failing(self, circuit: Circuit, why: str) -> None:
        """Keep the reason for operators, who may see the address."""
        circuit.failure = f"{self._address}: {why}"
        if circuit.unreachable or not circuit.closed:
            self._warn("down", f"provider {self.name} at {circuit.failure}")

    def _warn(self, about: str, text: str) -> None:
        """Log a warning at most once in a while, however many requests have the problem."""
        now, warned_at = self._clock(), self._warned_at.get(about)
        if warned_at is None or now - warned_at >= LOGGED_AGAIN_SECONDS:
            self._warned_at[about] = now
            logger.warning("%s", text)

    def _pause_seconds(self, tries: int, retry_after_seconds: float | None) -> float:
        backoff: float = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2**tries) * self._rng.uniform(0.5, 1.0)
        return backoff if retry_after_seconds is None else retry_after_seconds + self._rng.uniform(0.0, 0.1)

    def _headers(self, further: Mapping[str, str], key: str | None) -> dict[str, str]:
        headers = {
            **self._own_headers,
            "content-type": "application/json",
            "accept-encoding": "identity",
            **further,
        }
        if key is not None:
            headers[self._key_header] = self._key_prefix + key
        return headers

    def _sessions(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    keepalive_timeout=30.0,
                    ttl_dns_cache=30,
                    # the environment names the proxy, so it may have any address
                    socket_factory=None if self._proxy is not None else socket_factory(self.networks),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # aiohttp would also read credentials from ~/.netrc
                trust_env=False,
            )
        return self._session


def _auth_parts(auth: Auth) -> tuple[str, str]:
    """The header's name, and the prefix of the key."""
    return auth.header.lower(), f"{auth.scheme} " if auth.scheme else ""


@lru_cache(maxsize=64)
def _connect_timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds)


async def _read_some(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of an error's body: enough for its message."""
    body = b""
    while len(body) < MAX_ERROR_BYTES and (piece := await response.content.readany()):
        body += piece
    return body
