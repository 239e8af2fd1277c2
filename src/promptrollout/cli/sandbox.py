"""`promptrollout sandbox`: a local control plane, Prometheus, operator and simulated model."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import click

from promptrollout.sandbox.assets.inventory import find_kubectl
from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import SandboxError, Settings, parse_duration

_dir = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the sandbox keeps its files.  [default: promptrollout/sandbox in $XDG_STATE_HOME or ~/.local/state]",
)


@click.group()
def sandbox() -> None:
    """Run everything on this machine: no Docker, no root, no cluster."""


@sandbox.command()
@_dir
@click.option("--scrape-interval", default="1s", show_default=True, help="How often Prometheus scrapes pods.")
@click.option("--operator/--no-operator", default=True, show_default=True, help="Install the chart.")
@click.option(
    "--values",
    "values",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file with values of the chart, as helm takes it; may be repeated.",
)
def up(directory: Path | None, scrape_interval: str, operator: bool, values: tuple[Path, ...]) -> None:
    """Start the sandbox; does nothing if it is up already."""
    started = time.monotonic()
    argument = f" --dir {shlex.quote(str(directory))}" if directory else ""
    with _clear_errors():
        settings = Settings(
            scrape_interval_seconds=parse_duration(scrape_interval, "--scrape-interval"),
            install_operator=operator,
            values_files=[str(file.resolve()) for file in values],
        )
        find_kubectl(os.environ)
        box = Sandbox(directory, settings)
        if box.up(lambda message: click.echo(message, err=True)):
            click.echo(f"The sandbox is up ({time.monotonic() - started:.1f} s).")
        else:
            click.echo("The sandbox is already up.")
            if values:
                again = f"to start it with --values, stop it first: promptrollout sandbox down{argument}"
                click.echo(f"It stays as it is; {again}", err=True)
    click.echo(f'Connect with: eval "$(promptrollout sandbox env{argument})"')


@sandbox.command()
@_dir
def down(directory: Path | None) -> None:
    """Stop everything that belongs to the sandbox."""
    with _clear_errors():
        stopped = Sandbox(directory).down()
    click.echo("The sandbox is down." if stopped else "No sandbox was running.")


@sandbox.command()
@_dir
def env(directory: Path | None) -> None:
    """Print `export` lines for a shell: eval "$(promptrollout sandbox env)"."""
    with _clear_errors():
        for name, value in Sandbox(directory).environment().items():
            click.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command()
@_dir
def status(directory: Path | None) -> None:
    """Show what runs; exit code 1 if the sandbox is down."""
    with _clear_errors():
        box = Sandbox(directory)
        if not box.is_up:
            raise SandboxError(f"no sandbox is running in {box.layout.root}")
        click.echo(f"directory  {box.layout.root}")
        for name, pid in box.processes().items():
            click.echo(f"{name:<24} {f'pid {pid}' if pid else 'stopped'}")
        for name, url in box.environment().items():
            click.echo(f"{name:<24} {url}")


class _clear_errors:
    """Turns a SandboxError into a message and exit code 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SandboxError):
            raise click.ClickException(str(error)) from error
