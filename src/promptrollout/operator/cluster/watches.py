"""Watches, by kopf: every event goes straight to the operator's own event loop.

kopf runs in a thread with a loop of its own: when it ends it cancels all tasks in its loop, and a watch that the API
server refuses ends it. Then it is restarted; the periodic list finds what was missed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient

from promptrollout.operator.cluster.api import KINDS, WATCHED, path_of
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.watch_health import WatchHealth

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Deliver = Callable[[str, str | None, Object], None]
"""Called on the operator's loop with kind, event type (None: from kopf's list) and object."""

LOGIN_SECONDS = 60
"""How long kopf keeps a token before it asks again: bound tokens rotate, and files of rotated ones change early."""
RESTART_SECONDS = (0.5, 10.0)
IDENTITY = "promptrollout"
"""Without one kopf asks the system for the user's name, and an image's UID has none. Only peering would use it."""


class Watches:
    """Watches all kinds until it is stopped."""

    def __init__(self, client: ApiClient, namespaces: Collection[str], deliver: Deliver, metrics: Metrics) -> None:
        self._client = client
        self._namespaces = list(namespaces)
        self._deliver = deliver
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        spaces: list[str | None] = [*self._namespaces] or [None]
        self.health = WatchHealth(path_of(kind, space) for kind in WATCHED for space in spaces)

    def start(self) -> None:
        self._thread.start()

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join, timeout_seconds)

    # ------------------------------------------------------------ in kopf's thread

    def _run(self) -> None:
        pause = RESTART_SECONDS[0]
        while not self._stop.is_set():
            started = datetime.now(UTC)
            try:
                asyncio.run(
                    kopf.operator(
                        registry=self._registry(),
                        settings=_settings(),
                        identity=IDENTITY,  # type: ignore[arg-type]
                        standalone=True,
                        clusterwide=not self._namespaces,
                        namespaces=self._namespaces,
                        stop_flag=self._stop,
                    )
                )
            # any error: watching must continue
            except (Exception, asyncio.CancelledError):
                logger.exception("the watches ended, restarting them")
            self.health.ended()
            if self._stop.is_set():
                return
            self._metrics.watch_restarts.inc()
            if datetime.now(UTC) - started > timedelta(minutes=1):
                pause = RESTART_SECONDS[0]
            self._stop.wait(pause * random.uniform(0.5, 1.5))
            pause = min(RESTART_SECONDS[1], pause * 2)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for kind in WATCHED:
            known = KINDS[kind]
            group, _, version = known.api_version.rpartition("/")
            kopf.on.event(group, version, known.plural, registry=registry, id=kind)(self._handler(kind))
        return registry

    def _handler(self, kind: str) -> Callable[..., None]:
        # enqueue only: kopf never retries a failed event handler
        def on_event(event: kopf.RawEvent, **_: Any) -> None:
            item = dict(event["object"])
            self._loop.call_soon_threadsafe(self._deliver, kind, event["type"], item)

        return on_event

    async def _login(self, **_: Any) -> kopf.AiohttpSession:
        """The credentials of our own client, so that there is one place that knows them."""
        configuration = self._client.configuration
        if configuration.refresh_api_key_hook is not None:
            configuration.refresh_api_key_hook(configuration)
        scheme, _space, token = (configuration.api_key.get("BearerToken") or "").rpartition(" ")
        expiration = datetime.now(UTC) + timedelta(seconds=LOGIN_SECONDS)
        access = kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=access.as_ssl_context()),
            headers=access.as_http_headers(),
            trace_configs=[self.health.trace(configuration.host)],
        )
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session, expiration=expiration)


class _Backoffs(Iterable[float]):
    """Endless: kopf's own list of pauses ends after a minute of HTTP 5xx, and the operator with it."""

    def __iter__(self) -> Iterator[float]:
        pause = 0.2
        while True:
            yield pause * random.uniform(0.5, 1.5)
            pause = min(5.0, pause * 2)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _Backoffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffBase()
    for kind in WATCHED:
        known = KINDS[kind]
        if known.selector:
            group, _, version = known.api_version.rpartition("/")
            settings.watching.label_selectors[group, version, known.plural] = known.selector
    return settings


class _NoProgress(kopf.ProgressStorage):
    """The operator writes nothing into objects that people applied."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None: ...

    def purge(self, **_: Any) -> None: ...

    def touch(self, **_: Any) -> None: ...

    def clear(self, *, essence: Any) -> Any:
        return essence


class _NoDiffBase(kopf.DiffBaseStorage):
    """As above; and without `build`, which copies every object of every event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None: ...
