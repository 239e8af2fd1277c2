"""`promptrollout emergency`: an override that gateway pods watch themselves, so it works with the operator down."""

import click

from promptrollout import cluster
from promptrollout.api.names import FIELD_MANAGER_CLI, GROUP, LABEL_OVERRIDE, OVERRIDE_ARM, OVERRIDES_NAME
from promptrollout.cli.connection import Flags, Object, Target, cluster_command
from promptrollout.cluster import ApiException


@click.group()
def emergency() -> None:
    """Send everybody to stable, even with the operator down.

    `stable` writes a ConfigMap that the gateway pods watch themselves. An operator that runs, or comes back, treats it
    as an abort: the canary's version is rejected. `clear` removes the override.
    """


@emergency.command()
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Reason, kept in the override object.")
@cluster_command
async def stable(flags: Flags, name: str, reason: str) -> None:
    """Send all users of rollout NAME to its stable version."""
    async with flags.target() as target:
        await _known(target, name)
        await _write(target, override(name, reason))
        click.echo(
            f"rollout {name}: override written: gateway pods that reach the API server send all users to stable. "
            f"End it with: promptrollout emergency clear {name} -n {target.namespace}"
        )


@emergency.command()
@click.argument("name")
@cluster_command
async def clear(flags: Flags, name: str) -> None:
    """Remove the override of rollout NAME."""
    async with flags.target() as target:
        try:
            item = await cluster.request(target.client, "GET", _path(target))
        except ApiException as error:
            if error.status != 404:
                raise
            item = {}
        if name not in (item.get("data") or {}):
            raise click.ClickException(f"rollout {name} in namespace {target.namespace} has no override")
        removal = {"data": {name: None}, "metadata": {"annotations": {_reason(name): None}}}
        await _patch(target, removal)
        click.echo(f"rollout {name}: override removed: users are split by the rollout's weight again")


def override(name: str, reason: str) -> Object:
    """The object that sends everybody to stable. It has no owner: it must outlive a rollout that is replaced."""
    metadata: Object = {"name": OVERRIDES_NAME, "labels": {LABEL_OVERRIDE: "true"}}
    if reason:
        metadata["annotations"] = {_reason(name): reason}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {name: OVERRIDE_ARM}}


def _reason(name: str) -> str:
    """The annotation that keeps the reason; a rollout's name has at most 52 characters, so it fits."""
    return f"{GROUP}/reason-{name}"


async def _write(target: Target, body: Object) -> None:
    """Add to the ConfigMap, or make it: other rollouts' overrides in it stay."""
    try:
        await _patch(target, body)
    except ApiException as error:
        if error.status != 404:
            raise
        try:
            collection = _path(target).rpartition("/")[0]
            await cluster.request(
                target.client, "POST", collection, params={"fieldManager": FIELD_MANAGER_CLI}, body=body
            )
        except ApiException as other:
            if other.status != 409:
                raise
            await _patch(target, body)


async def _patch(target: Target, body: Object) -> None:
    await cluster.request(
        target.client,
        "PATCH",
        _path(target),
        params={"fieldManager": FIELD_MANAGER_CLI},
        body=body,
        content_type=cluster.MERGE_PATCH,
    )


def _path(target: Target) -> str:
    return f"/api/v1/namespaces/{target.namespace}/configmaps/{OVERRIDES_NAME}"


async def _known(target: Target, name: str) -> None:
    """Refuses a misspelt name. Whatever else keeps the rollout from being read must not stop an emergency."""
    try:
        await target.rollout(name)
    except ApiException as error:
        click.echo(f"rollout {name} could not be read ({error.reason}); the override is written anyway", err=True)
