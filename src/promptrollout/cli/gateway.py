"""`promptrollout gateway`: the serving pod's process. The operator's Deployment sets all of it by environment."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import click
import uvloop

from promptrollout.api.names import ENV_BIND_ADDRESS, PROVIDER_KEYS_DIR, STATE_DIR
from promptrollout.cluster import ClusterError, namespace
from promptrollout.gateway.app import Limits
from promptrollout.gateway.process import Settings, run


@click.command("gateway")
@click.option("--gateway", "name", envvar="PROMPTROLLOUT_GATEWAY", required=True, help="Name of the PromptGateway.")
@click.option("--namespace", "space", envvar="POD_NAMESPACE", help="Namespace of the deliveries; default: the pod's.")
@click.option("--pod-name", envvar="POD_NAME", default=socket.gethostname, help="In reports; default: the host's name.")
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
    help="Keys are read from <this>/<ModelProvider>/api-key.",
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
    "--drain-seconds",
    envvar="PROMPTROLLOUT_DRAIN_SECONDS",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="How long requests under way may finish after SIGTERM.",
)
def gateway(
    name: str,
    space: str | None,
    pod_name: str,
    pod_ip: str,
    state_dir: Path,
    provider_keys_dir: Path,
    max_request_bytes: int,
    max_concurrent_requests: int,
    drain_seconds: int,
) -> None:
    """Serve the rollouts of one PromptGateway."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        settings = Settings(
            gateway=name,
            namespace=space or namespace(),
            pod=pod_name,
            pod_ip=pod_ip,
            state_dir=state_dir,
            provider_keys_dir=provider_keys_dir,
            limits=Limits(max_request_bytes, max_concurrent_requests),
            drain_seconds=drain_seconds,
            bind_address=os.environ.get(ENV_BIND_ADDRESS) or "0.0.0.0",
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except ClusterError as error:
        raise click.ClickException(str(error)) from error
