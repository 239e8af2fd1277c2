"""A thin asynchronous client of the API server: plain dictionaries, and watches that survive outages.

The node passes objects on as they are, so typed models would only drop fields they do not know. Not `cluster`, whose
client honours HTTPS_PROXY even on loopback, where a sandbox would not come up behind one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson

logger = logging.getLogger(__name__)

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

_RETRY_FIRST_SECONDS = 0.2
_RETRY_MAX_SECONDS = 3.0


class ApiError(Exception):
    """The API server answered with an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class ApiUnavailable(Exception):
    """The API server could not be reached, or was too slow."""


@dataclass(frozen=True)
class Access:
    """Where the API server is and how to be somebody there."""

    server: str
    token: str
    ca_file: Path


class KubeApi:
    """One identity's connection to the API server."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=str(self._access.ca_file))
        self._session = aiohttp.ClientSession(
            self._access.server,
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            headers={"Authorization": f"Bearer {self._access.token}", "Accept": "application/json"},
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use KubeApi as a context manager")
        return self._session

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
        timeout_seconds: float = 15.0,
    ) -> Object:
        """One call; raises ApiError for an answer that is an error, ApiUnavailable for none."""
        try:
            async with self.session.request(
                method,
                path,
                params=params,
                data=orjson.dumps(body) if body is not None else None,
                headers={"Content-Type": content_type} if body is not None else None,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response:
                payload = await response.read()
                if response.status >= 400:
                    raise _api_error(response.status, payload)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiUnavailable(f"{method} {path}: {str(error) or type(error).__name__}") from error
        parsed: Object = orjson.loads(payload) if payload[:1] in (b"{", b"[") else {"text": payload.decode()}
        return parsed

    async def get(self, path: str, **params: str) -> Object:
        return await self.request("GET", path, params=params or None)

    async def post(self, path: str, body: Any) -> Object:
        return await self.request("POST", path, body=body)

    async def patch(self, path: str, body: Any, content_type: str = MERGE_PATCH) -> Object:
        return await self.request("PATCH", path, body=body, content_type=content_type)

    async def delete(self, path: str, body: Any = None) -> Object:
        return await self.request("DELETE", path, body=body)

    async def apply(self, path: str, body: Object, field_manager: str) -> Object:
        """Server-side apply, forced: the caller owns the fields it sends."""
        return await self.request(
            "PATCH",
            path,
            body=body,
            params={"fieldManager": field_manager, "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    async def list_watch(self, path: str, params: dict[str, str] | None = None) -> AsyncIterator[tuple[str, Object]]:
        """Every object and then every change, for ever.

        Yields (`ADDED` | `MODIFIED` | `DELETED`, object), and (`SYNCED`, {}) after each full list. Objects that
        vanished while the watch was down are reported as DELETED, with their last known state.
        """
        known: dict[str, Object] = {}
        retry_seconds = _RETRY_FIRST_SECONDS
        version: str | None = None
        while True:
            try:
                if version is None:
                    listing = await self.request("GET", path, params=params)
                    version = listing["metadata"]["resourceVersion"]
                    for event in _differences(known, listing.get("items", [])):
                        yield event
                    yield "SYNCED", {}
                async for kind, item in self._watch(path, params, version):
                    retry_seconds = _RETRY_FIRST_SECONDS
                    version = item["metadata"]["resourceVersion"]
                    if kind == "BOOKMARK":
                        continue
                    if kind == "DELETED":
                        known.pop(item["metadata"]["uid"], None)
                    else:
                        known[item["metadata"]["uid"]] = item
                    yield kind, item
                retry_seconds = _RETRY_FIRST_SECONDS
            except ApiError as error:
                # 410 Gone, or anything else the server dislikes about our position: start over from a list
                logger.info("watch of %s starts over: %s", path, error)
                version = None
                await asyncio.sleep(retry_seconds)
                retry_seconds = min(_RETRY_MAX_SECONDS, retry_seconds * 2)
            except ApiUnavailable as error:
                logger.info("watch of %s retries in %.1f s: %s", path, retry_seconds, error)
                await asyncio.sleep(retry_seconds)
                retry_seconds = min(_RETRY_MAX_SECONDS, retry_seconds * 2)

    async def _watch(self, path: str, params: dict[str, str] | None, version: str) -> AsyncIterator[tuple[str, Object]]:
        query = {
            **(params or {}),
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "300",
        }
        try:
            async with self.session.get(
                path,
                params=query,
                # bookmarks come about every minute; a longer silence is a dead connection
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=150),
            ) as response:
                if response.status >= 400:
                    raise _api_error(response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = orjson.loads(line)
                        if event["type"] == "ERROR":
                            raise _api_error(event["object"].get("code", 500), orjson.dumps(event["object"]))
                        yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiUnavailable(f"watch of {path}: {str(error) or type(error).__name__}") from error


def _differences(known: dict[str, Object], items: list[Object]) -> list[tuple[str, Object]]:
    """Events that lead from `known` (updated in place) to `items`."""
    events: list[tuple[str, Object]] = []
    current = {item["metadata"]["uid"]: item for item in items}
    for uid in [uid for uid in known if uid not in current]:
        events.append(("DELETED", known.pop(uid)))
    for uid, item in current.items():
        before = known.get(uid)
        if before is None:
            events.append(("ADDED", item))
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            events.append(("MODIFIED", item))
        known[uid] = item
    return events


def _api_error(status: int, payload: bytes) -> ApiError:
    try:
        details = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return ApiError(status, "Unknown", payload[:500].decode(errors="replace"))
    if not isinstance(details, dict):
        return ApiError(status, "Unknown", str(details)[:500])
    return ApiError(status, details.get("reason") or "Unknown", details.get("message") or "")
