"""How a part of the project speaks to the API server: plain calls, and watches that survive outages.

Calls and watches speak plain dictionaries, on the connection pool of a `kubernetes.aio` client: generated models would
drop fields that they do not know.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Final, Literal

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException

from promptrollout.api.names import GROUP, VERSION
from promptrollout.credentials import ClusterError, connect, connect_with_token, namespace

__all__ = [
    "ApiException",
    "ApiUnavailable",
    "ClusterError",
    "apply",
    "connect",
    "connect_with_token",
    "custom_path",
    "list_all",
    "namespace",
    "namespace_is_terminating",
    "request",
    "text",
    "watch",
]

logger = logging.getLogger(__name__)

Object = dict[str, Any]
EventType = Literal["ADDED", "MODIFIED", "DELETED", "SYNCED"]

APPLY_PATCH: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"

NAMESPACE_TERMINATING: Final = "NamespaceTerminating"
"""Cause in the Status of a refused create, as the API server's NamespaceLifecycle admission gives it."""

PAGE_SIZE: Final = 500
RELIST_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 5.0
# list and watch retry: first and longest pause, each multiplied by a random 0.5..1.5
RETRY_FIRST_SECONDS: Final = 0.2
RETRY_MAX_SECONDS: Final = 5.0


class ApiError(ApiException):
    """The API server answered with an error: `status`, `reason` (its message), `body`. As a text it is one line."""

    def __str__(self) -> str:
        return f"{self.status} {self.reason}"


class ApiUnavailable(Exception):
    """The API server could not be reached, or was too slow."""


def custom_path(plural: str, namespace: str | None = None, name: str | None = None) -> str:
    """The path of our own kinds: all of them, those of a namespace, or one."""
    path = f"/apis/{GROUP}/{VERSION}"
    if namespace is not None:
        path += f"/namespaces/{namespace}"
    return f"{path}/{plural}" if name is None else f"{path}/{plural}/{name}"


async def request(
    client: ApiClient,
    method: str,
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    body: Any = None,
    content_type: str = "application/json",
    timeout_seconds: float = 15.0,
) -> Object:
    """One call. Raises ApiException (`status`, `reason`, `body`) for an answer that is an error, ApiUnavailable for
    none."""
    payload = await _read(client, method, path, params, body, content_type, timeout_seconds)
    try:
        answer: Object = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise ApiUnavailable(f"{method} {path}: the answer is not JSON: {error}") from error
    return answer


async def text(client: ApiClient, path: str, timeout_seconds: float = 15.0) -> str:
    """What the server answers on a path that has no objects, such as /readyz. Raises as `request` does."""
    return (await _read(client, "GET", path, None, None, "application/json", timeout_seconds)).decode(errors="replace")


async def apply(client: ApiClient, path: str, body: Object, field_manager: str) -> Object:
    """Server-side apply, forced: the caller owns the fields that it sends. Raises as `request` does."""
    params = {"fieldManager": field_manager, "force": "true"}
    return await request(client, "PATCH", path, params=params, body=body, content_type=APPLY_PATCH)


