"""The sandbox's node: binds pods, runs them as local processes and tells the API server what a kubelet would."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

import aiohttp
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.cluster import ApiException, ApiUnavailable
from promptrollout.sandbox.controlplane.control_plane import ControlPlane
from promptrollout.sandbox.node.addresses import AddressPool
from promptrollout.sandbox.node.events import EventRecorder
from promptrollout.sandbox.node.kubelet import KubeletServer
from promptrollout.sandbox.node.pod import HOST_ADDRESS, PodEnvironment, PodWorker
from promptrollout.sandbox.node.podspec import Object
from promptrollout.sandbox.node.podstatus import timestamp
from promptrollout.sandbox.node.volumes import decoded
from promptrollout.sandbox.settings import NODE_NAME, Layout, Settings

logger = logging.getLogger(__name__)

_COLLECTIONS = {"ConfigMap": "configmaps", "Secret": "secrets"}
_BIND_RETRY_SECONDS = 0.5
_CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti"}

PodListener = Callable[[str, Object], None]


class Node:
    """Watches pods, ConfigMaps and Secrets; one worker per pod does the rest."""

    def __init__(self, layout: Layout, settings: Settings, api: ApiClient, control_plane: ControlPlane) -> None:
        self._layout = layout
        self._settings = settings
        self._api = api
        self._control_plane = control_plane
        self._addresses = AddressPool()
        self._events = EventRecorder(api)
        self._workers: dict[str, PodWorker] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._objects: dict[tuple[str, str, str], Mapping[str, bytes]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[PodListener] = []
        self._session: aiohttp.ClientSession | None = None
        self._kubelet = KubeletServer(
            self.find,
            port=control_plane.kubelet_port,
            certificate=control_plane.kubelet_serving,
            client_ca=control_plane.ca_file,
        )

    def listen(self, listener: PodListener) -> None:
        """Receive every pod event."""
        self._listeners.append(listener)

    def find(self, namespace: str, name: str) -> PodWorker | None:
        return next((w for w in self._workers.values() if w.key == (namespace, name)), None)

    async def start(self) -> None:
        """Register, then work until `stop`."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        await self._kubelet.start()
        await self._register()
        for coroutine in (
            self._watch_pods(),
            self._watch_objects("ConfigMap"),
            self._watch_objects("Secret"),
            self._events.run(),
        ):
            self._tasks.append(asyncio.create_task(coroutine))

    async def stop(self) -> None:
        """End all pods' processes; their objects stay as they are."""
        for task in (*self._tasks, *self._running.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._running.values(), return_exceptions=True)
        await self._kubelet.stop()
        if self._session is not None:
            await self._session.close()
        self._addresses.close()

    def check(self) -> None:
        """Raise the error that ended one of the node's own tasks: they must not end."""
        for task in self._tasks:
            if task.done():
                task.result()

    # -- the Node object

    async def _register(self) -> None:
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NODE_NAME,
                "labels": {"kubernetes.io/hostname": NODE_NAME, "kubernetes.io/os": "linux"},
            },
        }
        try:
            await cluster.request(self._api, "POST", "/api/v1/nodes", body=node)
        except ApiException as error:
            if error.status != 409:  # it exists
                raise
        now = timestamp(time.time())
        status = {
            "addresses": [
                {"type": "InternalIP", "address": HOST_ADDRESS},
                {"type": "Hostname", "address": NODE_NAME},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._control_plane.kubelet_port}},
            "capacity": _CAPACITY,
            "allocatable": _CAPACITY,
            "nodeInfo": {
                "kubeletVersion": "v1.36.3",
                "containerRuntimeVersion": "processes://1",
                "operatingSystem": "linux",
                "osImage": "promptrollout sandbox",
                "architecture": "",
                "bootID": "",
                "kernelVersion": "",
                "kubeProxyVersion": "",
                "machineID": "",
                "systemUUID": "",
            },
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "the sandbox's node is ready",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
        }
        path = f"/api/v1/nodes/{NODE_NAME}/status"
        await cluster.request(self._api, "PATCH", path, body={"status": status}, content_type=cluster.MERGE_PATCH)

    # -- ConfigMaps and Secrets

    async def _watch_objects(self, kind: str) -> None:
        async for event, item in cluster.watch(self._api, f"/api/v1/{_COLLECTIONS[kind]}"):
            if event == "SYNCED":
                continue
            namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
            if event == "DELETED":
                self._objects.pop((kind, namespace, name), None)
            else:
                self._objects[kind, namespace, name] = decoded(kind, item)
            for worker in self._workers.values():
                if worker.namespace == namespace:
                    worker.dependency_changed(kind, name)

    def _lookup(self, kind: str, namespace: str, name: str) -> Mapping[str, bytes] | None:
        return self._objects.get((kind, namespace, name))

    async def _prefetch(self, namespace: str, wanted: set[tuple[str, str]]) -> None:
        """Read objects the watch has not shown yet: a pod may come right behind its ConfigMap."""
        for kind, name in wanted:
            if (kind, namespace, name) in self._objects:
                continue
            with contextlib.suppress(ApiException, ApiUnavailable):  # missing is the pod's to report
                path = f"/api/v1/namespaces/{namespace}/{_COLLECTIONS[kind]}/{name}"
                item = await cluster.request(self._api, "GET", path)
                self._objects.setdefault((kind, namespace, name), decoded(kind, item))

    # -- pods

    async def _watch_pods(self) -> None:
        async for event, pod in cluster.watch(self._api, "/api/v1/pods"):
            if event == "SYNCED":
                continue
            for listener in self._listeners:
                listener(event, pod)
            uid = pod["metadata"]["uid"]
            worker = self._workers.get(uid)
            if event == "DELETED":
                if worker is not None:
                    worker.vanish()
            elif worker is not None:
                worker.update(pod)
            elif pod["spec"].get("nodeName") == NODE_NAME:
                self._admit(pod)
            elif not pod["spec"].get("nodeName") and not pod["spec"].get("schedulingGates"):
                await self._bind(pod)

    async def _bind(self, pod: Object) -> None:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "uid": pod["metadata"]["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE_NAME},
        }
        while True:
            try:
                path = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
                await cluster.request(self._api, "POST", path, body=binding)
            except ApiUnavailable as error:
                # an unchanged pod brings no further event, so it must be retried here
                logger.info("%s/%s: not bound yet: %s", namespace, name, error)
                await asyncio.sleep(_BIND_RETRY_SECONDS)
                continue
            except ApiException as error:  # deleted, or bound by an earlier call whose answer was lost
                logger.info("%s/%s: not bound: %s", namespace, name, error)
            return

    def _admit(self, pod: Object) -> None:
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return
        environment = PodEnvironment(
            api=self._api,
            api_port=self._control_plane.port,
            settings=self._settings,
            sandbox_dir=self._layout.root,
            pods_dir=self._layout.pods,
            session=self.session,
            lookup=self._lookup,
            prefetch=self._prefetch,
            event=self._events.record,
        )
        worker = PodWorker(pod, self._addresses.take(), environment)
        # a pod deleted by force may still have processes when its successor of the same name arrives
        before = [self._running[w.uid] for w in self._workers.values() if w.key == worker.key]
        self._workers[worker.uid] = worker
        self._running[worker.uid] = asyncio.create_task(self._run(worker, before))

    async def _run(self, worker: PodWorker, before: list[asyncio.Task[None]]) -> None:
        try:
            if before:
                await asyncio.wait(before)
            await worker.run()
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("%s/%s: the pod's worker failed", worker.namespace, worker.name)
        finally:
            del self._workers[worker.uid]
            del self._running[worker.uid]
            self._addresses.give_back(worker.address)

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the node is not started")
        return self._session
