"""One Prometheus-compatible source: queries in threads, its clock, and its problem if it has one.

Answers are checked as HTTP: Thanos' `warnings` and VictoriaMetrics' `isPartial` mean that data may be missing, and no
Python client passes them on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from http.client import RemoteDisconnected
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import orjson
import requests
from prometheus_api_client import PrometheusConnect
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util.retry import Retry

from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.sources.lanes import (
    MAX_ANSWER_BYTES,
    MAX_OWN_BYTES,
    Lane,
    Reading,
    SourceError,
    TooMuch,
    refuses,
    shortened,
)
from promptrollout.operator.sources.series import Series, parse_matrix, parse_own, spellings

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

TIMEOUT_SECONDS = 5
WHOLE_ANSWER = 2
"""A complete answer must arrive within so many times the timeout."""
PARALLEL = 4
PARALLEL_OWN = 4
"""Of Custom queries, which may be slow, and must not delay the gateways' metrics."""
PARALLEL_ALONE = 2
"""Of namespaces that are queried alone."""
OWN_PER_NAMESPACE = 2
SLOW_SECONDS = 3600.0
_LATEST = 253_402_300_800.0
"""The year 10000."""
ON_THE_QUERY = "PromQL "
"""How Prometheus begins a warning about the expression: no data is missing for that."""


_ODD = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Raised while an answer of unexpected content is read."""
_CLOSED = (RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""Errors of an idle connection that the other side closed: the request was not read."""


class UnlabelledError(Exception):
    """All series of an answer lack the label of the namespace that they were scraped in."""


