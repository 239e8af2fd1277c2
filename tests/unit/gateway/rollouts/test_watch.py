"""Where configuration comes from, against a small API server on loopback: lists, changes, overrides, outages."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import orjson
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from promptrollout import cluster
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.rollouts import watch as source_module
from promptrollout.gateway.rollouts.watch import ConfigurationWatch
from tests.unit.gateway.kit import arm, delivery
from tests.unit.gateway.rollouts.test_signing_keys import signing_key

DELIVERIES = "/apis/promptrollout.dev/v1alpha1/namespaces/ns/promptdeliveries"
SIGNING_KEYS = "/apis/promptrollout.dev/v1alpha1/namespaces/ns/promptsigningkeys"
CONFIGMAPS = "/api/v1/namespaces/ns/configmaps"
COLLECTIONS = (DELIVERIES, CONFIGMAPS, SIGNING_KEYS)


class ApiServer:
    """Three collections that can be listed and watched; `down` drops every connection."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {path: {} for path in COLLECTIONS}
        self.selectors: dict[str, str] = {}
        self.down = False
        self.answers: dict[str, int] = {}
        """By path: the status of lists that are refused; 0 for those that are not answered."""
        self._version = 1
        self._history: dict[str, list[tuple[int, bytes]]] = {path: [] for path in COLLECTIONS}
        self._watchers: dict[str, set[asyncio.Queue[bytes]]] = {path: set() for path in COLLECTIONS}

    async def __aenter__(self) -> Self:
        app = web.Application()
        for path in self.objects:
            app.router.add_get(path, self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()

    def put(self, path: str, name: str, **content: Any) -> None:
        self._version += 1
        kind = "MODIFIED" if name in self.objects[path] else "ADDED"
        metadata = {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(self._version),
            "labels": content.pop("labels", {}),
        }
        self.objects[path][name] = {"metadata": metadata, **content}
        self._tell(path, kind, self.objects[path][name])

    def delete(self, path: str, name: str) -> None:
        self._version += 1
        gone = self.objects[path].pop(name)
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell(path, "DELETED", gone)

    def _tell(self, path: str, kind: str, item: dict[str, Any]) -> None:
        line = orjson.dumps({"type": kind, "object": item}) + b"\n"
        self._history[path].append((self._version, line))
        for queue in self._watchers[path]:
            queue.put_nowait(line)

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        if self.down:
            assert incoming.transport is not None
            incoming.transport.abort()
        self.selectors[incoming.path] = incoming.query.get("labelSelector") or incoming.query.get("fieldSelector", "")
        if "watch" not in incoming.query and (status := self.answers.get(incoming.path)) is not None:
            if not status:
                await asyncio.Event().wait()
            return web.json_response({"kind": "Status", "message": "refused"}, status=status)
        if "watch" not in incoming.query:
            items = list(self.objects[incoming.path].values())
            return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})
        response = web.StreamResponse()
        await response.prepare(incoming)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        for version, line in self._history[incoming.path]:
            if version > int(incoming.query["resourceVersion"]):
                queue.put_nowait(line)
        self._watchers[incoming.path].add(queue)
        try:
            while True:
                await response.write(await queue.get())
        finally:
            self._watchers[incoming.path].discard(queue)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "RETRY_FIRST_SECONDS", 0.005)
    monkeypatch.setattr(cluster, "RETRY_MAX_SECONDS", 0.01)
    monkeypatch.setattr(source_module, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(source_module, "API_PATIENCE_SECONDS", 0.05)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as running:
        yield running


class Running:
    """A gateway with its source at work."""

    def __init__(self, gateway: Gateway, server: ApiServer) -> None:
        self.gateway = gateway
        self._client = ApiClient(Configuration(host=server.url))
        self.source = gateway.watch = ConfigurationWatch(
            self._client, "ns", "default", gateway.registry, gateway.providers
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.source.run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.close()
        await self.gateway.providers.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def sequences(self) -> dict[str, int]:
        return {report.name: report.sequence for report in self.gateway.reporter.report().rollouts}


async def test_ready_once_everything_of_the_first_lists_is_in_service(gateway: Gateway, server: ApiServer) -> None:
    server.put(DELIVERIES, "a", spec=delivery(3))
    server.put(DELIVERIES, "b", spec=delivery(4))
    async with Running(gateway, server) as running:
        assert not gateway.state().ready
        await running.until(lambda: gateway.state().ready)
        assert running.sequences() == {"a": 3, "b": 4}
    assert server.selectors[DELIVERIES] == "promptrollout.dev/gateway=default"
    assert server.selectors[CONFIGMAPS] == "metadata.name=promptrollout-overrides"


@pytest.mark.parametrize(("sequence", "status"), [(3, {}), (1, {"sequence": 1, "acknowledged": 2, "total": 2})])
async def test_a_new_pod_is_not_ready_before_the_key_of_what_others_serve_is_here(
    sequence: int, status: dict[str, Any], gateway: Gateway, server: ApiServer, tmp_path: Path
) -> None:
    before = {"stable": {"version": "a-1", "digest": "sha256:" + "a" * 64}}
    server.put(
        DELIVERIES, "a", spec=delivery(sequence, stable=arm(provider_needsKey=True), memory=before), status=status
    )
    server.put(DELIVERIES, "b", spec=delivery(4))
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.registry.loaded and running.source._overrides_listed)
        assert not gateway.state().ready
        key = tmp_path / "keys" / "openai" / "api-key"
        key.parent.mkdir(parents=True)
        key.write_text("secret\n")
        await running.until(lambda: gateway.state().ready)
        assert running.sequences() == {"a": sequence, "b": 4}


async def test_a_probe_that_stays_silent_delays_nothing_else(gateway: Gateway, server: ApiServer) -> None:
    """A tick that waited for it would read no key that changed meanwhile."""
    asked, ticks = asyncio.Event(), 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        try:
            await reader.read()
        finally:  # the test may end first
            writer.close()

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    provider = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}/v1"
    running = Running(gateway, server)
    running.source._every_second = tick
    server.put(DELIVERIES, "a", spec=delivery(1, stable=arm(url=url)))
    async with provider, running:
        await running.until(lambda: gateway.state().ready)
        serving = gateway.registry.find("a")
        assert serving is not None
        for _ in range(3):
            serving.stable.own.circuit.record_unreachable()
        async with asyncio.timeout(5):
            await asked.wait()
        before = ticks
        async with asyncio.timeout(2):
            await running.until(lambda: ticks > before + 5)


