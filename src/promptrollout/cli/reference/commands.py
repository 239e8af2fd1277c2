"""docs/reference/commands.md: usage, arguments and options of each command."""

import inspect
from collections.abc import Iterator
from typing import Final

import click

from promptrollout.cli.connection import Flags, cluster_command
from promptrollout.cli.main import COMMANDS, main
from promptrollout.cli.reference.markdown import HEAD, code, prose


@click.command()
@cluster_command
async def _any_of_a_cluster(flags: Flags) -> None:
    """Has the options of each command that speaks to a cluster."""


def _records(command: click.Command) -> list[tuple[str, str]]:
    """The options as `--help` lists them."""
    context = click.Context(command)
    found = (option.get_help_record(context) for option in command.get_params(context))
    return [record for record in found if record and record[0].startswith("-") and "--help" not in record[0]]


_CLUSTER_OPTIONS: Final = _records(_any_of_a_cluster)


def commands_page() -> str:
    """Usage, arguments and options of each command, as its `--help` says them."""
    context = click.Context(main, info_name="promptrollout")
    lines = [
        HEAD,
        "# Commands",
        "",
        "`promptrollout`, or `kubectl promptrollout`. How-to: [control a rollout](../how-to/control-a-rollout.md),",
        "[check manifests](../how-to/lint.md), [try rules](../how-to/simulate.md), [sandbox](../how-to/sandbox.md).",
        "A wrong command line is exit code 2, with the usage on standard error.",
        "",
        *(f"- [`{name}`](#promptrollout-{name}): {summary}" for name, _, summary in COMMANDS),
        "",
        "## Cluster options",
        "",
        "Of each command that speaks to a cluster:",
        "",
        *(_option(*record) for record in _CLUSTER_OPTIONS),
        "",
    ]
    for name, _, _ in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        lines += _command(command, f"promptrollout {name}", 2)
    return "\n".join(lines)


def _command(command: click.Command, name: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, terminal_width=10_000)
    yield from (f"{'#' * level} {name}", "", "```sh", context.command.get_usage(context).removeprefix("Usage: "))
    yield from ("```", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ("```", paragraph.removeprefix("\b").strip("\n"), "```", "")
        else:
            yield from (prose(paragraph), "")
    records = _records(command)
    yield from (_option(*record) for record in records if record not in _CLUSTER_OPTIONS)
    if any(record in _CLUSTER_OPTIONS for record in records):
        yield "- the [cluster options](#cluster-options)"
    yield ""
    if isinstance(command, click.Group):
        for inner_name in command.list_commands(context):
            inner = command.get_command(context, inner_name)
            assert inner is not None
            yield from _command(inner, f"{name} {inner_name}", level + 1)


def _option(named: str, meaning: str) -> str:
    return f"- {code(named)}: {prose(meaning)}" if meaning else f"- {code(named)}"
