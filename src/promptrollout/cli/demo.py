"""`promptrollout demo`: a good and a bad change of a prompt, on a real control plane, in a minute."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from promptrollout.sandbox.assets.inventory import find_kubectl
from promptrollout.sandbox.demo import story as story
from promptrollout.sandbox.settings import SandboxError


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running and say how to connect to it.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=story.Options().directory,
    show_default="promptrollout/demo in $XDG_STATE_HOME or ~/.local/state",
    help="Where the demo's sandbox keeps its files. If a sandbox still runs there, the demo does not start.",
)
@click.option("--users", type=click.IntRange(min=1), default=story.Options.users, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(min=1, max=5000),
    default=story.Options.requests_per_second,
    show_default=True,
    help="Requests per second of all users together.",
)
def demo(keep: bool, directory: Path, users: int, rate: float) -> None:
    """Canary two changes of a prompt: a good one that reaches everybody, and a bad one that is rolled back.

    Starts a sandbox of its own, installs the operator from its Helm chart, applies examples/quickstart, sends traffic
    of simulated users and changes the prompt twice. Exit code 0 only if both changes ended as they should.
    """
    try:
        find_kubectl(os.environ)
    except SandboxError as error:
        raise click.ClickException(str(error)) from error
    options = story.Options(directory=directory.resolve(), keep=keep, users=users, requests_per_second=rate)
    # a demo that is told to stop takes its sandbox down, as it does after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # a pipe or a file has no width of its own; tables need room
    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        ended_well = story.run(options, console)
    except SandboxError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if ended_well else 1)
