"""Real gateway processes under load: no request fails while pods roll, configurations swap or break, disks corrupt."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import yaml

from promptrollout.api.names import ENV_BIND_ADDRESS
from promptrollout.api.pod_settings import PORT_ADMIN, PORT_HTTP, variable
from promptrollout.sandbox.model.behaviour import parse_behaviours
from promptrollout.sandbox.model.server import SimulatedModel
from tests.unit.gateway.kit import CANARY, arm, delivery, request
from tests.unit.gateway.live import listening
from tests.unit.gateway.rollouts.test_watch import CONFIGMAPS, DELIVERIES, ApiServer

# each process has its ports on an address of its own
_ADDRESSES = (f"127.{random.randrange(20, 250)}.{random.randrange(1, 250)}.{n}" for n in itertools.count(1))


class Pod:
    """One gateway, as its container starts it."""

    def __init__(self, folder: Path, api: ApiServer, state: str) -> None:
        self.address = next(_ADDRESSES)
        self.state = folder / state
        self._log = folder / f"{self.address}.log"
        self._kubeconfig = folder / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": api.url}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
        kind = {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
        self._kubeconfig.write_text(yaml.safe_dump({**kind, **config}))

    async def __aenter__(self) -> Self:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES")}
        environment = {
            **inherited,
            "KUBECONFIG": str(self._kubeconfig),
            "PROMPTROLLOUT_GATEWAY": "default",
            "POD_NAMESPACE": "ns",
            "POD_NAME": self.address,
            "PROMPTROLLOUT_STATE_DIR": str(self.state),
            "PROMPTROLLOUT_DRAIN_SECONDS": "5",  # callers keep idle connections, for which a pod waits half of it
            ENV_BIND_ADDRESS: self.address,
            variable("allowed_provider_networks"): "127.0.0.0/8",
        }
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "promptrollout", "gateway", env=environment, stdout=log, stderr=log
            )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ready(self, client: aiohttp.ClientSession) -> bool:
        try:
            async with client.get(f"http://{self.address}:{PORT_ADMIN}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def until_ready(self, client: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(30):
            while not await self.ready(client):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def reports(self, client: aiohttp.ClientSession) -> dict[str, Any]:
        async with client.get(f"http://{self.address}:{PORT_ADMIN}/rollouts") as answer:
            return {one["name"]: one for one in (await answer.json())["rollouts"]}


class Traffic:
    """Callers who never try again, half of them streaming, sent to the pods that are ready as a Service would."""

    def __init__(self, client: aiohttp.ClientSession, pods: list[Pod], rollout: str = "support") -> None:
        self._client = client
        self._rollout = rollout
        self._pods = pods
        self.outcomes: Counter[str] = Counter()
        self.by_pod: Counter[str] = Counter()
        self._endpoints: list[Pod] = list(pods)
        self._ending = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(24)]
        self._tasks.append(asyncio.create_task(self._watch()))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _watch(self) -> None:
        """As late as endpoints are in a cluster."""
        while not self._ending:
            ready = [pod for pod in self._pods if await pod.ready(self._client)]
            self._endpoints = ready or self._endpoints
            await asyncio.sleep(0.3)

    async def _ask(self, number: int) -> None:
        for turn in itertools.count():
            if self._ending:
                return
            pod = self._endpoints[(turn + number) % len(self._endpoints)]
            streaming = turn % 2 == 0
            body = request(model=self._rollout, user=f"user-{number}-{turn}", stream=streaming)
            url = f"http://{pod.address}:{PORT_HTTP}/v1/chat/completions"
            try:
                async with self._client.post(url, json=body) as answer:
                    text = await answer.text()
                whole = text.rstrip().endswith("data: [DONE]") if streaming else '"finish_reason"' in text
                self.outcomes["answered" if answer.status == 200 and whole else f"{answer.status} {text[:200]}"] += 1
            except (aiohttp.ClientError, OSError) as error:
                self.outcomes[f"{type(error).__name__}: {error}"] += 1
            self.by_pod[pod.address] += 1
            await asyncio.sleep(0.01)


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as running:
        yield running


@pytest.fixture
async def model() -> AsyncIterator[str]:
    rules = [{"name": "slow", "latency": {"fixedMs": 120}}]
    async with listening(SimulatedModel(seed=1, behaviours=parse_behaviours(rules))) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


@asynccontextmanager
async def pods(folder: Path, api: ApiServer, client: aiohttp.ClientSession, *states: str) -> AsyncIterator[list[Pod]]:
    started = [Pod(folder, api, state) for state in states]
    try:
        await asyncio.gather(*(pod.__aenter__() for pod in started))
        await asyncio.gather(*(pod.until_ready(client) for pod in started))
        yield started
    finally:
        await asyncio.gather(*(pod.__aexit__() for pod in started))


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def outage(api: ApiServer) -> None:
    """Every connection to the API server breaks, and none is taken."""
    api.down = True
    server = api._runner.server
    assert server is not None
    for connection in list(server.connections):
        if connection.transport is not None:
            connection.transport.abort()


async def test_pods_roll_under_load(tmp_path: Path, api: ApiServer, model: str, client: aiohttp.ClientSession) -> None:
    api.put(DELIVERIES, "support", spec=delivery(1, stable=arm(url=model)))
    async with pods(tmp_path, api, client, "a", "b") as (old, other):
        running = [old, other]
        async with Traffic(client, running) as traffic:
            await asyncio.sleep(0.7)
            async with pods(tmp_path, api, client, "c") as (new,):
                running.append(new)
                await asyncio.sleep(0.5)
                old.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(old.process.wait(), 20) == 0
                await eventually(lambda: _true(traffic.by_pod[new.address] > 20))
                traffic._ending = True
                await asyncio.gather(*traffic._tasks)
        assert set(traffic.outcomes) == {"answered"}, traffic.outcomes
        assert min(traffic.by_pod.values()) > 10
        assert "requests in flight" in old.log


async def test_configurations_change_and_break_under_load(
    tmp_path: Path, api: ApiServer, model: str, client: aiohttp.ClientSession
) -> None:
    """Weights, versions, templates that do not compile, specs that are none, overrides, an outage, a deletion."""

    def spec(sequence: int, weight: int, **canary: Any) -> dict[str, Any]:
        return delivery(sequence, weight=weight, stable=arm(url=model), canary=arm(CANARY, model, **canary))

    broken = [{"role": "system", "content": "{{ broken"}]
    api.put(DELIVERIES, "support", spec=spec(1, 0))
    async with pods(tmp_path, api, client, "a") as (pod,), Traffic(client, [pod]) as traffic:

        async def serves(sequence: int) -> bool:
            return bool((await pod.reports(client))["support"]["sequence"] == sequence)

        for sequence, weight in ((2, 5), (3, 50), (4, 100), (5, 0), (6, 30)):
            api.put(DELIVERIES, "support", spec=spec(sequence, weight))
            await eventually(lambda n=sequence: serves(n))  # type: ignore[misc]
        api.put(CONFIGMAPS, "promptrollout-overrides", data={"support": "stable"})
        api.put(DELIVERIES, "support", spec=spec(7, 60, messages=broken))
        await eventually(lambda: _reports(pod, client, "problemSequence", 7))
        api.put(DELIVERIES, "support", spec={**spec(8, 60), "stable": arm(url=model, messages=broken)})
        await eventually(lambda: _reports(pod, client, "problemSequence", 8))
        for nonsense in ({}, {"sequence": "x"}, {**spec(9, 60), "formatVersion": 99}, spec(2, 100)):
            api.put(DELIVERIES, "support", spec=nonsense)
        api.delete(CONFIGMAPS, "promptrollout-overrides")
        await outage(api)
        await asyncio.sleep(1)
        api.put(DELIVERIES, "support", spec=spec(10, 40))
        api.down = False
        await eventually(lambda: serves(10))
        api.delete(DELIVERIES, "support")  # served for five more minutes
        await asyncio.sleep(0.5)
        api.put(DELIVERIES, "support", spec=spec(11, 40))
        await eventually(lambda: serves(11))
    assert set(traffic.outcomes) == {"answered"}, traffic.outcomes
    assert traffic.outcomes["answered"] > 100


async def test_a_corrupt_disk_costs_no_request_and_a_restart_only_what_was_corrupt(
    tmp_path: Path, api: ApiServer, model: str, client: aiohttp.ClientSession
) -> None:
    for name in ("support", "intact"):
        api.put(DELIVERIES, name, spec=delivery(1, stable=arm(url=model)))
    async with pods(tmp_path, api, client, "a") as (pod,):
        files = sorted((pod.state / "deliveries").iterdir())
        assert [file.name for file in files] == ["intact.json", "support.json"]
        async with Traffic(client, [pod]) as traffic:
            files[1].write_bytes(files[1].read_bytes()[:-20])
            (pod.state / "overrides").write_bytes(b"\x00\xff")
            await asyncio.sleep(0.5)
        pod.process.kill()
        await pod.process.wait()
    await outage(api)
    async with pods(tmp_path, api, client, "a") as (again,):
        assert set(await again.reports(client)) == {"intact"}
        async with Traffic(client, [again], "intact") as from_disk:
            await asyncio.sleep(0.5)
            api.down = False

            async def whole() -> bool:
                return set(await again.reports(client)) == {"intact", "support"}

            await eventually(whole)
        async with Traffic(client, [again]) as back:
            await asyncio.sleep(0.3)
        assert "support.json is damaged" in again.log
    for one in (traffic, from_disk, back):
        assert set(one.outcomes) == {"answered"}, one.outcomes


async def _true(value: bool) -> bool:
    return value


async def _reports(pod: Pod, client: aiohttp.ClientSession, field: str, value: Any) -> bool:
    return bool((await pod.reports(client))["support"].get(field) == value)
