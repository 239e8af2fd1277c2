"""Complete lists of all kinds: once before anything is concluded, then at long intervals, and soon after an outage."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from promptrollout.api.names import API_VERSION
from promptrollout.cluster import ApiException, ApiUnavailable
from promptrollout.operator.cluster.api import KINDS, WATCHED, Api, error_text
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.store import Store

logger = logging.getLogger(__name__)

RELIST_SECONDS = 300.0
RELIST_RETRY_SECONDS = (1.0, 10.0)
WATCHLESS_SECONDS = 10.0
"""The interval of lists while a watch is down."""


class Lists:
    """`watches_down`: seconds that each watch has been down, by path. `listed`: called after each complete list but the
    first, with whether the API server had failed before it."""

    def __init__(
        self,
        api: Api,
        store: Store,
        metrics: Metrics,
        namespaces: Collection[str],
        watches_down: Callable[[], Mapping[str, float]],
        listed: Callable[[bool], None],
    ) -> None:
        self._api = api
        self._store = store
        self._metrics = metrics
        self._spaces: list[str | None] = [*namespaces] or [None]
        self._watches_down = watches_down
        self._listed = listed
        self._failed = asyncio.Event()
        self.listed_at: float | None = None
        """When the last list was complete, on the monotonic clock."""

    @property
    def api_server_fails(self) -> bool:
        """A call failed since the last complete list."""
        return self._failed.is_set()

    def api_server_failed(self) -> None:
        """List again as soon as it answers: watches may have missed changes."""
        self._failed.set()

    async def first(self) -> None:
        """Wait for the CRDs and list all kinds. Before that a rollout that is not known may still exist."""
        pause = RELIST_RETRY_SECONDS[0]
        while True:
            try:
                expected = {KINDS[kind].plural for kind in WATCHED if KINDS[kind].api_version == API_VERSION}
                missing = expected - await self._api.served_plurals()
                if not missing:
                    await self.list_all()
                    return
                logger.warning("waiting for the CRDs of %s: apply the chart's, or crds/", ", ".join(sorted(missing)))
            except (ApiException, ApiUnavailable) as error:
                logger.warning("waiting for the API server: %s", error_text(error))
            await asyncio.sleep(pause)
            pause = min(RELIST_RETRY_SECONDS[1], pause * 1.5)

    async def list_all(self) -> None:
        """List all kinds in all watched namespaces into the store, and count what no watch had reported."""
        for kind in WATCHED:
            for namespace in self._spaces:
                known = self._store.known(kind, namespace)
                missed = self._store.replace_list(kind, await self._api.list(kind, namespace), known)
                if missed and self.listed_at is not None:
                    self._metrics.missed_events.labels(kind).inc(missed)
        self.listed_at = time.monotonic()

    async def keep(self) -> None:
        """List for ever."""
        pause, failing = RELIST_SECONDS, False
        while True:
            if await self._failed_within(pause):
                if pause >= RELIST_SECONDS:
                    pause = RELIST_RETRY_SECONDS[0]
                failing = True
                await asyncio.sleep(pause)
            self._failed.clear()
            try:
                await self.list_all()
            except (ApiException, ApiUnavailable) as error:
                logger.warning("listing objects failed, and is tried again: %s", error_text(error))
                self._failed.set()
                pause = min(RELIST_RETRY_SECONDS[1], (pause if failing else RELIST_RETRY_SECONDS[0]) * 1.5)
                continue
            self._listed(failing)
            pause, failing = RELIST_SECONDS, False

    async def _failed_within(self, seconds: float) -> bool:
        """False after so long without a failure, or soon while a watch is down."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, WATCHLESS_SECONDS)):
                    await self._failed.wait()
                return True
            except TimeoutError:
                if self._watches_down():
                    return False
        return False
