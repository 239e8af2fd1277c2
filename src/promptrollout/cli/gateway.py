"""`promptrollout gateway`: the serving pod's process. The operator's Deployment sets all of it by environment."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import click
import uvloop
from pydantic import TypeAdapter, ValidationError

from promptrollout.api.gateway import ServiceAccountCallers
from promptrollout.api.names import (
    CALLER_KEYS_DIR,
    ENV_ALLOWED_NETWORKS,
    ENV_BIND_ADDRESS,
    ENV_REFUSED_NETWORKS,
    PROVIDER_KEYS_DIR,
    STATE_DIR,
)
from promptrollout.api.networks import Networks
from promptrollout.cluster import ClusterError, namespace
from promptrollout.gateway.auth.authenticate import Auth, AuthMode
from promptrollout.gateway.auth.token_reviews import ServiceAccountRule
from promptrollout.gateway.process import Settings, run
from promptrollout.gateway.server.app import Limits


@click.command("gateway")
@click.option("--gateway", "name", envvar="PROMPTROLLOUT_GATEWAY", required=True, help="Name of the PromptGateway.")
@click.option("--namespace", "space", envvar="POD_NAMESPACE", help="Namespace of the deliveries; default: the pod's.")
@click.option(
    "--pod-name", envvar="POD_NAME", default=socket.gethostname, help="Name in reports. Default: the host's name."
)
@click.option("--pod-ip", envvar="POD_IP", default="", help="Where the gateway's other pods reach this one.")
@click.option(
    "--state-dir",
    envvar="PROMPTROLLOUT_STATE_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=STATE_DIR,
    show_default=True,
    help="Where the last good configuration is kept.",
)
@click.option(
    "--provider-keys-dir",
    envvar="PROMPTROLLOUT_PROVIDER_KEYS_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=PROVIDER_KEYS_DIR,
    show_default=True,
    help="Keys are read from <this>/<ModelProvider>/<keySource>/api-key.",
)
@click.option(
    "--allowed-provider-networks",
    envvar=ENV_ALLOWED_NETWORKS,
    default="",
    help="CIDRs, separated by commas, of providers that are otherwise refused, such as 127.0.0.0/8.",
)
@click.option(
    "--refused-provider-networks",
    envvar=ENV_REFUSED_NETWORKS,
    default="",
    help="Further CIDRs, separated by commas, that are refused besides loopback, link-local and the like.",
)
@click.option(
    "--max-request-bytes",
    envvar="PROMPTROLLOUT_MAX_REQUEST_BYTES",
    type=click.IntRange(min=1024),
    default=Limits.max_request_bytes,
    show_default=True,
)
@click.option(
    "--max-concurrent-requests",
    envvar="PROMPTROLLOUT_MAX_CONCURRENT_REQUESTS",
    type=click.IntRange(min=1),
    default=Limits.max_concurrent_requests,
    show_default=True,
)
@click.option(
    "--max-queued-requests",
    envvar="PROMPTROLLOUT_MAX_QUEUED_REQUESTS",
    type=click.IntRange(min=0),
    default=Limits.max_queued_requests,
    show_default=True,
)
@click.option(
    "--max-queue-milliseconds",
    envvar="PROMPTROLLOUT_MAX_QUEUE_MILLISECONDS",
    type=click.IntRange(min=1),
    default=Limits.max_queue_milliseconds,
    show_default=True,
)
@click.option(
    "--requests-per-minute-per-key",
    envvar="PROMPTROLLOUT_REQUESTS_PER_MINUTE_PER_KEY",
    type=click.IntRange(min=1),
    help="Default: no limit.",
)
@click.option(
    "--burst-per-key",
    envvar="PROMPTROLLOUT_BURST_PER_KEY",
    type=click.IntRange(min=1),
    default=Limits.burst_per_key,
    show_default=True,
)
@click.option(
    "--auth-mode",
    envvar="PROMPTROLLOUT_AUTH_MODE",
    type=click.Choice(["None", "Keys", "ServiceAccounts", "KeysAndServiceAccounts"]),
    default="None",
    show_default=True,
    help="How callers authenticate.",
)
@click.option(
    "--auth-audience",
    envvar="PROMPTROLLOUT_AUTH_AUDIENCE",
    default=Auth.audience,
    show_default=True,
    help="Audience of ServiceAccount tokens.",
)
@click.option(
    "--auth-service-accounts",
    envvar="PROMPTROLLOUT_AUTH_SERVICE_ACCOUNTS",
    default="[]",
    help="Who may call: JSON as in a PromptGateway's spec.auth.serviceAccounts.",
)
@click.option(
    "--caller-keys-dir",
    envvar="PROMPTROLLOUT_CALLER_KEYS_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=CALLER_KEYS_DIR,
    show_default=True,
    help="Hashes of callers' keys are read from <this>/<caller>.",
)
@click.option(
    "--drain-seconds",
    envvar="PROMPTROLLOUT_DRAIN_SECONDS",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="How long requests in progress may take after SIGTERM.",
)
def gateway(
    name: str,
    space: str | None,
    pod_name: str,
    pod_ip: str,
    state_dir: Path,
    provider_keys_dir: Path,
    allowed_provider_networks: str,
    refused_provider_networks: str,
    max_request_bytes: int,
    max_concurrent_requests: int,
    max_queued_requests: int,
    max_queue_milliseconds: int,
    requests_per_minute_per_key: int | None,
    burst_per_key: int,
    auth_mode: AuthMode,
    auth_audience: str,
    auth_service_accounts: str,
    caller_keys_dir: Path,
    drain_seconds: int,
) -> None:
    """Serve the rollouts of one PromptGateway."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        own = space or namespace()
        settings = Settings(
            gateway=name,
            namespace=own,
            pod=pod_name,
            pod_ip=pod_ip,
            state_dir=state_dir,
            provider_keys_dir=provider_keys_dir,
            networks=_networks(allowed_provider_networks, refused_provider_networks),
            caller_keys_dir=caller_keys_dir,
            auth=Auth(auth_mode, auth_audience, _rules(auth_service_accounts, own)),
            limits=Limits(
                max_request_bytes,
                max_concurrent_requests,
                max_queued_requests,
                max_queue_milliseconds,
                requests_per_minute_per_key,
                burst_per_key,
            ),
            drain_seconds=drain_seconds,
            bind_address=os.environ.get(ENV_BIND_ADDRESS, ""),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except ClusterError as error:
        raise click.ClickException(str(error)) from error


def _networks(allowed: str, refused: str) -> Networks:
    """Networks that providers may be in. Raises click.ClickException."""
    try:
        first, second = ([each.strip() for each in text.split(",") if each.strip()] for text in (allowed, refused))
        return Networks.of(first, second, os.environ.get("KUBERNETES_SERVICE_HOST", ""))
    except ValueError as error:
        raise click.ClickException(f"provider networks: {error}") from error


def _rules(text: str, own_namespace: str) -> tuple[ServiceAccountRule, ...]:
    """ServiceAccounts whose tokens are accepted. Raises click.ClickException."""
    try:
        found = TypeAdapter(list[ServiceAccountCallers]).validate_json(text)
    except ValidationError as error:
        raise click.ClickException(f"--auth-service-accounts: {error.errors()[0]['msg']}") from error
    return tuple(
        ServiceAccountRule(one.namespace, one.name, one.tenant, frozenset(one.rollouts) if one.rollouts else None)
        for one in found
    ) or (ServiceAccountRule(own_namespace),)
