"""One local TCP port behind each port of each Service, forwarding connections to ready pods in turn."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.api.names import LABEL_GATEWAY
from promptrollout.sandbox.node.podspec import ConfigError, Object, named_port

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_SECONDS = 5.0
_EARLY_BYTES = 1 << 20
_GATEWAY_PORT_NAME = "http"


@dataclass
class _Port:
    """A listening socket in front of one port of a Service."""

    target: int | str
    server: asyncio.Server
    address: str
    turn: int = 0


@dataclass
class _Service:
    namespace: str
    name: str
    selector: dict[str, str]
    gateway: str | None
    ports: dict[str, _Port] = field(default_factory=dict)


class ServiceProxies:
    """What kube-proxy and cluster DNS would do, as far as a sandbox needs it."""

    def __init__(self, mapping_file: Path) -> None:
        self._mapping_file = mapping_file
        self._services: dict[str, _Service] = {}
        self._pods: dict[str, Object] = {}

    def on_pod(self, event: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if event == "DELETED" or pod["metadata"].get("deletionTimestamp"):
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod

    async def run(self, api: ApiClient) -> None:
        """Follow the cluster's Services until cancelled."""
        self._write_mapping()
        try:
            async for event, service in cluster.watch(api, "/api/v1/services"):
                if event != "SYNCED":
                    await self._on_service(event, service)
        finally:
            for held in self._services.values():
                _close(held)

    def mapping(self) -> dict[str, dict[str, str]]:
        """`namespace/name` -> port name and number -> local address."""
        return {key: {p: port.address for p, port in s.ports.items()} for key, s in sorted(self._services.items())}

    def gateways(self) -> dict[str, str]:
        """`namespace/name` of each PromptGateway -> URL of its Service."""
        urls = {}
        for service in self._services.values():
            port = service.ports.get(_GATEWAY_PORT_NAME)
            if service.gateway and port:
                urls[f"{service.namespace}/{service.gateway}"] = f"http://{port.address}"
        return dict(sorted(urls.items()))

    async def _on_service(self, event: str, item: Object) -> None:
        metadata, spec = item["metadata"], item["spec"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        if event == "DELETED":
            if gone := self._services.pop(key, None):
                _close(gone)
                self._write_mapping()
            return
        if not spec.get("selector"):
            return
        service = self._services.setdefault(key, _Service(metadata["namespace"], metadata["name"], {}, None))
        service.selector = spec["selector"]
        service.gateway = _gateway_of(metadata)
        wanted = {str(port["port"]): port for port in spec.get("ports") or [] if port.get("protocol") != "UDP"}
        for number, port in wanted.items():
            held = service.ports.get(number) or await self._listen(service)
            held.target = port.get("targetPort", port["port"])
            service.ports[number] = held
            if port.get("name"):
                service.ports[port["name"]] = held
        names = set(wanted) | {port.get("name") for port in wanted.values()}
        for stale in [name for name in service.ports if name not in names]:
            unused = service.ports.pop(stale)
            if unused not in service.ports.values():
                unused.server.close()
        self._write_mapping()

    async def _listen(self, service: _Service) -> _Port:
        port: _Port

        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Inbound(lambda: self._pick(service, port)), "127.0.0.1", 0)
        host, number = server.sockets[0].getsockname()[:2]
        port = _Port(target=0, server=server, address=f"{host}:{number}")
        return port

    def _pick(self, service: _Service, port: _Port) -> tuple[str, int] | None:
        """The next ready pod's address, or None."""
        ready = sorted(
            (pod for pod in self._pods.values() if _selected(pod, service) and _is_ready(pod)),
            key=lambda pod: str(pod["metadata"]["name"]),
        )
        if not ready:
            return None
        port.turn += 1
        pod = ready[port.turn % len(ready)]
        try:
            return pod["status"]["podIP"], named_port(pod["spec"]["containers"], port.target)
        except ConfigError as error:
            logger.warning("service %s/%s: %s", service.namespace, service.name, error)
            return None

    def _write_mapping(self) -> None:
        temporary = self._mapping_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.mapping(), indent=1))
        os.replace(temporary, self._mapping_file)


class _Inbound(asyncio.Protocol):
    """A client's connection; bytes go straight to the pod's connection."""

    def __init__(self, pick: Callable[[], tuple[str, int] | None]) -> None:
        self._pick = pick
        self._outbound: _Outbound | None = None
        self.transport: asyncio.Transport | None = None
        # what arrives before the pod's connection stands (uvloop ignores a pause from connection_made)
        self._early = bytearray()
        self._early_eof = False
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._connecting = asyncio.get_running_loop().create_task(self._connect(self.transport))

    async def _connect(self, transport: asyncio.Transport) -> None:
        target = self._pick()
        if target is None:  # as with a Service without endpoints: no connection
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
                _, outbound = await loop.create_connection(lambda: _Outbound(self), *target)
        except (OSError, TimeoutError):
            transport.abort()
            return
        if transport.is_closing():
            outbound.close()
            return
        self._outbound = outbound
        if self._early:
            self.data_received(bytes(self._early))
            self._early.clear()
        if self._early_eof:
            self.eof_received()
        transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._outbound and self._outbound.transport:
            self._outbound.transport.write(data)
            return
        self._early += data
        if len(self._early) > _EARLY_BYTES and self.transport:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        if self._outbound and self._outbound.transport:
            if self._outbound.transport.can_write_eof():
                self._outbound.transport.write_eof()
        else:
            self._early_eof = True
        return True  # the answer may still be on its way

    def connection_lost(self, exc: Exception | None) -> None:
        if self._outbound:
            self._outbound.close()

    # the pod's side is slow: stop reading from the client
    def pause_writing(self) -> None:
        if self._outbound and self._outbound.transport:
            self._outbound.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._outbound and self._outbound.transport:
            self._outbound.transport.resume_reading()


class _Outbound(asyncio.Protocol):
    """The connection to the pod."""

    def __init__(self, inbound: _Inbound) -> None:
        self._inbound = inbound
        self.transport: asyncio.Transport | None = None

    def close(self) -> None:
        if self.transport:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._inbound.transport:
            self._inbound.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inbound.transport:
            self._inbound.transport.close()

    def pause_writing(self) -> None:
        if self._inbound.transport:
            self._inbound.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._inbound.transport and not self._inbound.transport.is_closing():
            self._inbound.transport.resume_reading()


def _close(service: _Service) -> None:
    for port in service.ports.values():
        port.server.close()


def _gateway_of(metadata: dict[str, Any]) -> str | None:
    """The PromptGateway that owns a Service, by owner or by label."""
    for owner in metadata.get("ownerReferences") or []:
        if owner.get("kind") == "PromptGateway":
            return str(owner["name"])
    label: str | None = (metadata.get("labels") or {}).get(LABEL_GATEWAY)
    return label


def _selected(pod: Object, service: _Service) -> bool:
    if pod["metadata"]["namespace"] != service.namespace:
        return False
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in service.selector.items())


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
