"""Third step of a request's way: call a provider over HTTP; try again while nothing was answered yet."""

from __future__ import annotations

import asyncio
import email.utils
import io
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import ClassVar, Final

import aiohttp

from promptrollout.api.delivery import ProviderConfig
from promptrollout.gateway.errors import ErrorType, ProviderError, upstream_error

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
PIECEWISE_BYTES: Final = 256 * 1024
"""A larger request is written in pieces: in one, it would hold the event loop."""
MAX_ERROR_BYTES: Final = 64 * 1024
BACKOFF_FIRST_SECONDS: Final = 0.25
BACKOFF_MAX_SECONDS: Final = 8.0
RETRY_AFTER_MAX_SECONDS: Final = 60.0
"""A provider that asks for a longer pause is not waited for: the caller gets its answer, with its Retry-After."""
UNREACHABLE_AFTER: Final = 3
"""Failed tries in a row, of all requests: no connection, silence, or a status that says that nobody is there."""
BELIEVED_AFTER_SECONDS: Final = 10.0
"""For so long must probes be answered, and no completion be tried, until the endpoint is taken at its word. Doubled
each time that a completion then fails."""

# what a proxy or load balancer answers in the place of a provider that is down
_DOWN_STATUS: Final = frozenset([502, 503, 504])
_RETRIED_STATUS: Final = _DOWN_STATUS | {429}
# the account's, the connection's or our own: not for callers
_OWN_HEADERS: Final = frozenset(
    {"alt-svc", "connection", "content-encoding", "content-length", "date", "keep-alive", "openai-organization"}
    | {"openai-project", "server", "set-cookie", "strict-transport-security", "transfer-encoding", "via"}
)
_ERROR_HEADERS: Final = ("retry-after", "x-request-id")


