"""The process behind a running sandbox: starts everything, keeps it running, and stops it in order.

Run as `python -m promptrollout.sandbox.supervisor --dir DIR`; people use `promptrollout sandbox up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import click
import uvloop
from aiohttp import web

from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.controlplane import install
from promptrollout.sandbox.controlplane.control_plane import ControlPlane
from promptrollout.sandbox.controlplane.model_address import ModelAddress
from promptrollout.sandbox.controlplane.pki import write_secret
from promptrollout.sandbox.controlplane.prometheus import Prometheus
from promptrollout.sandbox.node.node import Node
from promptrollout.sandbox.node.services import ServiceProxies
from promptrollout.sandbox.processes import Service, free_ports, kill_leftovers, require_linux, start_time
from promptrollout.sandbox.settings import READY_SECONDS, Layout, SandboxError, Settings

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0


class Supervisor:
    """Everything that runs in one sandbox."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.settings = settings
        self._control_token = secrets.token_urlsafe(24)
        self._stop = asyncio.Event()
        self._started = time.monotonic()
        self._state: dict[str, Any] = {
            "phase": "starting",
            "pid": os.getpid(),
            "pidStartTime": start_time(os.getpid()),
            "controlToken": self._control_token,
        }

    async def run(self) -> None:
        """Until a signal or a request to stop; raises what kept the sandbox from starting."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        binaries = inventory.ensure(self._progress)
        self.control_plane = ControlPlane(self.layout, binaries)
        self.prometheus = Prometheus(self.layout, binaries.prometheus, self.settings.scrape_interval_seconds)
        (model_port,) = free_ports(1)
        model = ["-m", "promptrollout.sandbox.model", "--host", "127.0.0.1", "--port", str(model_port)]
        self.model = Service(
            "simulated-model", [sys.executable, *model], marker=self.layout.root, logs=self.layout.logs
        )
        self.services = ServiceProxies(self.layout.services)
        self._state |= {
            "kubeconfig": str(self.layout.kubeconfig),
            "prometheusUrl": self.prometheus.url,
            "modelUrl": f"http://127.0.0.1:{model_port}",
        }
        async with contextlib.AsyncExitStack() as stack:
            await self._serve_control(stack)
            starting = asyncio.create_task(self._start(stack, binaries))
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
            else:
                starting.result()
                self._set_phase("ready")
                self._progress("ready")
                await self._watch_over()
            stopping.cancel()
            self._set_phase("stopping")

    async def _start(self, stack: contextlib.AsyncExitStack, binaries: inventory.Binaries) -> None:
        operator = self.settings.install_operator
        self._progress("starting etcd, kube-apiserver and kube-controller-manager")
        # what is pushed first stops last
        stack.push_async_callback(self.control_plane.stop)
        stack.push_async_callback(self.model.stop, 2.0)
        stack.push_async_callback(self.prometheus.service.stop, 5.0)
        rendering = (
            asyncio.create_task(install.render(binaries, self.layout, self.prometheus.url, self.settings.values_files))
            if operator
            else None
        )
        await asyncio.gather(self.control_plane.start(), self.model.start())
        manifests = await rendering if rendering else None
        api = await stack.enter_async_context(self.control_plane.connect("admin"))
        node_api = await stack.enter_async_context(self.control_plane.connect("node"))
        address = ModelAddress(
            self._state["modelUrl"], self.control_plane.admission_serving, self.control_plane.ca_file
        )
        stack.push_async_callback(address.stop)
        await address.start(api)
        self._progress("starting node, services and Prometheus" + (", applying the chart" if operator else ""))
        self.node = Node(self.layout, self.settings, node_api, self.control_plane)
        self.node.listen(self.services.on_pod)
        stack.push_async_callback(self.node.stop)
        await self.node.start()
        proxies = asyncio.create_task(self.services.run(node_api))
        stack.push_async_callback(_cancel, proxies)
        steps: list[Awaitable[None]] = [
            self.prometheus.start(api, self.control_plane.server, self.control_plane.ca_file),
            self._wait_http(f"{self._state['modelUrl']}/healthz", self.model),
        ]
        if manifests is not None:
            steps.append(install.apply(binaries, self.layout, api, manifests))
        await asyncio.gather(*steps)
        if operator:
            self._progress("waiting for the operator to be available")
            await install.wait_available(binaries, self.layout, api)

    async def _install_operator(self) -> None:
        """Render and apply the chart, also into a sandbox that was started without it."""
        binaries = inventory.ensure(self._progress)
        async with self.control_plane.connect("admin") as api:
            manifests = await install.render(binaries, self.layout, self.prometheus.url, self.settings.values_files)
            await install.apply(binaries, self.layout, api, manifests)
            await install.wait_available(binaries, self.layout, api)

    async def _watch_over(self) -> None:
        """Wait for the order to stop; a process that ends unasked is reported, once, and left for people to see."""
        reported: set[str] = set()
        watched = (self.control_plane.etcd, self.control_plane.controller_manager, self.model)
        while not self._stop.is_set():
            self.node.check()
            for service in watched:
                if not service.running and service.name not in reported:
                    reported.add(service.name)
                    logger.error("%s has ended unexpectedly; see %s", service.name, service.log)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _CHECK_SECONDS)

    async def _wait_http(self, url: str, service: Service, timeout_seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + timeout_seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < deadline:
                service.check()
                try:
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    logger.debug("%s does not answer yet", url)
                await asyncio.sleep(0.1)
        raise SandboxError(f"{service.name} was not ready within {timeout_seconds:.0f} s; see {service.log}")

    # -- control: what the command line and the tests ask of a running sandbox

    async def _serve_control(self, stack: contextlib.AsyncExitStack) -> None:
        app = web.Application(middlewares=[self._authenticated])
        app.router.add_get("/state", self._get_state)
        app.router.add_get("/gateways", self._get_gateways)
        app.router.add_get("/pods/{namespace}/{name}", self._get_pod)
        app.router.add_post("/stop", self._post_stop)
        app.router.add_post("/prometheus/stop", self._action(lambda: self.prometheus.service.stop()))
        app.router.add_post("/prometheus/start", self._action(self._start_prometheus))
        app.router.add_post("/apiserver/stop", self._action(self._stop_apiserver))
        app.router.add_post("/apiserver/start", self._action(self._start_apiserver))
        app.router.add_post("/operator/install", self._action(self._install_operator))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._state["controlUrl"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._write_state()

    @web.middleware
    async def _authenticated(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        token = request.headers.get("Authorization", "")
        if not secrets.compare_digest(token.encode(), f"Bearer {self._control_token}".encode()):
            return web.json_response({"error": "the token is in state.json"}, status=401)
        try:
            return await handler(request)
        except SandboxError as error:
            return web.json_response({"error": str(error)}, status=500)

    def _action(self, act: Callable[[], Awaitable[None]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(_request: web.Request) -> web.Response:
            await act()
            return web.json_response({})

        return handler

    async def _start_prometheus(self) -> None:
        await self.prometheus.service.start()
        await self.prometheus.wait_ready()

    async def _stop_apiserver(self) -> None:
        # with open watches it would end slowly, and an outage is abrupt too
        await self.control_plane.apiserver.stop(grace_seconds=0.5)

    async def _start_apiserver(self) -> None:
        await self.control_plane.apiserver.start()
        await self.control_plane.wait_ready()

    async def _get_state(self, _request: web.Request) -> web.Response:
        processes = {
            service.name: service.pid
            for service in (
                self.control_plane.etcd,
                self.control_plane.apiserver,
                self.control_plane.controller_manager,
                self.prometheus.service,
                self.model,
            )
        }
        return web.json_response({"phase": self._state["phase"], "processes": processes})

    async def _get_gateways(self, _request: web.Request) -> web.Response:
        return web.json_response(self.services.gateways())

    async def _get_pod(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        worker = self.node.find(namespace, name)
        if worker is None:
            raise SandboxError(f"no pod {namespace}/{name} on the sandbox's node")
        pids = {container.name: container.pid for container in worker.containers}
        return web.json_response({"pids": pids, "address": worker.address, "directory": str(worker.directory)})

    async def _post_stop(self, _request: web.Request) -> web.Response:
        self._stop.set()
        return web.json_response({})

    # -- state

    def _set_phase(self, phase: str, error: str = "") -> None:
        self._state["phase"] = phase
        if error:
            self._state["error"] = error
        self._write_state()

    def fail(self, error: str) -> None:
        self._set_phase("failed", error)

    def _write_state(self) -> None:
        temporary = self.layout.state.with_suffix(".tmp")
        write_secret(temporary, json.dumps(self._state, indent=1))
        os.replace(temporary, self.layout.state)

    def _progress(self, message: str) -> None:
        line = f"[{time.monotonic() - self._started:5.1f} s] {message}"
        logger.info(line)
        with self.layout.progress.open("a") as file:
            file.write(line + "\n")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def clean(layout: Layout) -> None:
    """Remove what an earlier sandbox left in the directory: a sandbox always starts empty."""
    for directory in (layout.etcd, layout.pki, layout.prometheus, layout.pods, layout.logs):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (layout.state, layout.progress, layout.kubeconfig, layout.services, layout.values):
        file.unlink(missing_ok=True)
    layout.logs.mkdir(parents=True)
    layout.pods.mkdir(mode=0o700)


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--settings", default="{}", help="Settings as JSON.")
@click.option("--lock-fd", type=int, required=True, help="An open file that holds the directory's lock.")
def main(directory: Path, settings: str, lock_fd: int) -> None:
    """Run a sandbox in DIR until SIGTERM. The lock is the starter's and lasts as long as this process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    require_linux()
    layout = Layout(directory.resolve())
    supervisor: Supervisor | None = None

    async def supervise() -> None:
        nonlocal supervisor
        supervisor = Supervisor(layout, Settings.from_json(json.loads(settings)))
        await supervisor.run()

    os.set_inheritable(lock_fd, False)
    try:
        uvloop.run(supervise())
    except SandboxError as error:
        logger.error("%s", error)
        if supervisor is not None:
            supervisor.fail(str(error))
        sys.exit(1)
    finally:
        kill_leftovers(layout.root)
    layout.state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
