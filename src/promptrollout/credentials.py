"""Which API server, who we are there, and through which proxy: a pod's ServiceAccount, a kubeconfig, or a token."""

from __future__ import annotations

import ipaddress
import os
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import yaml
from aiohttp.helpers import strip_auth_from_url
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.config.config_exception import ConfigException
from yarl import URL

from promptrollout import __version__
from promptrollout.api.names import ENV_SERVICEACCOUNT_DIR
from promptrollout.proxy import proxy_of

SERVICEACCOUNT_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


class ClusterError(Exception):
    """There is no usable way to an API server; the message names what to set."""


async def connect(kubeconfig: str = "", context: str = "") -> ApiClient:
    """A client by what is named: a kubeconfig (or several, as in KUBECONFIG), a context. With neither: with the pod's
    own ServiceAccount, or else with KUBECONFIG's current context.

    The ServiceAccount's token is read again whenever its file changes: bound tokens rotate. Close the client (`async
    with`) when done. Raises ClusterError.
    """
    configuration = Configuration()
    if _in_pod(kubeconfig, context):
        _use_service_account(configuration)
    else:
        files = kubeconfig or _kubeconfig_files()
        _expect_a_file(files)
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=files,
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        except (ConfigException, OSError, yaml.YAMLError) as error:
            named = kubeconfig or context
            advice = (
                "check --kubeconfig and --context" if named else "set KUBECONFIG to a kubeconfig with a current context"
            )
            raise ClusterError(f"no cluster: {error}; {advice}") from error
    return _client(configuration)


def connect_with_token(server: str, token: str, ca_file: Path) -> ApiClient:
    """A client of the API server at this URL. Raises ClusterError."""
    configuration = Configuration(host=server)
    configuration.ssl_ca_cert = str(ca_file)
    configuration.api_key["BearerToken"] = f"Bearer {token}"
    return _client(configuration)


def namespace(kubeconfig: str = "", context: str = "") -> str:
    """The namespace of `connect` with the same arguments: the pod's own, else the context's, else `default`."""
    if not kubeconfig and not context and (own := os.environ.get("POD_NAMESPACE")):
        return own
    if _in_pod(kubeconfig, context):
        try:
            return (_service_account_dir() / "namespace").read_text().strip()
        except OSError as error:
            raise ClusterError(f"the pod's namespace is unknown: {error}; set POD_NAMESPACE") from error
    return _kubeconfig_namespace(kubeconfig or _kubeconfig_files(), context)


def _in_pod(kubeconfig: str, context: str) -> bool:
    return not kubeconfig and not context and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _client(configuration: Configuration) -> ApiClient:
    # the environment is read here, once: the client would not see networks in NO_PROXY, and reads netrc too
    configuration.client_session_kwargs = {"trust_env": False}
    if not configuration.proxy:  # of the kubeconfig
        configuration.proxy = _proxy(configuration.host)
    if configuration.proxy:
        # the user and password go in a header: errors show the proxy's URL
        url, user = strip_auth_from_url(URL(configuration.proxy))
        configuration.proxy = str(url)
        if user is not None:
            configuration.proxy_headers = {"Proxy-Authorization": user.encode()}
    try:
        client = ApiClient(configuration)
    except (OSError, ssl.SSLError) as error:
        raise ClusterError(f"the cluster's certificates cannot be loaded: {error}") from error
    client.user_agent = f"promptrollout/{__version__}"
    return client


def _proxy(server: str) -> str | None:
    """By the environment. None on loopback, as for kubectl: a proxy does not reach what only this machine does."""
    host = urlsplit(server).hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return None if loopback else proxy_of(server)


def _service_account_dir() -> Path:
    return Path(os.environ.get(ENV_SERVICEACCOUNT_DIR) or SERVICEACCOUNT_DIR)


def _use_service_account(configuration: Configuration) -> None:
    folder = _service_account_dir()
    token_file, ca_file = folder / "token", folder / "ca.crt"
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT") or "443"
    configuration.host = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    if not ca_file.is_file():
        raise ClusterError(f"{ca_file} is missing: the API server's certificate could not be verified")
    configuration.ssl_ca_cert = str(ca_file)
    seen: tuple[int, int] | None = None

    def refresh(target: Configuration) -> None:
        nonlocal seen
        state = token_file.stat()
        if (state.st_mtime_ns, state.st_ino) != seen:
            target.api_key["BearerToken"] = f"Bearer {token_file.read_text().strip()}"
            seen = (state.st_mtime_ns, state.st_ino)

    try:
        refresh(configuration)
    except OSError as error:
        raise ClusterError(f"the ServiceAccount's token cannot be read: {error}") from error
    # asked before each call; an OSError there counts as an unreachable server and is tried again
    configuration.refresh_api_key_hook = refresh  # type: ignore[assignment]


def _kubeconfig_files() -> str:
    return os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


def _expect_a_file(files: str) -> None:
    """The client would log that there is none, and then complain about a context that no file could name."""
    if not any(Path(path).expanduser().exists() for path in files.split(os.pathsep) if path):
        raise ClusterError(f"no cluster: no kubeconfig at {files}; set KUBECONFIG or --kubeconfig")


def _kubeconfig_namespace(files: str, context: str) -> str:
    """Of the context, or else the current one; kubeconfigs are merged as kubectl does: the first file that names a
    thing wins."""
    current = context
    spaces: dict[str, str] = {}
    for path in files.split(os.pathsep):
        try:
            content = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError):
            continue  # connect() reports what is unreadable; kubectl, too, skips files that do not exist
        current = current or content.get("current-context") or ""
        for each in content.get("contexts") or []:
            spaces.setdefault(each["name"], (each.get("context") or {}).get("namespace") or "default")
    return spaces.get(current, "default")
