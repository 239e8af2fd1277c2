"""Workers: reconcile the keys of the queue, and try again with backoff what fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from promptrollout.cluster import ApiException, ApiUnavailable, namespace_is_terminating
from promptrollout.operator.cluster.api import Api, Stale, error_text
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store

logger = logging.getLogger(__name__)


class Workers:
    """`reconcile` raises ApiException, ApiUnavailable and Stale; each means: again, from the start. `unavailable` is
    called when the API server did not answer."""

    def __init__(
        self,
        queue: WorkQueue,
        reconcile: Callable[[Key], Awaitable[None]],
        unavailable: Callable[[], None],
        api: Api,
        store: Store,
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._unavailable = unavailable
        self._api = api
        self._store = store
        self._metrics = metrics

    async def work(self) -> None:
        """One worker, until the queue is closed."""
        while (key := await self._queue.get()) is not None:
            started = time.monotonic()
            try:
                await self._reconcile(key)
                self._queue.forget(key)
            except Stale as error:
                logger.debug("%s: planned from an outdated object, planned again: %s", key, error)
                self._queue.retry(key)
            except (ApiException, ApiUnavailable) as error:
                await self._api_error(key, error)
            except Exception as error:  # one object must not stop the others
                pause = self._queue.retry(key)
                self._count(key, error)
                logger.exception("%s: reconcile failed, retry in %.1f s", key, pause)
            finally:
                self._queue.done(key)
                self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)

    async def _api_error(self, key: Key, error: ApiException | ApiUnavailable) -> None:
        if isinstance(error, ApiUnavailable):
            self._unavailable()
        elif await self._is_gone(key, error):
            self._queue.forget(key)
            return
        pause = self._queue.retry(key)
        if isinstance(error, ApiException) and error.status == 409:
            return  # another client wrote the object first: no failure
        self._count(key, error)
        logger.warning("%s: %s, retry in %.1f s", key, error_text(error), pause)

    async def _is_gone(self, key: Key, error: ApiException) -> bool:
        """A namespace that is being deleted refuses writes before the watch reports its objects as deleted."""
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

    def _count(self, key: Key, error: Exception) -> None:
        self._metrics.reconcile_errors.labels(key.kind, type(error).__name__).inc()
