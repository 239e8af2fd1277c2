"""How the commands reach a cluster: kubectl's flags, a client, and errors that say what to do."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec

import click
from kubernetes.aio.client import ApiClient

from promptrollout import cluster
from promptrollout.api.names import API_VERSION
from promptrollout.cluster import ApiException, ApiUnavailable, ClusterError, custom_path

P = ParamSpec("P")
Object = dict[str, Any]

EXIT_FAILED: Final = 1
EXIT_TIMEOUT: Final = 2


@dataclass(frozen=True, slots=True)
class Target:
    """A client and the namespace that a command works in."""

    client: ApiClient
    namespace: str

    async def rollout(self, name: str) -> Object:
        """The rollout as it is now. Raises click.ClickException if there is none of that name."""
        try:
            return await cluster.request(self.client, "GET", self.rollout_path(name))
        except ApiException as error:
            if error.status != 404:
                raise
            raise click.ClickException(await self._not_found(name)) from error

    def rollout_path(self, name: str | None = None) -> str:
        return custom_path("promptrollouts", self.namespace, name)

    async def user(self) -> str:
        """Who the API server takes the caller for; the local user's name if it does not say."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        try:
            review = await cluster.request(self.client, "POST", path, body=body)
            return str(review["status"]["userInfo"]["username"])[:128]
        except (ApiException, KeyError):
            return (os.environ.get("USER") or "")[:128]

    async def _not_found(self, name: str) -> str:
        try:
            found = await cluster.request(self.client, "GET", self.rollout_path())
        except ApiException:
            return f"{API_VERSION} is unknown to this cluster: install the chart (see docs/get-started/install.md)"
        names = ", ".join(item["metadata"]["name"] for item in found["items"][:10]) or "none"
        return f"no PromptRollout {name} in namespace {self.namespace} (it has: {names}); choose another with -n"


@dataclass(frozen=True, slots=True)
class Flags:
    """The values of kubectl's flags of the same names; empty where absent."""

    namespace: str
    context: str
    kubeconfig: str

    @asynccontextmanager
    async def target(self) -> AsyncIterator[Target]:
        named = (self.kubeconfig, self.context)
        async with await cluster.connect(*named) as client:
            yield Target(client, self.namespace or cluster.namespace(*named))


def cluster_command(function: Callable[Concatenate[Flags, P], Awaitable[int | None]]) -> Callable[P, None]:
    """A click callback from an async function: adds kubectl's flags, runs it, and turns what it returns into the exit
    code and what it raises into one line of text."""

    @click.option(
        "-n", "--namespace", default="", metavar="NAME", help="Namespace. Default: that of the kubeconfig's context."
    )
    @click.option("--context", default="", metavar="NAME", help="Context of the kubeconfig. Default: the current one.")
    @click.option(
        "--kubeconfig", default="", metavar="FILE", help="Kubeconfig file. Default: $KUBECONFIG, then ~/.kube/config."
    )
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        flags = Flags(*(str(kwargs.pop(name)) for name in ("namespace", "context", "kubeconfig")))
        try:
            code = asyncio.run(_awaited(function(flags, *args, **kwargs)))
        except ApiException as error:
            raise click.ClickException(f"the API server refused: {error.reason} ({error.status})") from error
        except (ApiUnavailable, ClusterError) as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.Abort from None
        if code:
            raise click.exceptions.Exit(code)

    return run


async def _awaited(running: Awaitable[int | None]) -> int | None:
    return await running
