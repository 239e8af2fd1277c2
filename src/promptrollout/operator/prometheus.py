"""One Prometheus-compatible source: grouped queries in a thread, its clock, and what is wrong with it."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from promptrollout.api.names import LABEL_PROCESS
from promptrollout.operator.metrics import Metrics

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5
PARALLEL = 4
UIDS_PER_QUERY = 100
_PROCESS_ID = re.compile("[0-9a-f]{8}")
_PARTS = ("error_type", "le", "type")
"""Labels that divide one process's counters of one metric."""


class SourceError(Exception):
    """The source did not give a usable answer; the message says why."""


class UnlabelledError(Exception):
    """All series of an answer lack the label that would say where they were scraped."""


@dataclass(frozen=True, slots=True)
class Series:
    """Raw samples of one series, oldest first: (timestamp, value). NaN, infinite and negative ones are left out."""

    variant: str
    version: str
    process: str
    """Whose counter it is: the gateway's process, or else what was scraped, by all its labels."""
    part: str
    """Which of the process's counters of this metric and arm."""
    le: float | None
    samples: tuple[tuple[float, float], ...]
    self_named: bool = True
    """The process names itself, so that samples taken by several scrapers can be told to be of one counter."""


class Source:
    """Raises SourceError, whatever goes wrong."""

    def __init__(
        self,
        name: str,
        url: str,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
        timeout: int = TIMEOUT_SECONDS,
        access: AuthBase | None = None,
        ca_file: str | None = None,
        namespace_label: str = "namespace",
    ) -> None:
        """`access`: adds what the source wants to see; `ca_file`: whose certificates are trusted instead of the
        system's; `namespace_label`: of what was scraped, attached by the source; empty: it attaches none."""
        self.name = name
        self._namespace_label = namespace_label
        self._strangers: set[str] = set()
        self._url = url.rstrip("/")
        self._metrics = metrics
        self._wall = wall
        self._slots = asyncio.Semaphore(PARALLEL)
        # no retries inside: the scheduler tries again, and a slow source must not hold threads
        self._timeout = timeout
        session = requests.Session()
        if ca_file is not None:
            session.verify = ca_file
        self._client = PrometheusConnect(
            url=self._url, retry=Retry(total=0), timeout=timeout, auth=access, session=session
        )
        self._offset = 0.0
        self.problem: str = "it has not been asked yet"
        """Why the source gave no answer last time; empty if it did."""

    def now(self) -> float:
        """The source's clock, or the best guess at it: its answers count in its own time."""
        return self._wall() + self._offset

    async def read_clock(self) -> None:
        """Ask for the time; notes whether the source is there."""
        before = self._wall()
        answer = await self._query("time()", None)
        after = self._wall()
        try:
            self._offset = float(answer[1]) - (before + after) / 2
        except (TypeError, ValueError, IndexError) as error:
            raise self._failed(f"its answer to time() is {str(answer)[:80]!r}") from error

    async def window(
        self, metric: str, rollouts: Mapping[str, str], end: int, seconds: int, edges: tuple[str, ...] = ()
    ) -> dict[str, list[Series]]:
        """Raw samples in (end - seconds, end] of both arms' series of a metric, by rollout uid.

        `rollouts`: their namespaces by uid. Any pod may claim to serve any rollout; only what was scraped in the
        rollout's own namespace counts. `edges`: thresholds of histogram buckets, as the objectives write them.
        """
        found: dict[str, list[Series]] = {}
        wanted = sorted(rollouts)
        for start in range(0, len(wanted), UIDS_PER_QUERY):
            matchers = [
                f'rollout_uid=~"{"|".join(wanted[start : start + UIDS_PER_QUERY])}"',
                'variant=~"canary|stable"',
            ]
            if edges:
                spellings = sorted({spelling for edge in edges for spelling in _spellings(edge)})
                matchers.append('le=~"' + "|".join(s.replace(".", "[.]") for s in spellings) + '"')
            answer = await self._query(f"{metric}{{{','.join(matchers)}}}[{seconds}s]", end)
            try:
                own = self._own(metric, answer, rollouts)
                parsed = await asyncio.to_thread(parse_matrix, own, end - seconds, end)
            except UnlabelledError as error:
                raise self._failed(str(error)) from error
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise self._failed(f"its answer for {metric} is no matrix of samples") from error
            for uid, series in parsed.items():
                found.setdefault(uid, []).extend(series)
        return found

    def _own(self, metric: str, answer: Any, rollouts: Mapping[str, str]) -> Any:
        """Without series of pods in other namespaces than the rollout that they name."""
        label = self._namespace_label
        if not label or not isinstance(answer, list):
            return answer
        if answer and all(label not in entry["metric"] for entry in answer):
            raise UnlabelledError(
                f"no series of {metric} carries the label {label}, by which pods of other namespaces are told apart: "
                "have the scrape job attach it, or set namespaceLabel of this source (empty: believe all pods)"
            )
        own = []
        for entry in answer:
            uid, space = entry["metric"].get("rollout_uid", ""), entry["metric"].get(label, "")
            if rollouts.get(uid) == space:
                own.append(entry)
            elif uid not in self._strangers:
                self._strangers.add(uid)
                logger.warning(
                    "metrics source %s: a pod in namespace %r exports series of rollout %s of namespace %s: left out",
                    *(self.name, space, uid, rollouts.get(uid)),
                )
        return own

    async def _query(self, query: str, at: int | None) -> Any:
        params = {} if at is None else {"time": str(at)}
        started = time.monotonic()
        try:
            async with self._slots:
                answer = await asyncio.to_thread(self._client.custom_query, query, params, self._timeout)
        except PrometheusApiClientException as error:
            raise self._failed(_shortened(str(error))) from error
        except requests.Timeout as error:
            raise self._failed(f"no answer within {self._timeout} s") from error
        except requests.ConnectionError as error:
            raise self._failed("it cannot be reached") from error
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            # HTML of a proxy, JSON without data, an answer cut off
            raise self._failed(f"its answer is not that of a Prometheus API: {type(error).__name__}") from error
        except OSError as error:
            raise self._failed(f"its token or CA file cannot be read: {error}") from error
        self._metrics.query_seconds.labels(self.name).observe(time.monotonic() - started)
        return answer

    def _failed(self, why: str) -> SourceError:
        self._metrics.query_errors.labels(self.name).inc()
        return SourceError(f"metrics source {self.name} ({self._url}): {why}")

    def close(self) -> None:
        self._client.close()