async def test_changes_arrive_and_deletions_begin_retirement(gateway: Gateway, server: ApiServer) -> None:
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready)
        server.put(DELIVERIES, "a", spec=delivery(1))
        await running.until(lambda: running.sequences() == {"a": 1})
        server.put(DELIVERIES, "a", spec=delivery(2))
        await running.until(lambda: running.sequences() == {"a": 2})
        server.delete(DELIVERIES, "a")
        serving = gateway.registry.find("a")
        assert serving is not None
        await running.until(lambda: serving.gone_at is not None)
        assert gateway.registry.find("a") is serving, "for five more minutes"


async def test_the_emergency_override_is_followed_and_lifted(gateway: Gateway, server: ApiServer) -> None:
    server.put(DELIVERIES, "a", spec=delivery(1))
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready)

        def overridden() -> bool:
            return gateway.reporter.report().rollouts[0].overridden

        server.put(CONFIGMAPS, "promptrollout-overrides", data={"a": "stable", "b": "canary"})
        await running.until(overridden)
        server.put(CONFIGMAPS, "promptrollout-overrides", data={"b": "stable"})
        await running.until(lambda: not overridden())
        server.put(CONFIGMAPS, "promptrollout-overrides", data={"a": "stable"})
        await running.until(overridden)
        server.delete(CONFIGMAPS, "promptrollout-overrides")
        await running.until(lambda: not overridden())


async def test_in_an_outage_a_pod_that_restarts_serves_from_its_disk(gateway: Gateway, server: ApiServer) -> None:
    server.put(DELIVERIES, "a", spec=delivery(5))
    server.put(CONFIGMAPS, "promptrollout-overrides", data={"a": "stable"})
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready)
    server.down = True
    again = Gateway(dataclasses.replace(gateway.settings))
    async with Running(again, server) as running:
        await running.until(lambda: again.state().ready)
        (report,) = again.reporter.report().rollouts
        assert (report.sequence, report.overridden, again.registry.loaded) == (5, True, False)
        # it comes back, and the rollout was deleted meanwhile
        server.objects[DELIVERIES].clear()
        server.objects[CONFIGMAPS].clear()
        server.down = False
        await running.until(lambda: again.registry.loaded)
        serving = again.registry.find("a")
        assert serving is not None
        assert serving.gone_at is not None
        await running.until(lambda: not serving.overridden)


async def test_in_an_outage_a_new_pod_has_nothing_and_is_not_ready(gateway: Gateway, server: ApiServer) -> None:
    server.down = True
    async with Running(gateway, server) as running:
        await asyncio.sleep(0.1)
        assert not gateway.state().ready
        server.down = False
        await running.until(lambda: gateway.state().ready)


async def test_one_object_that_nobody_can_read_does_not_stop_the_others(gateway: Gateway, server: ApiServer) -> None:
    server.put(DELIVERIES, "a", spec=None)
    server.put(DELIVERIES, "b", spec={"sequence": "many", "rolloutUID": 5})
    server.put(DELIVERIES, "c", spec=delivery(1))
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready)
        assert running.sequences() == {"a": 0, "b": 0, "c": 1}


async def test_a_hundred_rollouts_are_loaded_before_the_pod_is_ready(gateway: Gateway, server: ApiServer) -> None:
    for n in range(100):
        server.put(DELIVERIES, f"r{n}", spec=delivery(1))
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready)
        assert len(running.sequences()) == 100


@pytest.mark.parametrize(("status", "said"), [(403, None), (404, None), (500, False), (429, False), (0, False)])
async def test_only_a_pod_whose_list_of_signing_keys_is_refused_says_that_it_cannot_read_them(
    status: int, said: bool | None, gateway: Gateway, server: ApiServer
) -> None:
    """The operator would give the others a key that people read, and votes under it count."""
    server.put(DELIVERIES, "a", spec=delivery(1))
    server.put(SIGNING_KEYS, "a", spec=signing_key())
    server.answers[SIGNING_KEYS] = status

    def says() -> bool | None:
        return gateway.reporter.report().rollouts[0].signing_key

    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready and SIGNING_KEYS in server.selectors)
        await running.until(lambda: says() is said)
        del server.answers[SIGNING_KEYS]
        if status:
            await running.until(lambda: says() is True)


async def test_a_pod_that_is_served_from_disk_has_its_keys_before_they_are_listed_again(
    gateway: Gateway, server: ApiServer
) -> None:
    server.put(DELIVERIES, "a", spec=delivery(1))
    server.put(SIGNING_KEYS, "a", spec=signing_key())
    async with Running(gateway, server) as running:
        await running.until(lambda: gateway.state().ready)
    server.answers[SIGNING_KEYS] = 0
    again = Gateway(dataclasses.replace(gateway.settings))
    async with Running(again, server) as running:
        await running.until(lambda: again.registry.loaded)
        assert again.reporter.report().rollouts[0].signing_key
