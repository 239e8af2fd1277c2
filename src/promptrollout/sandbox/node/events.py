"""Events about pods, best effort: repeated ones are counted, and an outage delays or drops them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass

from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.cluster import ApiException, ApiUnavailable, Object
from promptrollout.sandbox.node.podstatus import timestamp
from promptrollout.sandbox.settings import NODE_NAME

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0
_REMEMBERED = 2000


@dataclass
class _Series:
    """One event and how often it happened."""

    pod: Object
    kind: str
    reason: str
    message: str
    first: float
    last: float
    name: str
    count: int = 1
    written: int = 0


class EventRecorder:
    """Collects events and writes them once a second."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._pending = asyncio.Event()

    def record(self, pod: Object, kind: str, reason: str, message: str) -> None:
        key = (pod["metadata"]["uid"], reason, message)
        now = time.time()
        series = self._series.get(key)
        if series is None:
            while len(self._series) >= _REMEMBERED:
                self._series.pop(next(iter(self._series)))
            name = f"{pod['metadata']['name']}.{secrets.token_hex(8)}"
            self._series[key] = _Series(pod, kind, reason, message, now, now, name)
        else:
            series.count += 1
            series.last = now
        self._pending.set()

    async def run(self) -> None:
        while True:
            await self._pending.wait()
            self._pending.clear()
            for series in [s for s in self._series.values() if s.written < s.count]:
                try:
                    await self._write(series)
                except ApiUnavailable as error:
                    logger.info("event %s waits: %s", series.reason, error)
                    self._pending.set()
                    break
                except ApiException as error:  # the namespace is going away, for example
                    logger.info("event %s dropped: %s", series.reason, error)
                    series.written = series.count
            await asyncio.sleep(_FLUSH_SECONDS)

    async def _write(self, series: _Series) -> None:
        metadata = series.pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/events"
        count = series.count
        if series.written:
            again = {"count": count, "lastTimestamp": timestamp(series.last)}
            await cluster.request(
                self._api, "PATCH", f"{path}/{series.name}", body=again, content_type=cluster.MERGE_PATCH
            )
        else:
            event = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": series.name, "namespace": metadata["namespace"]},
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "uid": metadata["uid"],
                },
                "type": series.kind,
                "reason": series.reason,
                "message": series.message[:1024],
                "firstTimestamp": timestamp(series.first),
                "lastTimestamp": timestamp(series.last),
                "count": count,
                "source": {"component": "kubelet", "host": NODE_NAME},
                "reportingComponent": "kubelet",
                "reportingInstance": NODE_NAME,
            }
            await cluster.request(self._api, "POST", path, body=event)
        series.written = count
