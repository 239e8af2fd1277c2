"""The gateway's process: two servers in one event loop, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.api.delivery import PodProblem
from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.networks import Networks
from promptrollout.api.pod_settings import (
    CALLER_KEYS_DIR,
    PORT_ADMIN,
    PORT_HTTP,
    PROVIDER_KEYS_DIR,
    STATE_DIR,
    PodSettings,
)
from promptrollout.gateway.auth.authenticate import Auth, authenticator_for
from promptrollout.gateway.auth.caller_keys import CallerKeys
from promptrollout.gateway.auth.token_reviews import CHECK_SECONDS, ServiceAccountRule, TokenReviews
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.rollouts.last_good import Store
from promptrollout.gateway.rollouts.loader import Loader
from promptrollout.gateway.rollouts.pod_report import PodReporter
from promptrollout.gateway.rollouts.provider_pool import ProviderPool
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.gateway.rollouts.watch import ConfigurationWatch
from promptrollout.gateway.server.admin import AdminApp
from promptrollout.gateway.server.app import Limits, ServingApp
from promptrollout.gateway.server.metrics_page import PodState
from promptrollout.gateway.server.pod_problems import PodProblems
from promptrollout.gateway.server.strict_http import StrictProtocol
from promptrollout.gateway.server.watchdog import ended_if_hung
from promptrollout.listen import listening_socket

logger = logging.getLogger(__name__)

ENDPOINT_LAG_SECONDS: Final = 2.0
"""After SIGTERM new connections still arrive for a while: the cluster's proxies learn late that the pod stops."""

_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Settings:
    """The pod's settings with what the process makes of them; `of` reads them."""

    gateway: str
    namespace: str
    pod: str
    state_dir: Path = Path(STATE_DIR)
    provider_keys_dir: Path = Path(PROVIDER_KEYS_DIR)
    caller_keys_dir: Path = Path(CALLER_KEYS_DIR)
    networks: Networks = field(default_factory=Networks)
    """The addresses that providers may have."""
    auth: Auth = field(default_factory=Auth)
    limits: Limits = field(default_factory=Limits)
    drain_seconds: int = GatewaySpec.model_fields["drain_seconds"].default
    bind_address: str = ""
    """Empty: all addresses."""
    pod_ip: str = ""
    """The address at which the gateway's other pods reach this one; empty: not known."""
    port: int = PORT_HTTP
    admin_port: int = PORT_ADMIN
    endpoint_lag_seconds: float = ENDPOINT_LAG_SECONDS

    @classmethod
    def of(cls, pod: PodSettings, api_server: str = "", bind_address: str = "") -> Settings:
        """`api_server`: its host, where no provider may be."""
        allowed, refused = pod.allowed_provider_networks, pod.refused_provider_networks
        callers = tuple(
            ServiceAccountRule(one.namespace, one.name, one.tenant, frozenset(one.rollouts) if one.rollouts else None)
            for one in pod.auth_service_accounts
        )
        return cls(
            gateway=pod.gateway,
            namespace=pod.namespace,
            pod=pod.pod_name,
            pod_ip=pod.pod_ip,
            state_dir=pod.state_dir,
            provider_keys_dir=pod.provider_keys_dir,
            caller_keys_dir=pod.caller_keys_dir,
            networks=Networks.of(allowed, refused, api_server),
            auth=Auth(pod.auth_mode, pod.auth_audience, callers or (ServiceAccountRule(pod.namespace),)),
            limits=pod.limits,
            drain_seconds=pod.drain_seconds,
            bind_address=bind_address,
        )