def parse_matrix(result: Any, after: float, until: float) -> dict[str, list[Series]]:
    """A range vector's answer by rollout uid, with samples in (after, until] only: versions of Prometheus differ in
    whether the left end belongs to the range."""
    found: dict[str, list[Series]] = {}
    if not isinstance(result, list):
        raise TypeError("not a list")
    for entry in result:
        labels: dict[str, str] = entry["metric"]
        samples = []
        for at, text in entry["values"]:
            value = float(text)
            if after < at <= until and math.isfinite(value) and value >= 0:
                samples.append((float(at), value))
        le = float(labels["le"]) if "le" in labels else None
        process = labels.get(LABEL_PROCESS, "")
        self_named = _PROCESS_ID.fullmatch(process) is not None
        if not self_named:
            rest = sorted(labels.keys() - {"__name__", *_PARTS})
            process = ",".join(f"{name}={labels[name]}" for name in rest)
        part = f"{labels.get('error_type', '')}/{labels.get('type', '')}/{'' if le is None else le}"
        variant, version = labels.get("variant", ""), labels.get("version", "")
        series = Series(variant, version, process, part, le, tuple(samples), self_named)
        found.setdefault(labels.get("rollout_uid", ""), []).append(series)
    return found


def _spellings(edge: str) -> set[str]:
    """How an exporter or Prometheus itself may write a bucket's edge."""
    value = float(edge)
    plain = edge.rstrip("0").rstrip(".") if "." in edge else edge
    found = {edge, plain, f"{value:g}", repr(value)}
    return {spelling for spelling in found if "e" not in spelling}


def _shortened(text: str, limit: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