async def watch(
    client: ApiClient,
    path: str,
    *,
    label_selector: str = "",
    field_selector: str = "",
    relist_seconds: float = RELIST_SECONDS,
    contact: Callable[[], None] | None = None,
    refused: Callable[[ApiException], None] | None = None,
    rng: random.Random | None = None,
) -> AsyncGenerator[tuple[EventType, Object]]:
    """Every object and then every change, for ever, whatever the API server does meanwhile.

    Yields (ADDED | MODIFIED | DELETED, object), and (SYNCED, {}) after each complete list. Objects that vanished
    unnoticed are reported as DELETED, with their last known state. A fresh list is taken every `relist_seconds` (about:
    jittered), so an event that was lost on the way is made up for. `contact` is called whenever the server is heard,
    `refused` when it answers a list with an error.
    """
    rng = rng or random.Random()
    heard = contact or (lambda: None)
    selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
    params = {name: value for name, value in selectors.items() if value}
    known: dict[str, Object] = {}
    version: str | None = None
    list_due = 0.0
    pause_seconds = RETRY_FIRST_SECONDS
    while True:
        try:
            if version is None or time.monotonic() >= list_due:
                version = None
                items, version = await list_all(client, path, params)
                list_due = time.monotonic() + relist_seconds * rng.uniform(0.8, 1.2)
                heard()
                for event in differences(known, items):
                    yield event
                yield "SYNCED", {}
            seconds = max(1.0, list_due - time.monotonic())
            async for kind, item in _stream(client, path, params, version, seconds):
                pause_seconds = RETRY_FIRST_SECONDS
                heard()
                version = item["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                if kind == "DELETED":
                    known.pop(item["metadata"]["uid"], None)
                else:
                    known[item["metadata"]["uid"]] = item
                yield kind, item
            if time.monotonic() >= list_due - 0.5:
                continue  # the stream ended because its time was up
            # else closed early by the server: no error, but never a busy loop either
        except ApiException as error:
            if version is None and refused is not None:
                refused(error)
            version = None  # 410 Gone, or anything else the server dislikes about our position: begin with a list
            logger.info("watch of %s starts over: %s %s", path, error.status, error.reason)
        except ApiUnavailable as error:
            logger.info("watch of %s is tried again: %s", path, error)
        await asyncio.sleep(pause_seconds * rng.uniform(0.5, 1.5))
        pause_seconds = min(RETRY_MAX_SECONDS, pause_seconds * 2)


def differences(known: dict[str, Object], items: list[Object]) -> list[tuple[EventType, Object]]:
    """Events that lead from `known` (by uid; updated in place) to `items`: deletions first."""
    current = {item["metadata"]["uid"]: item for item in items}
    events: list[tuple[EventType, Object]] = [
        ("DELETED", known.pop(uid)) for uid in [uid for uid in known if uid not in current]
    ]
    for uid, item in current.items():
        before = known.get(uid)
        if before is None:
            events.append(("ADDED", item))
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            events.append(("MODIFIED", item))
        known[uid] = item
    return events


async def list_all(client: ApiClient, path: str, params: Mapping[str, str]) -> tuple[list[Object], str]:
    """All pages, and the version to watch from."""
    items: list[Object] = []
    page = dict(params, limit=str(PAGE_SIZE))
    while True:
        answer = await request(client, "GET", path, params=page, timeout_seconds=30.0)
        position = answer.get("metadata") or {}
        if "resourceVersion" not in position:
            raise ApiUnavailable(f"list of {path}: the answer is not a list")
        items += answer.get("items") or []
        if not (token := position.get("continue")):
            return items, position["resourceVersion"]
        page["continue"] = token


async def _stream(
    client: ApiClient, path: str, params: Mapping[str, str], version: str, seconds: float
) -> AsyncIterator[tuple[Any, Object]]:
    """The changes after `version`, for about `seconds`."""
    query = dict(
        params,
        watch="1",
        resourceVersion=version,
        allowWatchBookmarks="true",
        timeoutSeconds=str(max(1, round(seconds))),
    )
    # a connection that a load balancer forgot is silent for ever: the total bounds it
    timeout = aiohttp.ClientTimeout(total=seconds + 10.0, sock_connect=CONNECT_SECONDS)
    try:
        response = await _send(client, "GET", path, query, None, "application/json", timeout)
        async with response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        details = event["object"]
                        raise ApiError(status=details.get("code", 500), reason=details.get("message", "watch"))
                    yield event["type"], event["object"]
    except (orjson.JSONDecodeError, KeyError) as error:
        raise ApiUnavailable(f"watch of {path}: not a watch event: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApiUnavailable(f"watch of {path}: {_unanswered(client, error, seconds + 10.0)}") from error


async def _read(
    client: ApiClient,
    method: str,
    path: str,
    params: Mapping[str, str] | None,
    body: Any,
    content_type: str,
    timeout_seconds: float,
) -> bytes:
    timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
    try:
        response = await _send(client, method, path, params, body, content_type, timeout)
        async with response:
            return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApiUnavailable(f"{method} {path}: {_unanswered(client, error, timeout_seconds)}") from error


def _unanswered(client: ApiClient, error: Exception, seconds: float) -> str:
    """Why there is no answer, in words of our own where the error has none. `seconds`: the whole call's limit."""
    host = client.configuration.host
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection to {host} within {CONNECT_SECONDS:g} s"
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer from {host} within {seconds:g} s"
    return f"{host} cannot be reached: {str(error) or type(error).__name__}"


async def _send(
    client: ApiClient,
    method: str,
    path: str,
    params: Mapping[str, str] | None,
    body: Any,
    content_type: str,
    timeout: aiohttp.ClientTimeout,
) -> aiohttp.ClientResponse:
    """The open response of a call that was not refused; the caller closes it."""
    method, url, headers, body, _ = await client.param_serialize(
        method,
        path,
        query_params=list((params or {}).items()),
        header_params={"Accept": "application/json", "Content-Type": content_type},
        body=body,
        auth_settings=["BearerToken"],
    )
    answer = await client.call_api(method, url, headers, body, _request_timeout=timeout)
    response: aiohttp.ClientResponse = answer.response
    if response.status < 400:
        return response
    async with response:
        payload = await response.read()
    error = ApiError(status=response.status, reason=str(_status(payload).get("message") or "") or response.reason)
    error.body = payload.decode(errors="replace")
    error.headers = response.headers
    raise error


def namespace_is_terminating(error: ApiException) -> bool:
    """The namespace is being deleted: nothing new will ever be allowed in it."""
    details = _status(error.body).get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    return any(isinstance(cause, dict) and cause.get("reason") == NAMESPACE_TERMINATING for cause in causes or ())


def _status(payload: bytes | str | None) -> Object:
    """The Status object of an answer that is an error; empty without one."""
    try:
        status = orjson.loads(payload or b"")
    except orjson.JSONDecodeError:
        return {}
    return status if isinstance(status, dict) else {}
