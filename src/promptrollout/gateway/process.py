"""The gateway's process: two servers in one event loop, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn

from promptrollout import cluster
from promptrollout.api.names import PORT_ADMIN, PORT_HTTP, PROVIDER_KEYS_DIR, STATE_DIR
from promptrollout.gateway.admin import AdminApp
from promptrollout.gateway.app import Limits, ServingApp
from promptrollout.gateway.configuration import Loader, Providers
from promptrollout.gateway.counters import Counters
from promptrollout.gateway.exposition import PodState
from promptrollout.gateway.registry import Registry
from promptrollout.gateway.source import Source
from promptrollout.gateway.store import Store

logger = logging.getLogger(__name__)

ENDPOINT_LAG_SECONDS: Final = 2.0
"""After SIGTERM new connections still arrive for a while: the cluster's proxies learn late that the pod is ending."""


@dataclass(frozen=True)
class Settings:
    """What the Deployment says."""

    gateway: str
    namespace: str
    pod: str
    state_dir: Path = Path(STATE_DIR)
    provider_keys_dir: Path = Path(PROVIDER_KEYS_DIR)
    limits: Limits = field(default_factory=Limits)
    drain_seconds: int = 30
    bind_address: str = "0.0.0.0"
    port: int = PORT_HTTP
    admin_port: int = PORT_ADMIN
    endpoint_lag_seconds: float = ENDPOINT_LAG_SECONDS


def tune_garbage_collection() -> None:
    """Look for cycles rarely, and never among what was imported: requests make next to none, and each full collection
    would hold all of them up. Configurations are not frozen: they come and go."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


class _Server(uvicorn.Server):
    """Leaves signals to the process: there are two servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """All parts of one pod."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counters = Counters()
        self.providers = Providers(settings.provider_keys_dir)
        store = Store(settings.state_dir, lambda operation: self.counters.disk_errors.update((operation,)))
        self.registry = Registry(settings.pod, Loader(self.providers), store, self.counters)
        self.source: Source | None = None
        self.draining = False
        self.serving_app = ServingApp(self.registry, self.counters, settings.limits)
        self.admin_app = AdminApp(self.registry, self.counters, self.state)

    def state(self) -> PodState:
        return PodState(
            servings=list(self.registry.all()),
            retries=self.providers.retries(),
            api_contact_at=self.source.api_contact_at if self.source else None,
            ready=bool(self.source and self.source.ready) and not self.draining,
        )


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ClusterError where there is no way to an API server."""
    tune_garbage_collection()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(settings)
    async with await cluster.connect() as client:
        gateway.source = Source(client, settings.namespace, settings.gateway, gateway.registry, gateway.providers)
        source = asyncio.create_task(gateway.source.run())
        try:
            await serve(gateway, stop, source)
        finally:
            source.cancel()
            await asyncio.gather(source, return_exceptions=True)
            await gateway.providers.close()


async def serve(gateway: Gateway, stop: asyncio.Event, source: asyncio.Task[None]) -> None:
    """Both ports, until `stop` is set or `source` fails; then in order: unready, endpoint lag, requests under way."""
    settings = gateway.settings
    serving = _server(gateway.serving_app, settings.bind_address, settings.port, settings.drain_seconds)
    admin = _server(gateway.admin_app, settings.bind_address, settings.admin_port, 1)
    tasks = [asyncio.create_task(server.serve()) for server in (serving, admin)]
    stopping = asyncio.create_task(stop.wait())
    logger.info("gateway %s: http %d, admin %d", settings.gateway, settings.port, settings.admin_port)
    await asyncio.wait([stopping, source, *tasks], return_when=asyncio.FIRST_COMPLETED)
    gateway.draining = True
    if stopping.done():
        logger.info("stopping: %d requests under way", gateway.counters.in_flight)
        await asyncio.sleep(settings.endpoint_lag_seconds)
    stopping.cancel()
    for server, task in zip((serving, admin), tasks, strict=True):
        server.should_exit = True
        await task  # the admin port answers until the last request is over
    if source.done():
        source.result()


def _server(app: Any, host: str, port: int, graceful_seconds: int) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,  # longer than usual idle times of proxies: they must be first to close
            timeout_graceful_shutdown=graceful_seconds,
        )
    )
