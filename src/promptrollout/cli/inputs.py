"""The inputs of `simulate` and `plan`: manifests and extras, with errors that say what to do."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from promptrollout.api.rollout import Snapshot
from promptrollout.cli.main import not_installed
from promptrollout.cli.manifests import Manifest, files_below, read
from promptrollout.simulation.rules import Body, rules_of

COLUMNS = 80
"""Columns of a pipe or a file."""


def files_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "-f",
        "--file",
        "files",
        multiple=True,
        required=True,
        type=click.Path(exists=True, path_type=Path),
        help="Manifests: the rollout, and the PromptSLOs and PromptVersions that it names. May be given several times.",
    )(function)


def name_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option("--name", help="Which rollout, if there are several in the files.")(function)


def bodies_in(files: Sequence[Path]) -> list[Body]:
    """All objects in the files and in the directories among them."""
    found: list[Body] = []
    for path in (each for name in files for each in files_below(name)):
        try:
            documents = list(read(str(path), path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise click.ClickException(f"{path}: {error}") from error
        for document in documents:
            if not isinstance(document, Manifest):
                raise click.ClickException(f"{document.source}:{document.line}: {document.reason}")
            if isinstance(document.body, dict):
                found.append(document.body)
    return found


def rules_in(files: Sequence[Path], name: str | None) -> tuple[str, Snapshot]:
    """Name and rules of the rollout."""
    try:
        return rules_of(bodies_in(files), name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def require(package: str) -> None:
    """Say how to install a missing package, instead of a traceback."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise not_installed(package) from error


@contextmanager
def working(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Shows progress on a terminal; call what it yields after each of `total` parts."""
    counted = () if total is None else (BarColumn(), MofNCompleteColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def console() -> Console:
    found = Console()
    return found if found.is_terminal else Console(width=COLUMNS)
