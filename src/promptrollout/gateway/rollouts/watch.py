"""Watch the configuration: first the disk, then the API server's deliveries, signing keys and emergency overrides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.api.names import LABEL_GATEWAY, OVERRIDE_ARM, OVERRIDES_NAME
from promptrollout.gateway.rollouts.configuration import Target
from promptrollout.gateway.rollouts.provider_pool import ProviderPool
from promptrollout.gateway.rollouts.registry import Registry

logger = logging.getLogger(__name__)

API_PATIENCE_SECONDS: Final = 5.0
"""If the first lists take longer, the configuration on the disk is served."""
TICK_SECONDS: Final = 1.0


class ConfigurationWatch:
    """Keeps the registry in step with the API server. Runs for the life of the process."""

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        gateway: str,
        registry: Registry,
        providers: ProviderPool,
        every_second: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`every_second` reads other files that rotate."""
        self._client = client
        self._namespace = namespace
        self._gateway = gateway
        self._registry = registry
        self._providers = providers
        self._every_second = every_second
        self._overrides_listed = self._overrides_in_force = False
        self._served_from_disk = False
        self._loaded_at: float | None = None
        self._warned_no_keys = False
        self.api_contact_at: float | None = None
        """On the monotonic clock: when the API server last answered."""

    @property
    def ready(self) -> bool:
        """The first lists are in service as far as they can be, and no key is waited for; or the copy on the disk is in
        service, because no API server answers."""
        listed = self._registry.loaded and self._overrides_in_force and not self._registry.waits_for_keys
        return (listed and self._can_sign) or self._served_from_disk

    @property
    def _can_sign(self) -> bool:
        """The keys of response ids are here. They are waited for only briefly: where this pod may not read them, it
        reports that to the operator, which puts keys into the deliveries if that lasts."""
        waited = 0.0 if self._loaded_at is None else time.monotonic() - self._loaded_at
        return self._registry.signing.listed or waited >= API_PATIENCE_SECONDS

    async def run(self) -> None:
        """Load, watch, refresh keys, probe providers. Ends by cancellation only."""
        on_disk = await self._registry.load_from_disk()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever("deliveries", self._watch_deliveries))
            group.create_task(self._forever("overrides", self._watch_overrides))
            group.create_task(self._forever("signing keys", self._watch_signing_keys))
            group.create_task(self._forever("tick", self._tick))
            group.create_task(self._forever("probes", self._probe))
            if on_disk:
                group.create_task(self._serve_from_disk_alone(on_disk))

    async def _forever(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """An error of ours with one object must not end the watch: it is logged, and the watch starts again."""
        while True:
            try:
                await step()
            except Exception:
                logger.exception("watching %s failed: starting again", what)
            await asyncio.sleep(TICK_SECONDS)

    async def _watch_deliveries(self) -> None:
        listed: set[str] = set()
        path = cluster.custom_path("promptdeliveries", self._namespace)
        selector = f"{LABEL_GATEWAY}={self._gateway}"
        async with aclosing(
            cluster.watch(self._client, path, label_selector=selector, contact=self._record_contact)
        ) as events:
            async for kind, item in events:
                if kind == "SYNCED":
                    self._registry.listed(listed)
                    self._loaded_at = self._loaded_at or time.monotonic()
                    continue
                name = item["metadata"]["name"]
                if kind == "DELETED":
                    listed.discard(name)
                    self._registry.remove(name)
                else:
                    listed.add(name)
                    if (item.get("status") or {}).get("acknowledged"):
                        self._registry.problems.confirmed.add(name)
                    await self._registry.apply(name, item.get("spec") or {})

    async def _watch_signing_keys(self) -> None:
        path = cluster.custom_path("promptsigningkeys", self._namespace)
        selector = f"{LABEL_GATEWAY}={self._gateway}"
        watch = cluster.watch(
            self._client, path, label_selector=selector, contact=self._record_contact, refused=self._keys_refused
        )
        async with aclosing(watch) as events:
            async for kind, item in events:
                if kind == "SYNCED":
                    self._registry.signing.listed, self._registry.signing.refused = True, False
                elif kind != "DELETED":
                    await self._registry.set_signing_key(item["metadata"]["name"], item.get("spec") or {})

    def _keys_refused(self, error: cluster.ApiException) -> None:
        """A server that fails or is slow does not mean that this pod may not read them."""
        if error.status in (403, 404):
            self._registry.signing.refused = True

    async def _watch_overrides(self) -> None:
        rollouts: set[str] = set()
        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        # the pod may read only this ConfigMap
        selector = f"metadata.name={OVERRIDES_NAME}"
        async with aclosing(
            cluster.watch(self._client, path, field_selector=selector, contact=self._record_contact)
        ) as events:
            async for kind, item in events:
                if kind == "SYNCED":
                    self._overrides_listed = True
                else:
                    rollouts = set() if kind == "DELETED" else _overridden(item)
                if self._overrides_listed:
                    # the overrides on the disk stay in force until the first list is complete
                    await self._registry.set_overrides(rollouts)
                    self._overrides_in_force = True

    async def _tick(self) -> None:
        """Refresh keys, forget rollouts whose time is over, close unused connections."""
        for problem in self._providers.refresh_files():
            logger.warning("%s; the last valid one stays in use", problem)
        if self._registry.signing.refused and not self._warned_no_keys:
            self._warned_no_keys = True
            logger.warning(
                "cannot read PromptSigningKeys: the gateway's Role needs get, list and watch on promptsigningkeys"
            )
        if self._every_second is not None:
            await self._every_second()
        await self._registry.sweep()
        await self._providers.close_unused({id(target.provider) for target in self._targets()}, time.monotonic())

    async def _probe(self) -> None:
        """Probe providers that may be reachable again. Apart from the tick, since a silent one takes long."""
        await self._providers.probe(self._targets(), time.monotonic())

    def _targets(self) -> list[Target]:
        arms = [arm for rollout in self._registry.all() for arm in (rollout.stable, rollout.canary) if arm]
        return [target for arm in arms for target in arm.targets]

    async def _serve_from_disk_alone(self, count: int) -> None:
        """Become ready with the copy on the disk if the API server stops answering before the first lists are
        complete."""
        began = time.monotonic()
        while not self.ready:
            await asyncio.sleep(API_PATIENCE_SECONDS / 10)
            silent_seconds = time.monotonic() - (self.api_contact_at or began)
            if silent_seconds >= API_PATIENCE_SECONDS and not self.ready:
                logger.warning(
                    "the API server has not answered for %.0f s: serving %d rollouts from disk", silent_seconds, count
                )
                self._served_from_disk = True

    def _record_contact(self) -> None:
        self.api_contact_at = time.monotonic()


def _overridden(item: cluster.Object) -> set[str]:
    """The rollouts that the ConfigMap sends to stable."""
    rollouts: set[str] = set()
    for rollout, arm in (item.get("data") or {}).items():
        if arm == OVERRIDE_ARM:
            rollouts.add(rollout)
        else:
            logger.error(
                "ConfigMap %s: data.%s is %r and is ignored: the only valid value is %r",
                OVERRIDES_NAME,
                rollout,
                arm,
                OVERRIDE_ARM,
            )
    return rollouts
