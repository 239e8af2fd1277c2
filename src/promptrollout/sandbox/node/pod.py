"""One pod on the sandbox's node: volumes, containers, status, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.cluster import ApiException, ApiUnavailable
from promptrollout.sandbox.node import image_user, podspec, podstatus
from promptrollout.sandbox.node.container import Backoff, Container, Launch, Surroundings
from promptrollout.sandbox.node.podspec import Object
from promptrollout.sandbox.node.volumes import MountError, PodVolumes, unix_time
from promptrollout.sandbox.processes import MARKER
from promptrollout.sandbox.settings import NODE_NAME, Settings

logger = logging.getLogger(__name__)

HOST_ADDRESS = "127.0.0.1"
_RETRY_FIRST_SECONDS = 0.2
_RETRY_MAX_SECONDS = 5.0
_MOUNT_RETRY_SECONDS = 2.0
_STATUS_BATCH_SECONDS = 0.02


@dataclass(frozen=True)
class PodEnvironment:
    """What a pod gets from its node."""

    api: ApiClient
    api_port: int
    settings: Settings
    sandbox_dir: Path
    pods_dir: Path
    session: aiohttp.ClientSession
    #: (kind, namespace, name) -> decoded data, or None
    lookup: Callable[[str, str, str], Mapping[str, bytes] | None]
    #: Makes sure that objects that exist are known to `lookup`.
    prefetch: Callable[[str, set[tuple[str, str]]], Awaitable[None]]
    #: (pod, type, reason, message)
    event: Callable[[Object, str, str, str], None]


class PodWorker:
    """Runs one pod from binding to its removal from the API."""

    def __init__(self, pod: Object, address: str, environment: PodEnvironment) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.address = address
        self.directory = environment.pods_dir / f"{self.namespace}_{self.name}"
        self._env = environment
        self._start_time = time.time()
        self._deleting = asyncio.Event()
        self._vanished = asyncio.Event()
        self._dirty = asyncio.Event()
        self._refresh = asyncio.Event()
        self._sent: dict[str, Any] = {}
        self._context = {"podIP": address, "hostIP": HOST_ADDRESS, "nodeName": NODE_NAME}
        self.volumes = PodVolumes(
            pod,
            self.directory / "volumes",
            lambda kind, name: environment.lookup(kind, self.namespace, name),
            self._token,
            time.time,
            environment.settings.token_max_age_seconds,
        )
        spec = pod["spec"]
        around = Surroundings(
            address=address,
            directory=self.directory,
            containers=spec["containers"],
            session=environment.session,
            restart_policy=spec.get("restartPolicy", "Always"),
            grace_seconds=float(spec.get("terminationGracePeriodSeconds", 30)),
            backoff=Backoff(environment.settings.crash_backoff_seconds, environment.settings.crash_backoff_max_seconds),
            resolve=self._launch,
            on_change=self._dirty.set,
            on_event=lambda kind, reason, message: environment.event(self.pod, kind, reason, message),
        )
        self.init_containers = [Container(c, around, init=True) for c in spec.get("initContainers") or []]
        self.containers = [Container(c, around) for c in spec["containers"]]

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    def container(self, name: str) -> Container | None:
        return next((c for c in (*self.containers, *self.init_containers) if c.name == name), None)

    # -- what the node tells

    def update(self, pod: Object) -> None:
        """A newer state of the object."""
        self.pod = pod
        self.volumes.update(pod)
        if pod["metadata"].get("deletionTimestamp"):
            self._deleting.set()
        else:
            self._dirty.set()  # a readiness gate may have opened
            self._refresh.set()  # downward API files show labels and annotations

    def vanish(self) -> None:
        """The object is gone: nothing to report to any more."""
        self._vanished.set()
        self._deleting.set()

    def dependency_changed(self, kind: str, name: str) -> None:
        if (kind, name) in self.volumes.sources():
            self._refresh.set()
        for container in (*self.init_containers, *self.containers):
            container.dependency_changed()

    # -- life

    async def run(self) -> None:
        _fresh_directory(self.directory)
        if self.pod["metadata"].get("deletionTimestamp"):
            self._deleting.set()
        reporter = asyncio.create_task(self._report())
        life = asyncio.create_task(self._live())
        try:
            await self._deleting.wait()
            await self._stop_containers()
            if any(c.state.container_id for c in (*self.init_containers, *self.containers)):
                await asyncio.wait({life}, timeout=1.0)  # it notes how the containers ended
            life.cancel()
            reporter.cancel()
            if not self._vanished.is_set():
                for container in (*self.init_containers, *self.containers):
                    container.state.finished = True
                await self._until_done(self._send_status)
                await self._until_done(self._remove)
        finally:
            for task in (life, reporter):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self.kill()
            shutil.rmtree(self.directory, ignore_errors=True)

    async def kill(self) -> None:
        """End all processes at once."""
        await asyncio.gather(*(c.stop(0) for c in (*self.init_containers, *self.containers)))

    async def _live(self) -> None:
        self._dirty.set()
        await self._env.prefetch(self.namespace, self.volumes.sources() | _env_sources(self.pod))
        await self._mount()
        refresher = asyncio.create_task(self._keep_volumes_fresh())
        try:
            for container in self.init_containers:
                await container.run()
                if container.state.exit_code != 0:
                    for main in self.containers:  # the pod has failed
                        main.state.state = podstatus.waiting("PodInitializing")
                        main.state.finished = True
                    self._dirty.set()
                    return
            await asyncio.gather(*(container.run() for container in self.containers))
        finally:
            refresher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refresher

    async def _stop_containers(self) -> None:
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
        seconds = 0.0 if self._vanished.is_set() else float(30 if grace is None else grace)
        running = [c for c in (*self.init_containers, *self.containers) if c.pid]
        for container in running:
            self._env.event(self.pod, "Normal", "Killing", f"Stopping container {container.name}")
        everything = (*self.init_containers, *self.containers)
        stopping = asyncio.create_task(_all(c.stop(seconds) for c in everything))
        vanished = asyncio.create_task(self._vanished.wait())
        await asyncio.wait([stopping, vanished], return_when=asyncio.FIRST_COMPLETED)
        vanished.cancel()
        if not stopping.done():  # deleted by force while it was stopping
            await self.kill()
        await stopping

    # -- volumes

    async def _mount(self) -> None:
        while True:
            self._refresh.clear()
            try:
                await self.volumes.refresh(self._context)
                return
            except (MountError, podspec.ConfigError) as error:
                self._env.event(self.pod, "Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
            except (ApiException, ApiUnavailable) as error:
                self._env.event(self.pod, "Warning", "FailedMount", f"no service account token: {error}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._refresh.wait(), _MOUNT_RETRY_SECONDS)

    async def _keep_volumes_fresh(self) -> None:
        retry = _RETRY_FIRST_SECONDS
        while True:
            due = self.volumes.next_renewal
            timeout = None if due is None else max(0.05, due - time.time())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._refresh.wait(), timeout)
            self._refresh.clear()
            try:
                await self.volumes.refresh(self._context)
                retry = _RETRY_FIRST_SECONDS
            except (MountError, podspec.ConfigError, ApiException, ApiUnavailable) as error:
                # as with a kubelet the files stay as they were
                logger.warning("%s/%s: volumes not refreshed: %s", self.namespace, self.name, error)
                await asyncio.sleep(retry)
                retry = min(_RETRY_MAX_SECONDS, retry * 2)
                self._refresh.set()

    async def _token(self, audience: str | None, seconds: int) -> tuple[str, float]:
        account = self.pod["spec"].get("serviceAccountName") or "default"
        spec: dict[str, Any] = {
            "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid},
        }
        if audience:
            spec["audiences"] = [audience]
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        answer = await cluster.request(self._env.api, "POST", path, body={"spec": spec})
        status = answer["status"]
        return status["token"], unix_time(status["expirationTimestamp"])

    # -- commands

    def _launch(self, container: Object) -> Launch:
        mounts = podspec.container_mounts(container, self.volumes.paths)
        variables = podspec.container_variables(
            self.pod,
            container,
            lambda kind, name: self._env.lookup(kind, self.namespace, name),
            self._context,
        )
        command = podspec.container_command(container, variables, mounts)
        root, temporary = self.directory / "root", self.directory / "root" / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        # What the image and the kubelet would set and no more: not HOME, nothing of the user's own environment.
        env = {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/local/bin:/usr/bin:/bin")),
            "TMPDIR": str(mounts.get("/tmp", temporary)),
            "HOSTNAME": self.pod["spec"].get("hostname") or self.name,
            "PYTHONUNBUFFERED": "1",
            "KUBERNETES_SERVICE_HOST": HOST_ADDRESS,
            "KUBERNETES_SERVICE_PORT": str(self._env.api_port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self._env.api_port),
        }
        env |= {name: podspec.rewrite_path(value, mounts) for name, value in variables.items()}
        # The stand-ins for a network and a mount namespace.
        env["PROMPTROLLOUT_BIND_ADDRESS"] = self.address
        if podspec.SERVICE_ACCOUNT_MOUNT in mounts:
            env["PROMPTROLLOUT_SERVICEACCOUNT_DIR"] = str(mounts[podspec.SERVICE_ACCOUNT_MOUNT])
        env[MARKER] = str(self._env.sandbox_dir)
        for path in mounts.values():
            if not path.exists():
                path.mkdir(parents=True)  # a subPath of an emptyDir
        return Launch(command=command, env=env, cwd=root, mounts=mounts, launcher=image_user.launcher())

    # -- status

    def status(self) -> dict[str, Any]:
        return podstatus.pod_status(
            self.pod,
            containers=[container.state for container in self.containers],
            init_containers=[container.state for container in self.init_containers],
            address=self.address,
            host_address=HOST_ADDRESS,
            start_time=self._start_time,
            previous=self._sent,
            now=time.time(),
        )

    async def _report(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_STATUS_BATCH_SECONDS)  # changes of several containers go out together
            self._dirty.clear()
            await self._until_done(self._send_status)

    async def _send_status(self) -> None:
        status = self.status()
        if status == self._sent:
            return
        body = {"metadata": {"uid": self.uid}, "status": status}
        await cluster.request(
            self._env.api, "PATCH", f"{self._path}/status", body=body, content_type=cluster.STRATEGIC_MERGE_PATCH
        )
        self._sent = status

    async def _remove(self) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        await cluster.request(self._env.api, "DELETE", self._path, body=body)

    async def _until_done(self, call: Callable[[], Awaitable[None]]) -> None:
        """Retry through outages; an object that is gone or was replaced is left alone."""
        retry = _RETRY_FIRST_SECONDS
        while not self._vanished.is_set():
            try:
                await call()
                return
            except ApiException as error:
                if error.status in (404, 409):
                    return
                logger.warning("%s/%s: %s", self.namespace, self.name, error)
            except ApiUnavailable as error:
                logger.info("%s/%s: %s", self.namespace, self.name, error)
            await asyncio.sleep(retry)
            retry = min(_RETRY_MAX_SECONDS, retry * 2)

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*calls)


def _env_sources(pod: Object) -> set[tuple[str, str]]:
    """(kind, name) of all ConfigMaps and Secrets that variables come from."""
    found = set()
    for container in (*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]):
        for source in container.get("envFrom") or []:
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    found.add((kind, source[field]["name"]))
        for entry in container.get("env") or []:
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if field in (entry.get("valueFrom") or {}):
                    found.add((kind, entry["valueFrom"][field]["name"]))
    return found


def _fresh_directory(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
