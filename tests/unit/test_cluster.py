"""Watches against a scripted API server on loopback: paging, resumption, vanished objects, bad streams."""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from promptrollout import cluster

PATH = "/apis/promptrollout.dev/v1alpha1/namespaces/ns/promptdeliveries"


def item(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}}


class ApiServer:
    """Answers lists from `items`, watches from `streams` (then keeps them open), and notes the queries."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.version = 1
        self.page_size = 500
        self.streams: list[list[dict[str, Any]] | int] = []
        self.queries: list[dict[str, str]] = []
        self.authorizations: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        self.authorizations.append(request.headers.get("Authorization", ""))
        if "watch" in request.query:
            return await self._watch(request)
        start = int(request.query.get("continue", "0"))
        page = self.items[start : start + self.page_size]
        metadata = {"resourceVersion": str(self.version)}
        if start + self.page_size < len(self.items):
            metadata["continue"] = str(start + self.page_size)
        return web.json_response({"metadata": metadata, "items": page})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        events = self.streams.pop(0) if self.streams else []
        if isinstance(events, int):
            return web.json_response({"message": "refused"}, status=events)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(json.dumps(event).encode() + b"\n")
        if not events:
            await asyncio.sleep(10)
        return response


@asynccontextmanager
async def serving(server: ApiServer) -> AsyncIterator[ApiClient]:
    app = web.Application()
    app.router.add_get(PATH, server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with ApiClient(Configuration(host=f"http://127.0.0.1:{port}")) as client:
            yield client
    finally:
        await runner.cleanup()


async def collect(
    client: ApiClient, until: Callable[[list[tuple[str, str]]], bool], **options: Any
) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    events = cluster.watch(client, PATH, rng=random.Random(1), **options)
    async with asyncio.timeout(5):
        async for kind, found in events:
            seen.append((kind, found["metadata"]["name"] if found else ""))
            if until(seen):
                break
    await events.aclose()  # type: ignore[attr-defined]
    return seen


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "RETRY_FIRST_SECONDS", 0.001)
    monkeypatch.setattr(cluster, "RETRY_MAX_SECONDS", 0.002)


async def test_lists_all_pages_then_says_it_is_synced() -> None:
    server = ApiServer()
    server.items = [item(name, 1) for name in "abcde"]
    server.page_size = 2
    async with serving(server) as client:
        seen = await collect(client, lambda seen: seen[-1][0] == "SYNCED", label_selector="x=y")
    assert seen == [("ADDED", name) for name in "abcde"] + [("SYNCED", "")]
    assert all(query["labelSelector"] == "x=y" for query in server.queries)


async def test_a_closed_watch_resumes_behind_its_last_event_and_bookmarks_count() -> None:
    server = ApiServer()
    server.streams = [
        [{"type": "ADDED", "object": item("a", 5)}, {"type": "BOOKMARK", "object": item("", 9)}],
        [{"type": "MODIFIED", "object": item("a", 10)}],
    ]
    async with serving(server) as client:
        seen = await collect(client, lambda seen: seen[-1][0] == "MODIFIED")
    assert seen == [("SYNCED", ""), ("ADDED", "a"), ("MODIFIED", "a")]
    assert [query["resourceVersion"] for query in server.queries if "watch" in query] == ["1", "9"]


@pytest.mark.parametrize("gone", [410, [{"type": "ERROR", "object": {"code": 410, "message": "too old"}}]])
async def test_an_expired_position_is_listed_anew_and_what_vanished_is_deleted(gone: Any) -> None:
    server = ApiServer()
    server.items = [item("a", 1), item("b", 1)]
    server.streams = [gone]

    def until(seen: list[tuple[str, str]]) -> bool:
        if len(seen) == 3:
            server.items = [item("b", 2), item("c", 2)]
        return seen.count(("SYNCED", "")) == 2

    async with serving(server) as client:
        seen = await collect(client, until)
    assert seen[3:] == [("DELETED", "a"), ("MODIFIED", "b"), ("ADDED", "c"), ("SYNCED", "")]


async def test_a_list_is_taken_again_when_its_time_is_up() -> None:
    server = ApiServer()
    server.items = [item("a", 1)]
    server.streams = [[{"type": "BOOKMARK", "object": item("", 2)}]] * 3
    async with serving(server) as client:
        seen = await collect(client, lambda seen: seen.count(("SYNCED", "")) == 2, relist_seconds=0.001)
    assert seen == [("ADDED", "a"), ("SYNCED", ""), ("SYNCED", "")]


async def test_refused_calls_carry_the_servers_message() -> None:
    server = ApiServer()
    server.streams = [403]
    async with serving(server) as client:
        with pytest.raises(cluster.ApiException) as caught:
            await cluster.request(client, "GET", PATH, params={"watch": "1"})
    assert (caught.value.status, caught.value.reason) == (403, "refused")


async def test_an_unreachable_server_is_its_own_error() -> None:
    async with ApiClient(Configuration(host="http://127.0.0.1:1")) as client:
        with pytest.raises(cluster.ApiUnavailable, match="GET /version"):
            await cluster.request(client, "GET", "/version")


async def test_a_server_that_does_not_answer_is_named_with_the_time_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The errors that a timeout raises have no text of their own."""
    async with serving(ApiServer()) as client:
        with pytest.raises(cluster.ApiUnavailable) as caught:
            await cluster.request(client, "GET", PATH, params={"watch": "1"}, timeout_seconds=0.01)
        host = client.configuration.host
    assert str(caught.value) == f"GET {PATH}: no answer from {host} within 0.01 s"
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.01)
    # a port whose queue is full: connections to it neither come about nor are refused
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address), contextlib.ExitStack() as queued:
            for _ in range(4):
                waiting = queued.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            async with ApiClient(Configuration(host=f"http://127.0.0.1:{address[1]}")) as client:
                with pytest.raises(
                    cluster.ApiUnavailable, match=rf"no connection to {client.configuration.host} within"
                ):
                    await cluster.request(client, "GET", PATH)


@pytest.mark.parametrize(
    ("details", "terminating"),
    [
        ({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}, True),
        ({"causes": [{"reason": "FieldValueInvalid"}]}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_namespace_that_is_deleted_is_known_by_the_cause_and_not_by_the_message(
    details: dict[str, Any] | None, terminating: bool
) -> None:
    error = cluster.ApiException(status=403, reason="being terminated")
    status = {"kind": "Status", "message": "x is forbidden: it is being terminated", "details": details}
    error.body = json.dumps(status)
    assert cluster.namespace_is_terminating(error) is terminating
    error.body = "being terminated"
    assert not cluster.namespace_is_terminating(error)
