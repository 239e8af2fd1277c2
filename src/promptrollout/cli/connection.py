"""How the commands reach a cluster: kubectl's flags, a client, and errors that say what to do."""

import asyncio
import functools
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec

import click
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.config.config_exception import ConfigException

from promptrollout import __version__, cluster
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
            return f"this cluster does not have {API_VERSION}: install the chart (see docs/install.md)"
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
        client = await self._connect()
        async with client:
            yield Target(client, self.namespace or self._namespace())

    async def _connect(self) -> ApiClient:
        if not self.context and not self.kubeconfig:
            return await cluster.connect()
        configuration = Configuration()
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=self._files(),
                context=self.context or None,
                client_configuration=configuration,
                persist_config=False,
            )
            client = ApiClient(configuration)
        except (ConfigException, yaml.YAMLError, ssl.SSLError, OSError) as error:
            raise ClusterError(f"no cluster: {error}; check --kubeconfig and --context") from error
        client.user_agent = f"promptrollout/{__version__}"
        return client

    def _files(self) -> str:
        return self.kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")

    def _namespace(self) -> str:
        if not self.context and not self.kubeconfig:
            return cluster.namespace()
        current = self.context
        spaces: dict[str, str] = {}
        for path in self._files().split(os.pathsep):
            if not Path(path).is_file():
                continue
            content = yaml.safe_load(Path(path).read_text()) or {}
            current = current or content.get("current-context") or ""
            for context in content.get("contexts") or []:
                spaces.setdefault(context["name"], (context.get("context") or {}).get("namespace") or "default")
        return spaces.get(current, "default")


def cluster_command(function: Callable[Concatenate[Flags, P], Awaitable[int | None]]) -> Callable[P, None]:
    """A click callback from an async function: adds kubectl's flags, runs it, and turns what it returns into the exit
    code and what it raises into one line of text."""

    @click.option("-n", "--namespace", default="", metavar="NAME", help="Default: the kubeconfig context's.")
    @click.option("--context", default="", metavar="NAME", help="Of the kubeconfig; default: its current one.")
    @click.option("--kubeconfig", default="", metavar="FILE", help="Default: $KUBECONFIG, then ~/.kube/config.")
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
