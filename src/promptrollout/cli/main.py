"""The root command; each subcommand lives in a module of its own."""

import click

from promptrollout import __version__
from promptrollout.cli.sandbox import sandbox


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="promptrollout")
def main() -> None:
    """Progressive delivery for prompts on Kubernetes."""


main.add_command(sandbox)