class Source:
    """Every failure is raised as SourceError."""

    def __init__(
        self,
        name: str,
        url: str,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
        timeout: float = TIMEOUT_SECONDS,
        access: AuthBase | None = None,
        ca_file: str | None = None,
        client_certificate: tuple[str, str] | None = None,
        namespace_label: str = "namespace",
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """`access`: adds authentication; `ca_file`: whose certificates are trusted instead of the
        system's; `client_certificate`: files of ours and of its key, read at each new connection; `namespace_label`: of
        what was scraped, attached by the source; empty: it attaches none; `parameters`: sent with each query."""
        self.name = name
        self._namespace_label = namespace_label
        self._strangers: set[str] = set()
        self._unread: set[str] = set()
        """Rollout uids that were warned of."""
        self._url = url.rstrip("/")
        self._metrics = metrics
        self._wall = wall
        large = threading.Lock()
        self._lane = Lane(PARALLEL, MAX_ANSWER_BYTES, threading.Lock())
        self._own_lane = Lane(PARALLEL_OWN, MAX_OWN_BYTES, large)
        self._alone_lane = Lane(PARALLEL_ALONE, MAX_OWN_BYTES, large)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Of namespaces, for their Custom queries: none may take all the slots."""
        self._slow_until: dict[str, float] = {}
        """Namespaces whose Custom queries were too slow: they use a lane of their own."""
        self._reading = Reading()
        self._timeout = timeout
        self.answer_seconds = WHOLE_ANSWER * timeout
        """The longest time of a query, once it is sent."""
        # VictoriaMetrics answers queries about the last 30 s with older points, unless it may not use its cache
        self._parameters = {"timeout": f"{timeout:g}", "nocache": "1", **(parameters or {})}
        session = requests.Session()
        session.cert = client_certificate
        session.verify = ca_file if ca_file is not None else True
        session.hooks["response"].append(self._refuse_partial)  # the client keeps data.result and drops the rest
        # no retries but of a connection that was closed while idle (see `_ask`): the scheduler tries again, and a
        # slow source must not block threads
        self._client = PrometheusConnect(url=self._url, retry=Retry(total=0, read=False), auth=access, session=session)
        self._offset = 0.0
        self.problem: str = "it has not been queried yet"
        """Why the source gave no answer last time; empty if it did."""

    def now(self) -> float:
        """The source's clock, as last read: its answers count in its own time."""
        return self._wall() + self._offset

    async def read_clock(self) -> None:
        """Query the time."""
        before = self._wall()
        answer = await self._query("query", lambda answer: answer, query="time()")
        after = self._wall()
        try:
            if isinstance(answer[0], dict):
                answer = answer[0]["value"]  # VictoriaMetrics makes a vector of everything
            seconds = float(answer[1])
            if not 0 <= seconds < _LATEST:
                raise ValueError("no time of day")
            self._offset = seconds - (before + after) / 2
        except _ODD as error:
            raise self._failed(f"its answer to time() is {str(answer)[:80]!r}") from error

    async def window(
        self,
        metric: str,
        rollouts: Mapping[str, str],
        end: int,
        seconds: int,
        label_filter: Mapping[str, Collection[str]] | None = None,
        *,
        alone: bool = False,
        most_bytes: int = MAX_ANSWER_BYTES,
    ) -> dict[str, list[Series]]:
        """Raw samples in (end - seconds, end] of both arms' series of a metric, by rollout uid.

        `rollouts`: their namespaces by uid. Any pod may claim to serve any rollout; only what was scraped in the
        rollout's own namespace counts. `label_filter`: the values of labels that are needed, as the objectives
        write them.
        `alone`: in a lane that delays no other queries. `most_bytes`: a larger answer is refused.
        """
        narrow = [f'{name}=~"{_one_of(name, values)}"' for name, values in sorted((label_filter or {}).items())]
        if self._namespace_label:
            # the empty one: series that lack the label are noticed
            spaces = "|".join([*sorted(set(rollouts.values())), ""])
            narrow.append(f'{self._namespace_label}=~"{spaces}"')
        matchers = [f'rollout_uid=~"{"|".join(sorted(rollouts))}"', 'variant=~"canary|stable"', *narrow]
        query = f"{metric}{{{','.join(matchers)}}}[{seconds}s]"
        lane = self._alone_lane if alone else self._lane

        def parse(answer: Any) -> dict[str, list[Series]]:
            return self._matrix(metric, answer, rollouts, end - seconds, end)

        return await self._parsed(metric, parse, "query", lane, most_bytes, query=query, time=str(end))

    async def selected(self, selector: str, namespace: str, end: int, seconds: int) -> list[Series]:
        """Raw samples in (end - seconds, end] of a selector of signal Custom, scraped in `namespace`."""

        def parse(answer: Any) -> list[Series]:
            own = [entry for entry in answer if self._scraped_in(selector, answer, entry) in (None, namespace)]
            return parse_own(own, end - seconds, end)

        asked = {"query": f"{selector}[{seconds}s]", "time": str(end)}
        return await self._own_query(namespace, selector, parse, "query", asked)

    async def values(self, expression: str, namespace: str, first: int, last: int, step: int) -> list[Series]:
        """The value of an expression at `first`, one `step` later, and so on up to `last`: one series at most."""
        asked = {"query": expression, "start": str(first), "end": str(last), "step": str(step)}

        def parse(answer: Any) -> list[Series]:
            return parse_own(answer, first - 1, last)

        found = await self._own_query(namespace, expression, parse, "query_range", asked)
        if len(found) > 1:
            raise self._failed(f"{len(found)} values for {shortened(expression, 80)}: aggregate them to one")
        return found

    async def _own_query(
        self,
        namespace: str,
        what: str,
        parse: Callable[[Any], list[Series]],
        endpoint: str,
        asked: Mapping[str, str],
    ) -> list[Series]:
        slow = time.monotonic() < self._slow_until.get(namespace, 0.0)
        try:
            async with self._turn(namespace):
                lane = self._alone_lane if slow else self._own_lane
                return await self._parsed(what, parse, endpoint, lane, MAX_OWN_BYTES, **asked)
        except SourceError as error:
            if error.spoilt:
                now = time.monotonic()
                self._slow_until = {each: until for each, until in self._slow_until.items() if until > now}
                self._slow_until[namespace] = now + SLOW_SECONDS
            raise

    def _turn(self, namespace: str) -> asyncio.Semaphore:
        found = self._turns.get(namespace)
        if found is None:
            found = self._turns[namespace] = asyncio.Semaphore(OWN_PER_NAMESPACE)
        return found

    async def _parsed(
        self, what: str, parse: Callable[[Any], _T], endpoint: str, lane: Lane, most_bytes: int, **parameters: str
    ) -> _T:
        def read(answer: Any) -> _T:
            try:
                return parse(answer)
            except UnlabelledError as error:
                raise self._failed(str(error)) from error
            except _ODD as error:
                text = f"its answer for {shortened(what, 80)} is not a matrix of samples"
                raise self._failed(text, spoilt=True) from error

        return await self._query(endpoint, read, lane, most_bytes, **parameters)

    def _matrix(
        self, metric: str, answer: Any, rollouts: Mapping[str, str], after: int, until: int
    ) -> dict[str, list[Series]]:
        return parse_matrix(self._own(metric, answer, rollouts), after, until, partial(self._unreadable, metric))

    def _unreadable(self, metric: str, uid: str, error: Exception) -> None:
        if uid not in self._unread:
            self._unread.add(uid)
            logger.warning(
                "metrics source %s: ignoring an unreadable series of %s of rollout %s: %r",
                *(self.name, metric, uid, error),
            )

    def _own(self, metric: str, answer: Any, rollouts: Mapping[str, str]) -> Any:
        """Without series of pods in another namespace than their rollout."""
        if not self._namespace_label or not isinstance(answer, list):
            return answer
        own = []
        for entry in answer:
            uid, space = entry["metric"].get("rollout_uid", ""), self._scraped_in(metric, answer, entry)
            if rollouts.get(uid) == space:
                own.append(entry)
            elif uid not in self._strangers:
                self._strangers.add(uid)
                logger.warning(
                    "metrics source %s: ignoring series of a pod in namespace %r that name rollout %s of namespace %s",
                    *(self.name, space, uid, rollouts.get(uid)),
                )
        return own

    def _scraped_in(self, metric: str, answer: Any, entry: Any) -> str | None:
        """The namespace; None if the source has no such label, and all pods are trusted."""
        label = self._namespace_label
        if not label:
            return None
        if label not in entry["metric"] and all(label not in each["metric"] for each in answer):
            raise UnlabelledError(
                f"no series of {metric} carries the label {label} of the pod's namespace: "
                "let the scrape job attach it, or set namespaceLabel (empty: trust all pods)"
            )
        return str(entry["metric"].get(label, ""))

    async def _query(
        self,
        endpoint: str,
        read: Callable[[Any], _T],
        lane: Lane | None = None,
        most_bytes: int = MAX_ANSWER_BYTES,
        **parameters: str,
    ) -> _T:
        started = time.monotonic()
        lane = lane or self._lane
        try:
            async with lane.slots:
                loop = asyncio.get_running_loop()
                asked = loop.run_in_executor(lane.threads, self._ask, endpoint, parameters, lane, most_bytes, read)
                answer = await asyncio.wait_for(asked, self.answer_seconds)
        except requests.Timeout as error:
            raise self._failed(f"no answer within {self._timeout:g} s", spoilt=True) from error
        except TimeoutError as error:
            raise self._failed(f"no complete answer within {self.answer_seconds:g} s", spoilt=True) from error
        except requests.exceptions.SSLError as error:
            raise self._failed(f"TLS fails: {shortened(str(_first_cause(error)))}") from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise self._failed("its answer was cut off") from error
        except requests.ConnectionError as error:
            raise self._failed("it cannot be reached") from error
        except (requests.RequestException, *_ODD) as error:
            # HTML of a proxy, JSON without data, nested too deep
            text = f"its answer is not that of a Prometheus API: {type(error).__name__}"
            raise self._failed(text, spoilt=True) from error
        except OSError as error:
            raise self._failed(f"a file for its access cannot be read: {error}") from error
        self._metrics.query_seconds.labels(self.name).observe(time.monotonic() - started)
        return answer

    def _ask(
        self, endpoint: str, parameters: Mapping[str, str], lane: Lane, most_bytes: int, read: Callable[[Any], _T]
    ) -> _T:
        """The result, read in the same thread: only one large answer at a time is in memory."""
        self._reading.begin(lane, most_bytes)
        try:
            try:
                return read(self._result(endpoint, parameters))
            except requests.ConnectionError as error:
                if not isinstance(_first_cause(error), _CLOSED):
                    raise
                # the source closed the idle connection just as it was used again
                return read(self._result(endpoint, parameters))
        finally:
            self._reading.end()

    def _result(self, endpoint: str, parameters: Mapping[str, str]) -> Any:
        if endpoint == "query":
            return self._client.custom_query(parameters["query"], {**self._parameters, **parameters}, self._timeout)
        start, end = (datetime.fromtimestamp(int(parameters[name]), UTC) for name in ("start", "end"))
        return self._client.custom_query_range(
            parameters["query"], start, end, parameters["step"], self._parameters, self._timeout
        )

    def _refuse_partial(self, response: requests.Response, **_: Any) -> None:
        """Refuse an answer that may lack data, and redirects: their target must not get the source's credentials."""
        content = self._whole(response)
        if response.is_redirect:
            where = response.headers["location"]
            raise self._failed(f"HTTP {response.status_code}: redirects are not followed, here to {shortened(where)}")
        if response.status_code != requests.codes.ok:
            raise self._failed(f"HTTP {response.status_code}: {shortened(response.text)}", spoilt=refuses(response))
        if b'"warnings"' not in content and b'"isPartial"' not in content:
            return
        body = orjson.loads(content)
        missing = [text for text in body.get("warnings") or () if not text.startswith(ON_THE_QUERY)]
        if missing or body.get("isPartial"):
            why = shortened(str(missing[0])) if missing else "isPartial"
            raise self._failed(f"its answer may lack data: {why}")

    def _whole(self, response: requests.Response) -> bytes:
        """The body, read here: the client's timeout is for each read, so one byte a second would never time out."""
        try:
            content = self._reading.whole(response, time.monotonic() + self.answer_seconds)
        except ReadTimeoutError as error:
            raise requests.ReadTimeout(error) from error
        except HTTPError as error:
            raise requests.exceptions.ChunkedEncodingError(error) from error
        except TooMuch as error:
            raise self._failed(str(error), spoilt=True) from error
        response._content, response._content_consumed = content, True
        return content

    def _failed(self, why: str, *, spoilt: bool = False) -> SourceError:
        self._metrics.query_errors.labels(self.name).inc()
        return SourceError(f"metrics source {self.name} ({self._url}): {why}", spoilt=spoilt)

    def close(self) -> None:
        for lane in (self._lane, self._own_lane, self._alone_lane):
            lane.threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _one_of(name: str, values: Collection[str]) -> str:
    """A regular expression; bucket edges in all spellings."""
    texts = {text for value in values for text in (spellings(value) if name == "le" else (value,))}
    return "|".join(text.replace(".", "[.]") for text in sorted(texts))


def _first_cause(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error