class Answer:
    """The provider has begun to answer 200: the headers and the first bytes are here, the rest may follow."""

    def __init__(self, provider: str, response: aiohttp.ClientResponse, first: bytes, deadline: float) -> None:
        self._provider = provider
        self._response = response
        self._first = first
        self.deadline = deadline
        """On `time.perf_counter`; the caller moves it by the time that a slow reader took."""

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def headers(self) -> dict[str, str]:
        """What the caller may see of them; lower-case names."""
        return {shown: value for name, value in self._response.headers.items() if (shown := _shown(name))}

    async def chunk(self) -> bytes:
        """The next bytes; empty at the end. Raises ProviderError."""
        if self._first:
            first, self._first = self._first, b""
            return first
        content = self._response.content
        try:
            if content.at_eof():
                return b""
            async with asyncio.timeout(max(0.0, self.deadline - time.perf_counter())):
                return await content.readany()
        except TimeoutError as error:
            raise _timeout(self._provider, "the whole answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(self._provider, error) from error

    async def read(self) -> bytes:
        """All of it. Raises ProviderError."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self.chunk():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise ProviderError(
                    "bad_response", 502, f"provider {self._provider} answered more than {MAX_ANSWER_BYTES} bytes"
                )
        return b"".join(pieces)

    async def close(self) -> None:
        """Give the connection back, or cut it where the answer is not read to its end: the provider stops working."""
        self._response.close() if not self._response.content.at_eof() else self._response.release()


class Endpoint(ABC):
    """One endpoint with its connections, its key and what is known of its reachability.

    What is particular to a kind of API: the paths of the protocols that it speaks, and how it takes its key.
    """

    kind: ClassVar[str]
    """As ModelProvider's `type`."""
    paths: ClassVar[Mapping[str, str]]
    """Behind the base URL, by the protocol's name, the one first that others are translated into."""

    @abstractmethod
    def key_headers(self) -> dict[str, str]:
        """Headers that carry the key, and what else each request of this kind needs."""

    def __init__(
        self,
        name: str,
        base_url: str,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.base_url = base_url
        self.key: str | None = None
        self.in_flight = 0
        self.retries = 0
        self.takes_stream_options = True
        """False once a request was refused for the `stream_options` that we added, and taken without."""
        self._rng = rng or random.Random()
        self._session: aiohttp.ClientSession | None = None
        self._clock = clock
        self._failures = 0
        """Of reachability, in a row."""
        self._under_way = 0
        """Completions of which nobody knows yet whether they get through."""
        self._answers_since: float | None = None
        """Probes have been answered since then, and no completion has failed."""
        self._one_may_try = False
        self._believed = False
        self._believed_after_seconds = BELIEVED_AFTER_SECONDS

    @property
    def unreachable(self) -> bool:
        """Several tries in a row failed as if nobody were there; requests of a canary are diverted meanwhile, until a
        completion gets through."""
        return self._failures >= UNREACHABLE_AFTER

    def may_try(self) -> bool:
        """Whether this request shall find out if completions get through again: one after each answered probe."""
        may, self._one_may_try = self._one_may_try, False
        return may

    async def call(
        self,
        payload: bytes,
        config: ProviderConfig,
        headers: Mapping[str, str],
        *,
        path: str,
        wait_unreachable: bool = True,
    ) -> Answer:
        """Send a request to a path; return when the first bytes of a 200 are here. Raises ProviderError.

        Tried again, within the total time: connection failures, 429, 502, 503, 504. With `wait_unreachable` off, a
        provider that is known to be out of reach is not: somebody else answers.
        """
        deadline = time.perf_counter() + config.timeouts.total_seconds
        tries = 0
        while True:
            try:
                return await self._try(path, payload, config, headers, deadline)
            except ProviderError as error:
                if not error.retryable or tries >= config.max_retries or (error.unreachable and not wait_unreachable):
                    raise
                pause = self._pause_seconds(tries, error.retry_after_seconds)
                if pause > RETRY_AFTER_MAX_SECONDS or time.perf_counter() + pause >= deadline:
                    raise
            tries += 1
            self.retries += 1
            await asyncio.sleep(pause)

    async def probe(self, config: ProviderConfig) -> None:
        """See whether the endpoint itself answers again.

        That it answers this does not mean that it completes chats, so all that follows is that one request may try.
        Only where none comes for a while (the canary has no users) is the answer believed.
        """
        timeout = aiohttp.ClientTimeout(total=config.timeouts.connect_seconds + 5.0)
        try:
            async with self._sessions().get(
                f"{self.base_url}/models", headers=self._headers({}), timeout=timeout, allow_redirects=False
            ) as response:
                answered = response.status < min(_DOWN_STATUS)
        except (aiohttp.ClientError, OSError, TimeoutError):
            answered = False
        self._one_may_try = answered and self._under_way == 0
        if not answered or self._under_way:
            self._answers_since = None
            return
        now = self._clock()
        if self._answers_since is None:
            self._answers_since = now
        elif now - self._answers_since >= self._believed_after_seconds and self.unreachable:
            self._failures = UNREACHABLE_AFTER - 1
            self._believed = True

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _try(
        self, path: str, payload: bytes, config: ProviderConfig, headers: Mapping[str, str], deadline: float
    ) -> Answer:
        timeouts = config.timeouts
        seconds = min(timeouts.first_byte_seconds, deadline - time.perf_counter())
        response: aiohttp.ClientResponse | None = None
        answered = False
        self._under_way += 1
        try:
            async with asyncio.timeout(seconds):
                response = await self._sessions().post(
                    self.base_url + path,
                    data=payload if len(payload) <= PIECEWISE_BYTES else io.BytesIO(payload),
                    headers=self._headers(headers),
                    allow_redirects=False,
                    timeout=_connect_timeout(timeouts.connect_seconds),
                )
                if response.status != 200:
                    refusal = self._refusal(response, await _read_some(response))
                    if response.status in _DOWN_STATUS:
                        raise self._failed(refusal)
                    self._reached()  # whatever it is: somebody is there
                    raise refusal
                first = await response.content.readany()
            self._reached()
            answered = True
            return Answer(self.name, response, first, deadline)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            message = f"provider {self.name} cannot be reached: {_reason(error)}"
            # surely nothing was done for this request, so somebody else may answer it from the first failure on
            raise self._failed(ProviderError("connection", 502, message, unreachable=True, retryable=True)) from error
        except TimeoutError as error:
            raise self._failed(_timeout(self.name, "the first byte")) from error
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            raise ProviderError("bad_response", 502, f"provider {self.name} does not speak HTTP") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed(_broken(self.name, error)) from error
        finally:
            self._under_way -= 1
            if response is not None and not answered:
                response.close()

    def _reached(self) -> None:
        self._failures = 0
        self._answers_since, self._believed = None, False
        self._believed_after_seconds = BELIEVED_AFTER_SECONDS

    def _failed(self, error: ProviderError) -> ProviderError:
        """Note a try that says that nobody is there. Only several in a row do: one may be this request's own."""
        self._failures += 1
        self._answers_since = None
        if self._believed:
            self._believed = False
            self._believed_after_seconds *= 2
        error.unreachable = error.unreachable or self.unreachable
        return error

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> ProviderError:
        """What the caller is told about an answer that is an error."""
        status = response.status
        error = upstream_error(body)
        said = error.get("message")
        message = f"provider {self.name} answered {status}" + (f": {said}" if isinstance(said, str) else "")
        error_type: ErrorType
        if status == 429:
            error_type, shown = "rate_limited", 429
        elif 400 <= status < 500:
            error_type, shown = "provider_4xx", status
        elif status >= 500:
            error_type, shown = "provider_5xx", 503 if status == 503 else 502
        else:
            error_type, shown = "bad_response", 502
        headers = {name: response.headers[name] for name in _ERROR_HEADERS if name in response.headers}
        code, param = error.get("code"), error.get("param")
        return ProviderError(
            error_type,
            shown,
            message[:4096],
            code=code if isinstance(code, str) else None,
            param=param if isinstance(param, str) else None,
            headers=headers,
            retryable=status in _RETRIED_STATUS,
            retry_after_seconds=_retry_after(response.headers.get("retry-after")),
            about_stream_options=status in (400, 422) and b"stream_options" in body,
        )

    def _pause_seconds(self, tries: int, retry_after_seconds: float | None) -> float:
        backoff: float = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2**tries) * self._rng.uniform(0.5, 1.0)
        return backoff if retry_after_seconds is None else retry_after_seconds + self._rng.uniform(0.0, 0.1)

    def _headers(self, further: Mapping[str, str]) -> dict[str, str]:
        return {"content-type": "application/json", "accept-encoding": "identity", **further, **self.key_headers()}

    def _sessions(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0, ttl_dns_cache=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                # looked up per request, so only where there is a proxy to be found
                trust_env=any(os.environ.get(name) for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy")),
            )
        return self._session


@lru_cache(maxsize=1024)
def _shown(name: str) -> str | None:
    """A header of an answer as the caller sees it; None: it does not."""
    name = name.lower()
    return None if name in _OWN_HEADERS or name.startswith(("cf-", "access-control-")) else name


@lru_cache(maxsize=64)
def _connect_timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds)


async def _read_some(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of an error's body: enough for its message."""
    body = b""
    while len(body) < MAX_ERROR_BYTES and (piece := await response.content.readany()):
        body += piece
    return body


def _timeout(provider: str, what: str) -> ProviderError:
    return ProviderError("timeout", 504, f"provider {provider} took too long for {what}")


def _broken(provider: str, error: BaseException) -> ProviderError:
    message = f"the connection to provider {provider} broke: {_reason(error)}"
    return ProviderError("connection", 502, message, retryable=True)


def _reason(error: BaseException) -> str:
    """Without the address: it is nobody's business outside."""
    number = getattr(getattr(error, "os_error", None) or error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
