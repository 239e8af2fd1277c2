"""The verbs of `kubectl argo rollouts`, for prompts: each writes one annotation and waits for the operator's answer."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import click

from promptrollout import cluster
from promptrollout.api.command import Command, Verb, new_id
from promptrollout.api.decisions import DecisionReason
from promptrollout.api.names import API_VERSION, FIELD_MANAGER_CLI
from promptrollout.api.rollout import Decision
from promptrollout.cli.connection import EXIT_FAILED, EXIT_TIMEOUT, Flags, Object, Target, cluster_command

WAIT_SECONDS: Final = 10.0

_name = click.argument("name")
_reason = click.option("--reason", default="", metavar="TEXT", help="Reason, recorded with the decision.")
_wait = click.option(
    "--wait/--no-wait", default=True, show_default=True, help=f"Wait up to {WAIT_SECONDS:.0f} s for the answer."
)


def _verb(function: Callable[..., Any]) -> click.Command:
    """The command of a verb: NAME, --reason, --wait and kubectl's flags."""
    return click.command()(_name(_reason(_wait(cluster_command(function)))))


@click.option("--full", is_flag=True, help="Skip evidence too.")
@_verb
async def promote(flags: Flags, name: str, reason: str, wait: bool, full: bool) -> int:
    """End the pause step, or skip the rest of the step's time. Evidence is still needed.

    With --full, go to 100 % at once, without evidence and without a holdback; who did so and why is recorded. During
    the bake it ends the holdback.
    """
    return await command(flags, "promote-full" if full else "promote", name, reason, wait)


@_verb
async def abort(flags: Flags, name: str, reason: str, wait: bool) -> int:
    """Set the canary's weight to 0 at once. Its version stays rejected until `retry`."""
    return await command(flags, "abort", name, reason, wait)


@_verb
async def retry(flags: Flags, name: str, reason: str, wait: bool) -> int:
    """Try the rejected version again, without earlier evidence and at a stricter level."""
    return await command(flags, "retry", name, reason, wait)


@_verb
async def pause(flags: Flags, name: str, reason: str, wait: bool) -> int:
    """Hold the rollout until `resume`. A breach still rolls back."""
    return await command(flags, "pause", name, reason, wait)


@_verb
async def resume(flags: Flags, name: str, reason: str, wait: bool) -> int:
    """End `pause`. To end a pause step, use `promote`."""
    return await command(flags, "resume", name, reason, wait)


@_verb
async def undo(flags: Flags, name: str, reason: str, wait: bool) -> int:
    """Go back to the previous version. The current one stays rejected until `retry`. The spec is not changed."""
    return await command(flags, "undo", name, reason, wait)


async def command(flags: Flags, verb: Verb, name: str, reason: str, wait: bool) -> int:
    """Write the verb and report its result; returns the exit code."""
    async with flags.target() as target:
        rollout, user = await asyncio.gather(target.rollout(name), target.user())
        given = bound(rollout, verb, user, reason)
        known = {decision["id"] for decision in rollout["status"].get("history", ())}
        await write(target, rollout, given)
        if not wait:
            click.echo(f"{verb} written to rollout {name} (id {given.id})")
            return 0
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                status = await handled(target, name, given.id)
        except TimeoutError:
            click.echo(
                f"{verb} is written, but no operator handled it within {WAIT_SECONDS:.0f} s; it acts later. "
                f"To send everybody to stable without the operator: promptrollout emergency stable {name} "
                f"-n {target.namespace}",
                err=True,
            )
            return EXIT_TIMEOUT
    return report(verb, name, given, news(status, known))


def bound(rollout: Object, verb: Verb, by: str, reason: str) -> Command:
    """The command, tied to what the rollout's status says now. Raises click.ClickException if it says nothing yet."""
    status = rollout.get("status") or {}
    if not status.get("stage"):
        why = f": {status['message']}" if status.get("message") else ""
        raise click.ClickException(f"no operator has started rollout {rollout['metadata']['name']} yet{why}")
    return Command(
        id=new_id(),
        verb=verb,
        rollout_uid=rollout["metadata"]["uid"],
        revision=status.get("revision", 0),
        attempt=status.get("attempt", 1),
        step=status.get("currentStepIndex", 0),
        by=by[:128],
        reason=reason[:512],
    )


async def write(target: Target, rollout: Object, given: Command) -> None:
    """The annotation, by server-side apply. With the uid: a rollout recreated meanwhile is a conflict, and a deleted
    one is not created."""
    metadata = rollout["metadata"]
    body = {
        "apiVersion": API_VERSION,
        "kind": "PromptRollout",
        "metadata": {"name": metadata["name"], "uid": metadata["uid"], "annotations": given.to_annotation()},
    }
    await cluster.apply(target.client, target.rollout_path(metadata["name"]), body, FIELD_MANAGER_CLI)


async def handled(target: Target, name: str, identity: str) -> Object:
    """The first status that contains the command's id."""
    path = target.rollout_path()
    async for kind, item in cluster.watch(target.client, path, field_selector=f"metadata.name={name}"):
        if kind == "DELETED":
            raise click.ClickException(f"rollout {name} was deleted while waiting")
        status: Object = item.get("status") or {}
        if identity in status.get("handledCommands", ()):
            return status
    raise AssertionError("a watch never ends")


def news(status: Object, known: set[str]) -> list[Decision]:
    """Decisions since then, oldest first."""
    history = [Decision.model_validate(entry) for entry in status.get("history", ())]
    return [decision for decision in reversed(history) if decision.id not in known]


def report(verb: Verb, name: str, given: Command, decisions: list[Decision]) -> int:
    """Print the refusal, or what was decided; returns the exit code.

    A refusal without the command's id is of an operator of the release before: it may be another's, and a pipeline must
    not take it for success.
    """
    for decision in decisions:
        if decision.reason == DecisionReason.COMMAND_REFUSED and decision.command in (given.id, None):
            click.echo(f"rollout {name}: {decision.message}", err=True)
            return EXIT_FAILED
    for decision in decisions:
        click.echo(f"rollout {name}: {decision.reason}: {decision.message}")
    if not decisions:
        click.echo(f"rollout {name}: {verb} done")
    return 0
