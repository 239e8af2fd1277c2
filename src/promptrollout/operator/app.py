"""The operator's process: build the parts, start them in order, stop them after their last write."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine
from typing import Any

from kubernetes.aio.client import ApiClient

from promptrollout.api.text import first_few
from promptrollout.cluster import connect
from promptrollout.operator.cluster.admin import start_admin
from promptrollout.operator.cluster.api import Api
from promptrollout.operator.cluster.identity import OncePerObject
from promptrollout.operator.cluster.lists import RELIST_SECONDS, WATCHLESS_SECONDS, Lists
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.cluster.watches import Watches
from promptrollout.operator.cluster.workers import Workers
from promptrollout.operator.config import Config, MetricsSource, PodEnvironment
from promptrollout.operator.controllers import controllers
from promptrollout.operator.declarations.reconcile import DeclarationReconciler
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.gateways.reconcile import GatewayReconciler
from promptrollout.operator.rollouts.reconcile import RolloutReconciler
from promptrollout.operator.sources.access import SourceAccess
from promptrollout.operator.sources.prometheus import Source

logger = logging.getLogger(__name__)
Object = dict[str, Any]

WORKERS = 8
SHUTDOWN_SECONDS = 10.0
WATCHES_DEAD_SECONDS = 120.0
"""Watches down for so long while lists are answered make it unhealthy: a restart may help."""
STUCK_SECONDS = 300.0
"""A key that waits so long for a worker makes it unhealthy: the workers hang."""


class Operator:
    """One operator process."""

    def __init__(self, config: Config, where: PodEnvironment, client: ApiClient) -> None:
        self._config = config
        self._where = where
        self._client = client
        self._metrics = Metrics()
        self._api = Api(client, self._metrics)
        self._queue = WorkQueue()
        self._store = Store(self._changed)
        self._sources = {source.name: _source(source, self._metrics) for source in config.metrics_sources}
        self._analyses = Analyses(self._sources, config.settle_seconds, self._queue.add, self._pods_in)
        self._acknowledger = Acknowledger(self._store, self._queue.add)
        names = set(self._sources)
        self._controllers = controllers(
            RolloutReconciler(
                self._api,
                self._store,
                self._queue,
                self._acknowledger,
                self._analyses,
                names,
                self._metrics,
                where.pod,
            ),
            GatewayReconciler(
                self._api,
                self._store,
                config.gateway_image,
                names,
                config.gateway_cluster_role,
                self._acknowledger.reported,
                where.pod,
                config.gateway_environment,
            ),
            DeclarationReconciler(self._api, self._store, where.pod),
            self._acknowledger,
        )
        self._lists = Lists(
            self._api, self._store, self._metrics, config.watch_namespaces, self._watches_down, self._listed
        )
        self._watches: Watches | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ life

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        admin = await start_admin(
            self._where.bind_address, self._where.port, self._metrics, self._refresh, self._unhealthy, self._unready
        )
        try:
            if await self._or_stop(self._lists.first(), stop):
                self._watches = Watches(self._client, self._config.watch_namespaces, self._deliver, self._metrics)
                self._watches.start()
                await self._analyses.first_contact()
                self._tasks = [
                    asyncio.create_task(self._analyses.run(), name="analyses"),
                    asyncio.create_task(self._lists.keep(), name="lists"),
                ]
                workers = Workers(
                    self._queue,
                    self._reconcile,
                    self._lists.api_server_failed,
                    self._api,
                    self._store,
                    self._metrics,
                )
                self._workers = [asyncio.create_task(workers.work(), name=f"worker {n}") for n in range(WORKERS)]
                for task in (*self._tasks, *self._workers):
                    task.add_done_callback(_log_end)
                logger.info("watching; %d workers", WORKERS)
                await stop.wait()
        finally:
            await self._shut_down()
            await admin.cleanup()

    async def _or_stop(self, work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
        """False if `stop` came first."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
        if stop.is_set():
            return False
        task.result()
        return True

    async def _shut_down(self) -> None:
        """Workers finish their reconcile: a status without its delivery would only be completed after the restart."""
        self._queue.close()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=SHUTDOWN_SECONDS)
            for task in late:
                task.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._workers, *self._tasks, return_exceptions=True)
        await self._acknowledger.close()
        if self._watches is not None:
            await self._watches.stop()
        for source in self._sources.values():
            source.close()

    # ------------------------------------------------------------ changes

    def _pods_in(self, namespace: str) -> int:
        """Only gateways' pods are watched."""
        return len(self._store.in_namespace("Pod", namespace))

    def _deliver(self, kind: str, event: str | None, item: Object) -> None:
        """An event of a watch."""
        if event == "DELETED":
            metadata = item["metadata"]
            self._store.remove(kind, metadata.get("namespace", ""), metadata["name"], metadata["uid"])
        else:
            self._store.put(kind, item)

    def _changed(self, key: Key, before: Object | None, after: Object | None) -> None:
        controller = self._controllers[key.kind]
        if after is None:
            OncePerObject.forget(key)
        if controller.observe is not None:
            controller.observe(key, before, after)
        for each in controller.dependents(key, before, after, self._store):
            self._queue.add(each)

    def _listed(self, after_failure: bool) -> None:
        """After each complete list but the first."""
        if after_failure:
            self._queue.retry_failed_now()
        for gateway in self._store.all("PromptGateway"):
            # not all of their objects are watched
            self._queue.add(Key("PromptGateway", gateway["metadata"]["namespace"], gateway["metadata"]["name"]))

    async def _reconcile(self, key: Key) -> None:
        controller, item = self._controllers[key.kind], self._store.get(*key)
        if item is not None and controller.reconcile is not None:
            await controller.reconcile(key, item)
        elif item is None and controller.forget is not None:
            await controller.forget(key)

    # ------------------------------------------------------------ health and metrics

    def _refresh(self) -> None:
        self._metrics.queue_depth.set(self._queue.depth)
        self._metrics.queue_lag.set(self._queue.lag_seconds)

    def _unhealthy(self) -> str:
        dead = [task.get_name() for task in (*self._tasks, *self._workers) if task.done()]
        if dead:
            return f"ended: {', '.join(dead)}"
        if self._queue.lag_seconds > STUCK_SECONDS:
            return f"the oldest object has waited for {self._queue.lag_seconds:.0f} s"
        if self._lists.listed_at is not None and not self._lists.api_server_fails:
            age = time.monotonic() - self._lists.listed_at
            dead = [path for path, seconds in self._watches_down().items() if seconds > WATCHES_DEAD_SECONDS]
            if dead and age < 4 * WATCHLESS_SECONDS:
                return f"the API server answers, but these watches keep failing: {first_few(dead, 3)}"
            if age > 4 * RELIST_SECONDS:
                return f"the last complete list is {age:.0f} s old"
        return ""

    def _unready(self) -> str:
        if not self._workers:
            return "not all objects are listed yet"
        down = self._watches_down()
        return f"these watches are down: {first_few(down, 3)}" if down else ""

    def _watches_down(self) -> dict[str, float]:
        return self._watches.health.down() if self._watches is not None else {}


def _log_end(task: asyncio.Task[None]) -> None:
    """These tasks must not end before the operator stops."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task %s ended: %r", task.get_name(), error, exc_info=error)


def _source(source: MetricsSource, metrics: Metrics) -> Source:
    basic = source.basic_auth
    password = (basic.username, basic.password_file) if basic is not None else None
    return Source(
        source.name,
        source.url,
        metrics,
        timeout=source.query_timeout_seconds,
        access=SourceAccess(source.headers, source.bearer_token_file, password),
        ca_file=source.ca_file,
        client_certificate=source.client_certificate,
        namespace_label=source.namespace_label,
        parameters=source.query_parameters,
    )


async def serve(config: Config, where: PodEnvironment) -> None:
    """The whole process: until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with await connect() as client:
        await Operator(config, where, client).run(stop)
