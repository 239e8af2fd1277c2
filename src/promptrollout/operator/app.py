"""The operator's process: put the parts together, start them in order, stop them without half a write."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine
from typing import Any

from kubernetes.aio.client import ApiClient

from promptrollout.api.names import API_VERSION, LABEL_GATEWAY
from promptrollout.api.text import first_few
from promptrollout.cluster import ApiException, ApiUnavailable, connect, namespace_is_terminating
from promptrollout.operator.cluster.admin import start_admin
from promptrollout.operator.cluster.api import KINDS, WATCHED, Api, Stale
from promptrollout.operator.cluster.identity import OncePerObject
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.cluster.watches import Shell
from promptrollout.operator.config import Config, MetricsSource, Surroundings
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.gateways.reconcile import GatewayReconciler
from promptrollout.operator.rollouts.declarations import reconcile_declaration
from promptrollout.operator.rollouts.dirty import affected, rollouts_of
from promptrollout.operator.rollouts.pod_failures import failure_of
from promptrollout.operator.rollouts.reconcile import RolloutReconciler
from promptrollout.operator.rollouts.retire import retire
from promptrollout.operator.sources.access import SourceAccess
from promptrollout.operator.sources.prometheus import Source

logger = logging.getLogger(__name__)
Object = dict[str, Any]

WORKERS = 8
RELIST_SECONDS = 300.0
RELIST_RETRY_SECONDS = (1.0, 10.0)
SHUTDOWN_SECONDS = 10.0
WATCHLESS_SECONDS = 10.0
"""While a watch is down, lists come so often instead."""
WATCHES_DEAD_SECONDS = 120.0
"""Watches that have been down for so long while lists are answered: a restart may help, and somebody must know."""
STUCK_SECONDS = 300.0
"""A key that has waited so long for a worker: the workers hang, and a restart helps."""


class Operator:
    """One operator process."""

    def __init__(self, config: Config, where: Surroundings, client: ApiClient) -> None:
        self._config = config
        self._where = where
        self._client = client
        self._metrics = Metrics()
        self._api = Api(client, self._metrics)
        self._queue = WorkQueue()
        self._store = Store(self._changed)
        sources = {
            source.name: Source(
                source.name,
                source.url,
                self._metrics,
                timeout=source.query_timeout_seconds,
                access=_access(source),
                ca_file=source.ca_file,
                client_certificate=source.client_certificate,
                namespace_label=source.namespace_label,
                parameters=source.query_parameters,
            )
            for source in config.metrics_sources
        }
        self._sources = sources
        self._analyses = Analyses(sources, config.settle_seconds, self._queue.add, self._pods_in)
        self._acknowledger = Acknowledger(self._store, self._queue.add)
        self._rollouts = RolloutReconciler(
            self._api,
            self._store,
            self._queue,
            self._acknowledger,
            self._analyses,
            set(sources),
            self._metrics,
            where.pod,
        )
        self._gateways = GatewayReconciler(
            self._api,
            self._store,
            config.gateway_image,
            set(sources),
            config.gateway_cluster_role,
            self._acknowledger.reported,
            where.pod,
            config.gateway_environment,
        )
        self._trouble = asyncio.Event()
        self._listed_at: float | None = None
        self._shell: Shell | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ life

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        admin = await start_admin(
            self._where.bind_address, self._where.port, self._metrics, self._refresh, self._unhealthy, self._unready
        )
        try:
            if await self._or_stop(self._first_lists(), stop):
                self._shell = Shell(self._client, self._config.watch_namespaces, self._deliver, self._metrics)
                self._shell.start()
                await self._analyses.first_contact()
                self._tasks = [
                    asyncio.create_task(self._analyses.run(), name="analyses"),
                    asyncio.create_task(self._keep_listing(), name="lists"),
                ]
                self._workers = [asyncio.create_task(self._work(), name=f"worker {n}") for n in range(WORKERS)]
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
        """Workers finish what they are at: a status without its delivery is made good after a restart, but later."""
        self._queue.close()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=SHUTDOWN_SECONDS)
            for task in late:
                task.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._workers, *self._tasks, return_exceptions=True)
        await self._acknowledger.close()
        if self._shell is not None:
            await self._shell.stop()
        for source in self._sources.values():
            source.close()

    # ------------------------------------------------------------ knowing

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
        if after is None:
            OncePerObject.forget(key)
        if key.kind == "Pod":
            failed = after is not None and failure_of(after) != (failure_of(before) if before is not None else None)
            for item in (before, after):
                gateway = ((item or {}).get("metadata", {}).get("labels") or {}).get(LABEL_GATEWAY)
                if gateway:
                    self._acknowledger.pods_changed(key.namespace, gateway)
                if gateway and failed:
                    for each in rollouts_of(key.namespace, gateway, self._store):
                        self._queue.add(each)
            return
        if key.kind == "PromptGateway" and _uid(before) != _uid(after):
            self._acknowledger.forget_gateway(key.namespace, key.name)
        for each in affected(key, before, after, self._store):
            self._queue.add(each)

    async def _first_lists(self) -> None:
        """Everything must be known before anything is concluded: a rollout that is not listed yet is not gone."""
        pause = RELIST_RETRY_SECONDS[0]
        while True:
            try:
                wanted = {KINDS[kind].plural for kind in WATCHED if KINDS[kind].api_version == API_VERSION}
                missing = wanted - await self._api.served_plurals()
                if not missing:
                    await self._list_all()
                    return
                logger.warning("waiting for the CRDs of %s: apply the chart's, or crds/", ", ".join(sorted(missing)))
            except (ApiException, ApiUnavailable) as error:
                logger.warning("waiting for the API server: %s", _said(error))
            await asyncio.sleep(pause)
            pause = min(RELIST_RETRY_SECONDS[1], pause * 1.5)

    async def _list_all(self) -> int:
        """Returns the number of changes that no watch had reported."""
        corrections = 0
        spaces: list[str | None] = [*self._config.watch_namespaces] or [None]
        for kind in WATCHED:
            for namespace in spaces:
                known = self._store.known(kind, namespace)
                found = self._store.take_list(kind, await self._api.list(kind, namespace), known)
                if found and self._listed_at is not None:
                    self._metrics.missed_events.labels(kind).inc(found)
                corrections += found
        self._listed_at = time.monotonic()
        return corrections

    async def _keep_listing(self) -> None:
        """Lists at long intervals find what a watch never told; after an outage they come at once."""
        pause, failing = RELIST_SECONDS, False
        while True:
            if await self._trouble_within(pause):
                if pause >= RELIST_SECONDS:
                    pause = RELIST_RETRY_SECONDS[0]
                failing = True
                await asyncio.sleep(pause)
            self._trouble.clear()
            try:
                await self._list_all()
            except (ApiException, ApiUnavailable) as error:
                logger.warning("the list of objects failed, trying again: %s", _said(error))
                self._trouble.set()
                pause = min(RELIST_RETRY_SECONDS[1], (pause if failing else RELIST_RETRY_SECONDS[0]) * 1.5)
                continue
            if failing:
                self._queue.hasten()
            for gateway in self._store.all("PromptGateway"):
                # not all of their objects are watched
                self._queue.add(Key("PromptGateway", gateway["metadata"]["namespace"], gateway["metadata"]["name"]))
            pause, failing = RELIST_SECONDS, False

    async def _trouble_within(self, seconds: float) -> bool:
        """False after so long without trouble, or soon while a watch is down."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, WATCHLESS_SECONDS)):
                    await self._trouble.wait()
                return True
            except TimeoutError:
                if self._watches_down():
                    return False
        return False

    # ------------------------------------------------------------ working

    async def _work(self) -> None:
        while (key := await self._queue.get()) is not None:
            started = time.monotonic()
            try:
                await self._reconcile(key)
                self._queue.forget(key)
            except Stale as error:
                logger.debug("%s: planned from an old state, again: %s", key, error)
                self._queue.retry(key)
            except (ApiException, ApiUnavailable) as error:
                if isinstance(error, ApiUnavailable):
                    self._trouble.set()
                elif await self._is_gone(key, error):
                    self._queue.forget(key)
                    continue
                pause = self._queue.retry(key)
                if isinstance(error, ApiException) and error.status == 409:
                    continue  # someone was quicker: that is no failure
                self._failed(key, error)
                logger.warning("%s: %s; again in %.1f s", key, _said(error), pause)
            except Exception as error:  # one object must not stop the others
                pause = self._queue.retry(key)
                self._failed(key, error)
                logger.exception("%s: reconcile failed; again in %.1f s", key, pause)
            finally:
                self._queue.done(key)
                self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)

    async def _is_gone(self, key: Key, error: ApiException) -> bool:
        """A namespace that is being deleted refuses writes before its objects are seen to go."""
        item = self._store.get(*key)
        if error.status not in (403, 404) or item is None:
            return False
        if namespace_is_terminating(error):
            logger.info("%s: its namespace is being deleted", key)
            return True
        try:
            if await self._api.get(*key) is not None:
                return False
        except (ApiException, ApiUnavailable):
            return False
        return self._store.remove(*key, item["metadata"]["uid"])

    def _failed(self, key: Key, error: Exception) -> None:
        self._metrics.reconcile_errors.labels(key.kind, type(error).__name__).inc()

    async def _reconcile(self, key: Key) -> None:
        item = self._store.get(*key)
        if key.kind == "PromptRollout":
            if item is None:
                self._rollouts.forget(key)
                await retire(key, self._api, self._store, self._queue)
            else:
                await self._rollouts.reconcile(key, item)
        elif item is None or item["metadata"].get("deletionTimestamp"):
            return  # owned objects go with their owner
        elif key.kind == "PromptGateway":
            await self._gateways.reconcile(key, item)
        else:
            await reconcile_declaration(key, item, self._api, self._store, self._where.pod)

    # ------------------------------------------------------------ being watched

    def _refresh(self) -> None:
        self._metrics.queue_depth.set(self._queue.depth)
        self._metrics.queue_lag.set(self._queue.lag_seconds)

    def _unhealthy(self) -> str:
        dead = [task.get_name() for task in (*self._tasks, *self._workers) if task.done()]
        if dead:
            return f"ended: {', '.join(dead)}"
        if self._queue.lag_seconds > STUCK_SECONDS:
            return f"the oldest key has waited for {self._queue.lag_seconds:.0f} s"
        if self._listed_at is not None and not self._trouble.is_set():
            age = time.monotonic() - self._listed_at
            dead = [path for path, seconds in self._watches_down().items() if seconds > WATCHES_DEAD_SECONDS]
            if dead and age < 4 * WATCHLESS_SECONDS:
                return f"the API server answers, and these watches keep failing: {first_few(dead, 3)}"
            if age > 4 * RELIST_SECONDS:
                return f"the last complete list is {age:.0f} s old"
        return ""

    def _unready(self) -> str:
        if not self._workers:
            return "objects are not all known yet"
        down = self._watches_down()
        return f"these watches are down: {first_few(down, 3)}" if down else ""

    def _watches_down(self) -> dict[str, float]:
        return self._shell.health.down() if self._shell is not None else {}


def _log_end(task: asyncio.Task[None]) -> None:
    """These tasks never end by themselves before the operator is told to stop."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task %s ended: %r", task.get_name(), error, exc_info=error)


def _uid(item: Object | None) -> str | None:
    return item["metadata"]["uid"] if item is not None else None


def _access(source: MetricsSource) -> SourceAccess:
    basic = source.basic_auth
    return SourceAccess(
        source.headers, source.bearer_token_file, (basic.username, basic.password_file) if basic is not None else None
    )


def _said(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"HTTP {error.status}: {error.reason}"
    return str(error)


async def serve(config: Config, where: Surroundings) -> None:
    """The whole process: until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with await connect() as client:
        await Operator(config, where, client).run(stop)
