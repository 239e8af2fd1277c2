"""`promptrollout emergency`: an override that gateway pods watch themselves, so it works with the operator down."""

import click

from promptrollout import cluster
from promptrollout.api.names import FIELD_MANAGER_CLI, LABEL_OVERRIDE, OVERRIDE_PREFIX
from promptrollout.cli.connection import Flags, Object, Target, cluster_command
from promptrollout.cluster import ApiException


@click.group()
def emergency() -> None:
    """Send everybody to stable, even with the operator down.

    `stable` writes a ConfigMap that the gateway pods watch themselves. An operator that runs, or comes back, treats it
    as an abort: the canary's version is rejected. `clear` takes the override away.
    """


@emergency.command()
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the override object.")
@cluster_command
async def stable(flags: Flags, name: str, reason: str) -> None:
    """Send all users of rollout NAME to its stable version."""
    async with flags.target() as target:
        await _known(target, name)
        await cluster.request(
            target.client,
            "PATCH",
            _path(target, name),
            params={"fieldManager": FIELD_MANAGER_CLI, "force": "true"},
            body=override(name, reason),
            content_type=cluster.APPLY_PATCH,
        )
        click.echo(
            f"rollout {name}: override written; every gateway pod that reaches the API server answers from stable now. "
            f"Take it away with: promptrollout emergency clear {name} -n {target.namespace}"
        )


@emergency.command()
@click.argument("name")
@cluster_command
async def clear(flags: Flags, name: str) -> None:
    """Take the override of rollout NAME away."""
    async with flags.target() as target:
        try:
            await cluster.request(target.client, "DELETE", _path(target, name))
        except ApiException as error:
            if error.status != 404:
                raise
            raise click.ClickException(f"no override of {name} in namespace {target.namespace}") from error
        click.echo(f"rollout {name}: override removed; traffic is split again as the rollout says")


def override(name: str, reason: str) -> Object:
    """The object that sends everybody to stable. It has no owner: it must outlive a rollout that is replaced."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": OVERRIDE_PREFIX + name, "labels": {LABEL_OVERRIDE: name}},
        "data": {"arm": "stable"} | ({"reason": reason} if reason else {}),
    }


def _path(target: Target, name: str) -> str:
    return f"/api/v1/namespaces/{target.namespace}/configmaps/{OVERRIDE_PREFIX}{name}"


async def _known(target: Target, name: str) -> None:
    """Refuses a misspelt name. Whatever else keeps the rollout from being read must not stop an emergency."""
    try:
        await target.rollout(name)
    except ApiException as error:
        click.echo(f"rollout {name} could not be read ({error.reason}); the override is written all the same", err=True)
