"""The root command; each subcommand lives in a module of its own, which is imported only when it is called."""

import importlib
import os
from pathlib import Path
from typing import Final

import click

from promptrollout import __version__

# name, where its click command is, what the list of commands says of it
COMMANDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("status", "promptrollout.cli.status:status", "Show a rollout, or list all of them."),
    ("promote", "promptrollout.cli.verbs:promote", "End a pause, or skip a step's time; --full skips evidence too."),
    ("abort", "promptrollout.cli.verbs:abort", "Roll the canary back and reject its version."),
    ("retry", "promptrollout.cli.verbs:retry", "Try a rejected version again."),
    ("pause", "promptrollout.cli.verbs:pause", "Hold a rollout; a breach still rolls back."),
    ("resume", "promptrollout.cli.verbs:resume", "End `pause`."),
    ("undo", "promptrollout.cli.verbs:undo", "Go back to the previous version, and reject the current one."),
    ("emergency", "promptrollout.cli.emergency:emergency", "Send everybody to stable, even with the operator down."),
    ("lint", "promptrollout.cli.lint:lint", "Check manifests without a cluster."),
    ("plan", "promptrollout.cli.plan:plan", "Say what a rollout can detect with a given traffic."),
    ("simulate", "promptrollout.cli.simulate:simulate", "Run a rollout against synthetic, recorded or past metrics."),
    ("demo", "promptrollout.cli.demo:demo", "Watch a good and a bad prompt change in a sandbox."),
    ("sandbox", "promptrollout.cli.sandbox:sandbox", "Run a local control plane with the operator in it."),
    ("operator", "promptrollout.cli.operator:operator", "Run the operator (in its pod)."),
    ("gateway", "promptrollout.cli.gateway:gateway", "Run a gateway pod (in its pod)."),
)

EXTRAS: Final = {"cryptography": "sandbox", "matplotlib": "simulate", "numpy": "simulate"}
"""The extra that installs a package, where it is not one of the cluster's."""


def not_installed(package: str) -> click.ClickException:
    """How to install a package, instead of a traceback."""
    return click.ClickException(
        f"this needs {package}, which is not installed: pip install '.[{EXTRAS.get(package, 'simulate')}]'"
    )


class LazyGroup(click.Group):
    """Imports a subcommand when it is called: a gateway pod needs no rich, `status` no kopf."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, _, _ in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for name, target, _ in COMMANDS:
            if name == cmd_name:
                module, _, attribute = target.partition(":")
                _have_a_home()
                try:
                    command: click.Command = getattr(importlib.import_module(module), attribute)
                except ModuleNotFoundError as error:
                    package = (error.name or "").partition(".")[0]
                    if package not in EXTRAS:
                        raise
                    raise not_installed(package) from error
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, _, summary in COMMANDS])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="promptrollout")
def main() -> None:
    """Progressive delivery for prompts on Kubernetes."""
    _no_proxy_on_loopback()


def _have_a_home() -> None:
    """As container runtimes do for a UID without a passwd entry: the kubernetes package asks where home is while it is
    imported."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _no_proxy_on_loopback() -> None:
    """As kubectl does: a proxy of the environment cannot reach what listens on this machine only."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", "::1")))
