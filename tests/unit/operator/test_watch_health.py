"""Whether the watches are up: of kopf itself, against an API server on a port that refuses them or does not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from promptrollout.operator import app
from promptrollout.operator.app import Operator
from promptrollout.operator.cluster import lists
from promptrollout.operator.cluster.api import KINDS, WATCHED
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.watch_health import GRACE_SECONDS, WatchHealth
from promptrollout.operator.cluster.watches import Watches
from promptrollout.operator.config import Config, pod_environment

PATH = "/apis/promptrollout.dev/v1alpha1/promptrollouts"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_watch_that_was_never_up_is_down() -> None:
    assert WatchHealth([PATH], Clock()).down() == {PATH: GRACE_SECONDS}


def test_a_watch_that_is_asked_for_again_counts_as_up_for_a_moment() -> None:
    clock = Clock()
    health = WatchHealth([PATH], clock)
    health.asked(PATH)
    health.answered(PATH, 200)
    assert health.down() == {}
    health.asked(PATH)
    clock.now += GRACE_SECONDS / 2
    assert health.down() == {}
    clock.now += GRACE_SECONDS
    health.asked(PATH)  # tried again: it has been down all the time
    assert health.down() == {PATH: 1.5 * GRACE_SECONDS}
    health.answered(PATH, 403)
    assert health.down() == {PATH: 1.5 * GRACE_SECONDS}
    health.answered(PATH, 200)
    assert health.down() == {}


def test_all_watches_end_with_the_shell() -> None:
    clock = Clock()
    health = WatchHealth([PATH, "/api/v1/pods"], clock)
    health.answered(PATH, 200)
    health.answered("/api/v1/pods", 200)
    health.ended()
    clock.now += 10
    assert health.down() == {PATH: 10.0, "/api/v1/pods": 10.0}


# ---------------------------------------------------------------- kopf itself


def discovery() -> dict[str, Any]:
    """What kopf asks for before it watches: groups, versions and their kinds, a few of its own among them."""
    found: dict[str, list[tuple[str, str]]] = {
        "v1": [("namespaces", "Namespace"), ("events", "Event")],
        "apiextensions.k8s.io/v1": [("customresourcedefinitions", "CustomResourceDefinition")],
    }
    for kind in (KINDS[name] for name in WATCHED):
        found.setdefault(kind.api_version, []).append((kind.plural, kind.name))
    groups = []
    answers: dict[str, Any] = {"/api": {"versions": ["v1"]}, "/apis": {"groups": groups}}
    for version, kinds in found.items():
        if "/" in version:
            this = {"groupVersion": version, "version": version.rpartition("/")[2]}
            groups.append({"name": version.partition("/")[0], "versions": [this], "preferredVersion": this})
        answers[f"/apis/{version}" if "/" in version else f"/api/{version}"] = {
            "resources": [
                {"name": plural, "singularName": "", "kind": kind, "namespaced": True, "verbs": ["list", "watch"]}
                for plural, kind in kinds
            ]
        }
    return answers


DISCOVERY = discovery()


class ApiServer:
    """Lists of nothing, and watches that stay open; `refused`: every watch is answered 403."""

    def __init__(self) -> None:
        self.refused = False
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            if self.refused:
                return web.json_response({"kind": "Status", "code": 403, "reason": "Forbidden"}, status=403)
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.Event().wait()
        if request.path in DISCOVERY:
            return web.json_response(DISCOVERY[request.path])
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    api = ApiServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    yield api
    await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def the_watches(server: ApiServer) -> Watches:
    client = ApiClient(Configuration(host=server.url))
    return Watches(client, [], lambda *_: None, Metrics())


async def test_the_watches_come_up_without_a_user_name_or_home(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an image the UID has no passwd entry: kopf's own identity asked for its name, and nothing was ever watched."""

    def no_entry(_uid: int) -> Any:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    watches = the_watches(server)
    assert len(watches.health.down()) == len(WATCHED)
    watches.start()
    try:
        await until(lambda: not watches.health.down())
    finally:
        await watches.stop()


async def test_refused_watches_are_down_until_they_are_answered(server: ApiServer) -> None:
    server.refused = True
    asked: list[str] = []
    watches = the_watches(server)
    watches.health.answered = lambda path, status: (  # type: ignore[method-assign]
        asked.append(f"{status}"),
        WatchHealth.answered(watches.health, path, status),
    )[1]
    watches.start()
    try:
        await until(lambda: "403" in asked)
        assert len(watches.health.down()) == len(WATCHED)
        server.refused = False
        await until(lambda: not watches.health.down())
    finally:
        await watches.stop()


# ---------------------------------------------------------------- the probes


def an_operator(health: WatchHealth) -> Operator:
    operator = Operator(Config(), pod_environment({}), client=None)  # type: ignore[arg-type]
    operator._watches = SimpleNamespace(health=health)  # type: ignore[assignment]
    operator._workers = [SimpleNamespace(done=lambda: False)]  # type: ignore[list-item]
    return operator


async def test_ready_only_while_the_watches_are_up() -> None:
    clock = Clock()
    health = WatchHealth([PATH], clock)
    operator = an_operator(health)
    assert operator._unready() == f"these watches are down: {PATH}"
    health.answered(PATH, 200)
    assert operator._unready() == ""


async def test_a_watch_that_goes_down_between_two_lists_brings_the_next_one_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lists, "WATCHLESS_SECONDS", 0.01)
    health = WatchHealth([PATH], Clock())
    health.answered(PATH, 200)
    operator, listed = an_operator(health), asyncio.Event()

    async def list_all() -> None:
        listed.set()

    monkeypatch.setattr(operator._lists, "list_all", list_all)
    task = asyncio.create_task(operator._lists.keep())
    try:
        await asyncio.sleep(0.05)
        assert not listed.is_set(), "the next list is due in minutes"
        operator._watches.health = WatchHealth([PATH], Clock())  # type: ignore[union-attr]
        await asyncio.wait_for(listed.wait(), 10)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_unhealthy_when_watches_keep_failing_though_the_api_server_answers() -> None:
    clock = Clock()
    health = WatchHealth([PATH], clock)
    operator = an_operator(health)
    clock.now += app.WATCHES_DEAD_SECONDS + 1
    operator._lists.listed_at = time.monotonic() - 5 * lists.WATCHLESS_SECONDS
    assert operator._unhealthy() == "", "no list is answered either: an outage, and a restart would not help"
    operator._lists.listed_at = time.monotonic()
    assert operator._unhealthy() == f"the API server answers, but these watches keep failing: {PATH}"
    health.answered(PATH, 200)
    assert operator._unhealthy() == ""
