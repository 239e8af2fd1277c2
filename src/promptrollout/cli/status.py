"""`promptrollout status`: one rollout as a tree, all of them as a list, or the wait that CI needs."""

import asyncio
import contextlib
import json
from typing import Any, Final

import click
import yaml

from promptrollout import cluster
from promptrollout.api.names import short_digest
from promptrollout.api.rollout import PromptRollout
from promptrollout.cli.connection import EXIT_FAILED, EXIT_TIMEOUT, Flags, Object, Target, cluster_command
from promptrollout.cluster import custom_path

REFRESH_SECONDS: Final = 1.0
PIPE_WIDTH: Final = 160


@click.command()
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="Without NAME: list the rollouts of all namespaces.")
@click.option("-w", "--watch", is_flag=True, help="Follow until interrupted.")
@click.option("--wait", is_flag=True, help="Wait until Healthy (exit 0) or Degraded (exit 1); exit 2 at --timeout.")
@click.option(
    "--digest",
    default="",
    metavar="D",
    help="With --wait: digest of the version to wait for; 10 characters are enough.",
)
@click.option(
    "--timeout", default="10m", show_default=True, metavar="TIME", help="With --wait: how long, such as 90s, 10m or 2h."
)
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Print the object.")
@cluster_command
async def status(
    flags: Flags,
    name: str | None,
    all_namespaces: bool,
    watch: bool,
    wait: bool,
    digest: str,
    timeout: str,
    output: str | None,
) -> int:
    """Show rollout NAME: arms, step, weight, evidence, last decisions. Without NAME: list the namespace's rollouts."""
    if name and all_namespaces:
        raise click.UsageError("a name belongs to one namespace: give NAME with -n, or --all-namespaces alone")
    if (watch or wait) and not name:
        raise click.UsageError("--watch and --wait need the NAME of a rollout")
    if watch and (wait or output):
        raise click.UsageError("--watch cannot be combined with --wait or --output")
    if digest and not wait:
        raise click.UsageError("--digest needs --wait")
    seconds = parse_seconds(timeout)
    async with flags.target() as target:
        if name and wait:
            return await _wait(target, name, digest, seconds, output)
        if name and watch:
            await _watch(target, name)
            return 0
        if name:
            _show(await target.rollout(name), output)
            return 0
        path = custom_path("promptrollouts") if all_namespaces else target.rollout_path()
        _show(await cluster.request(target.client, "GET", path), output, all_namespaces)
        return 0


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `10m` or `2h` in seconds. Raises click.BadParameter."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m", "h") else (text, "s")
    try:
        seconds = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is not a positive time; write 90s, 10m or 2h", param_hint="--timeout")
    return seconds


def outcome(rollout: Object, digest: str) -> tuple[int | None, str]:
    """The result of the rollout for the version of `digest` (or what the spec asks for): exit code and why.

    The code is None while it is open. A phase counts only once the operator has seen the present spec.
    """
    wanted = digest.removeprefix("sha256:").lower()
    parsed = PromptRollout.model_validate(rollout)
    current = parsed.status
    if current is None or current.phase is None:
        return None, "the operator has not reported on it yet"
    if wanted:
        for rejected in current.rejected:
            if short_digest(rejected.digest) == wanted[:10] and rejected.digest[7:].startswith(wanted):
                return EXIT_FAILED, f"{short_digest(rejected.digest)} was rejected: {rejected.reason}"
    if (current.observed_generation or 0) < parsed.metadata.generation:
        return None, "the operator has not processed the latest change yet"
    stable = current.stable.digest[7:] if current.stable else ""
    if current.phase == "Healthy" and stable.startswith(wanted):
        return 0, f"Healthy on {stable[:10]}"
    if current.phase == "Degraded":
        return EXIT_FAILED, f"Degraded: {current.message}"
    if current.phase == "Healthy":
        # nothing is in progress, and it is another version: this one was superseded, or the digest is not the spec's
        return EXIT_FAILED, f"Healthy on {stable[:10]}, not on {wanted[:10]}: the spec asks for another version"
    return None, f"{current.phase}: {current.message}"


async def _wait(target: Target, name: str, digest: str, seconds: float, output: str | None) -> int:
    said = ""
    latest = await target.rollout(name)
    code: int | None = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            events = cluster.watch(target.client, target.rollout_path(), field_selector=f"metadata.name={name}")
            async for kind, item in events:
                if kind == "SYNCED":
                    continue
                if kind == "DELETED":
                    raise click.ClickException(f"rollout {name} was deleted while waiting")
                latest = item
                code, why = outcome(item, digest)
                if why != said:
                    click.echo(f"rollout {name}: {why}", err=True)
                    said = why
                if code is not None:
                    break
    if code is None:
        click.echo(f"rollout {name}: still open after {seconds:.0f} s", err=True)
        code = EXIT_TIMEOUT
    _show(latest, output)
    return code


async def _watch(target: Target, name: str) -> None:
    from rich.console import Console
    from rich.live import Live

    from promptrollout.cli.status_view import view_that_fits

    latest = await target.rollout(name)
    console = Console()
    if not console.is_terminal:
        # no screen to redraw: one report for each change of what a reader would see
        async for _, item in cluster.watch(
            target.client, target.rollout_path(), field_selector=f"metadata.name={name}"
        ):
            if item and _headline(item) != _headline(latest):
                latest = item
                _show(item, None)
        return
    with Live(view_that_fits(latest, console), console=console, auto_refresh=False) as live:

        async def redraw() -> None:
            while True:  # ages grow even if nothing changes
                live.update(view_that_fits(latest, console), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

        drawing = asyncio.create_task(redraw())
        try:
            events = cluster.watch(target.client, target.rollout_path(), field_selector=f"metadata.name={name}")
            async for kind, item in events:
                if kind == "DELETED":
                    raise click.ClickException(f"rollout {name} was deleted")
                if item:
                    latest = item
                    live.update(view_that_fits(latest, console), refresh=True)
        finally:
            drawing.cancel()


def _headline(rollout: Object) -> tuple[Any, ...]:
    current = rollout.get("status") or {}
    first = (current.get("history") or [{}])[0]
    return (current.get("phase"), current.get("message"), current.get("step"), current.get("weight"), first.get("id"))


def _show(shown: Object, output: str | None, all_namespaces: bool = False) -> None:
    if output:
        shown.get("metadata", {}).pop("managedFields", None)
        for item in shown.get("items", ()):
            item.get("metadata", {}).pop("managedFields", None)
        click.echo(json.dumps(shown, indent=2) if output == "json" else yaml.safe_dump(shown, sort_keys=False), nl=True)
        return
    from rich.console import Console

    from promptrollout.cli.status_view import list_view, rollout_view

    view = list_view(shown["items"], all_namespaces) if "items" in shown else rollout_view(shown)
    console = Console()
    if console.is_terminal:
        console.print(view)
        return
    # in a file or a pipe: a fixed width, and no blanks at the ends of lines
    console = Console(width=PIPE_WIDTH)
    with console.capture() as captured:
        console.print(view)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