class _Server(uvicorn.Server):
    """Leaves signals to the process: there are two servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """All parts of one pod."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counters = Counters()
        self.counters.in_flight_file.open(settings.state_dir)
        self.providers = ProviderPool(settings.provider_keys_dir, settings.networks)
        store = Store(settings.state_dir, lambda operation: self.counters.disk_errors.update((operation,)))
        self.registry = Registry(Loader(self.providers, self.counters.in_flight_file), store, self.counters)
        self.watch: ConfigurationWatch | None = None
        self.draining = False
        auth = settings.auth
        tokens = TokenReviews(auth.audience, auth.service_accounts, self._post)
        self.authenticator = authenticator_for(auth, CallerKeys(settings.caller_keys_dir), tokens)
        self.authenticator.refresh()
        self.problems = PodProblems(self.authenticator, time.monotonic)
        self.reporter = PodReporter(settings.pod, self.registry, self.counters, self.current_problems)
        self.client: ApiClient | None = None
        self.serving_app = ServingApp(
            self.registry,
            self.counters,
            settings.limits,
            settings.pod_ip,
            settings.admin_port,
            authenticator=self.authenticator,
        )
        self.admin_app = AdminApp(self.reporter, self.counters, self.state, self.serving_app.reports)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Post a TokenReview or a SelfSubjectAccessReview. Raises ApiException, ApiUnavailable."""
        if self.client is None:
            raise cluster.ApiUnavailable("not connected yet")
        return await cluster.request(self.client, "POST", path, body=body, timeout_seconds=5.0)

    async def refresh(self) -> None:
        """Read caller keys again and update the problems; called every second."""
        await asyncio.to_thread(self.authenticator.refresh)  # thousands of callers are thousands of files
        self.problems.update(self.registry.all(), self.registry.not_loaded())

    def current_problems(self) -> list[PodProblem]:
        """For the report. Of now: the operator asks as soon as a delivery is in service, and then once a minute."""
        self.problems.update(self.registry.all(), self.registry.not_loaded())
        return self.problems.current()

    async def check_tokens(self) -> None:
        """Check regularly that tokens can be reviewed, if ServiceAccounts may call."""
        while self.authenticator.tokens is not None:
            await self.authenticator.tokens.check()
            await asyncio.sleep(CHECK_SECONDS)

    def state(self) -> PodState:
        return PodState(
            rollouts=list(self.registry.all()),
            retries=self.providers.retries(),
            renders=self.registry.renders,
            api_contact_at=self.watch.api_contact_at if self.watch else None,
            ready=bool(self.watch and self.watch.ready) and not self.draining,
            concurrency_limit=self.serving_app.admission.concurrency.limit,
            providers_down=self.problems.down(),
            token_reviews_forbidden=self.authenticator.tokens is not None and self.authenticator.tokens.forbidden,
            caller_keys=None if self.authenticator.keys is None else len(self.authenticator.keys),
        )


def collect_seldom() -> None:
    """By default Python collects garbage after every 700 new objects, and scans all live objects now and then: with
    1,000 requests in flight that took as long as answering them (measured: 410 to 570 µs of CPU a request, against 250
    to 330)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ClusterError where no API server is configured."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    collect_seldom()
    with ended_if_hung():
        await _run(settings, stop)


async def _run(settings: Settings, stop: asyncio.Event) -> None:
    gateway = Gateway(settings)
    async with await cluster.connect() as client:
        gateway.client = client
        gateway.watch = ConfigurationWatch(
            client,
            settings.namespace,
            settings.gateway,
            gateway.registry,
            gateway.providers,
            every_second=gateway.refresh,
        )
        checks = asyncio.create_task(gateway.check_tokens())
        source = asyncio.create_task(gateway.watch.run())
        try:
            await serve(gateway, stop, source)
        finally:
            for task in (source, checks):
                task.cancel()
            await asyncio.gather(source, checks, return_exceptions=True)
            await gateway.serving_app.close()
            await gateway.providers.close()


async def serve(gateway: Gateway, stop: asyncio.Event, source: asyncio.Task[None]) -> None:
    """Serve both ports until `stop` is set or `source` fails. Then, in order: become unready, wait for the endpoint
    lag, let callers with idle connections leave, finish the requests in flight."""
    settings = gateway.settings
    serving, admin = server_of(gateway.serving_app, settings.drain_seconds), server_of(gateway.admin_app, 1)
    ports = ((serving, settings.port), (admin, settings.admin_port))
    sockets = [listening_socket(settings.bind_address, port) for _, port in ports]
    tasks = [asyncio.create_task(one.serve([its])) for (one, _), its in zip(ports, sockets, strict=True)]
    stopping = asyncio.create_task(stop.wait())
    logger.info("gateway %s: http %d, admin %d", settings.gateway, settings.port, settings.admin_port)
    await asyncio.wait([stopping, source, *tasks], return_when=asyncio.FIRST_COMPLETED)
    gateway.draining = gateway.serving_app.draining = True
    if stopping.done():
        logger.info("stopping: %d requests in flight", gateway.counters.in_flight)
        await _let_callers_leave(serving, settings)
    stopping.cancel()
    for server, task in zip((serving, admin), tasks, strict=True):
        server.should_exit = True
        await task  # the admin port answers until the last request is over
    if source.done():
        source.result()


async def _let_callers_leave(serving: uvicorn.Server, settings: Settings) -> None:
    """Keep idle connections open for a while: a caller may be sending a request on one, which would be lost if it were
    closed. The answer closes the connection, so the next request goes to another pod. Connections without a request are
    kept until half of the drain time is over, so that a late request still has time to finish."""
    clock = asyncio.get_running_loop().time
    began = clock()
    await asyncio.sleep(settings.endpoint_lag_seconds)
    while serving.server_state.connections and clock() - began < settings.drain_seconds / 2:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
    left = settings.endpoint_lag_seconds + settings.drain_seconds - (clock() - began)
    serving.config.timeout_graceful_shutdown = max(1, math.ceil(left))


def server_of(app: Any, graceful_seconds: int) -> uvicorn.Server:
    """A server for one of the two ports."""
    return _Server(
        uvicorn.Config(
            app,
            http=StrictProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,  # longer than usual idle times of proxies: they must be first to close
            timeout_graceful_shutdown=graceful_seconds,
        )
    )
