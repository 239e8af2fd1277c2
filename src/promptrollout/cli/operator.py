"""`promptrollout operator`: the process that reconciles; started by the chart's Deployment, not by people."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click
import uvloop

from promptrollout.cluster import ClusterError
from promptrollout.operator.app import serve
from promptrollout.operator.config import ConfigError, load, pod_environment


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/etc/promptrollout/config.yaml"),
    show_default=True,
    help="Metrics sources, namespaces, log level, image of gateways.",
)
def operator(config_file: Path) -> None:
    """Run the operator."""
    try:
        config = load(config_file)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    # a line for every event that it hands over, and in an outage one for every watch and try: we say it once ourselves
    logging.getLogger("kopf").setLevel(logging.ERROR)
    logging.getLogger("kopf._cogs.clients").setLevel(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, pod_environment()))
    except ClusterError as error:
        raise click.ClickException(str(error)) from error
