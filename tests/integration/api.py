"""kubectl without its process: what only reads or writes objects asks the API server from here.

A call of kubectl costs 150 ms of CPU, and tests make thousands. What kubectl itself does with an answer (columns,
`describe`, its client-side apply) is asked of the real one: `ApiKubectl` inherits `run` and calls, and has `real`.
"""

from __future__ import annotations

import atexit
import functools
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.integration.cluster import Kubectl, Manifest

APPLY_PATCH = "application/apply-patch+yaml"
DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
DISCOVERY_SECONDS = 30.0
"""How long a kind may take to be served after its CRD is."""


class Refused(Exception):
    """The API server answered with an error: its code, and its message as text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Resource:
    """One kind as the API server serves it."""

    group_version: str
    plural: str
    kind: str
    namespaced: bool

    def path(self, namespace: str | None, name: str | None = None) -> str:
        root = "/api/" if "/" not in self.group_version else "/apis/"
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{self.group_version}{within}/{self.plural}" + (f"/{name}" if name else "")


class Api:
    """The API server of a kubeconfig that has a token and a CA, as the sandbox's has."""

    def __init__(self, kubeconfig: str) -> None:
        config = yaml.safe_load(kubeconfig)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._client = httpx.Client(
            base_url=cluster["server"],
            verify=ssl.create_default_context(cafile=cluster["certificate-authority"]),
            headers={"authorization": f"Bearer {user['token']}"},
            trust_env=False,
            timeout=60,
        )
        self._resources: dict[str, Resource] = {}
        atexit.register(self._client.close)

    def text(self, method: str, path: str, *, user: str = "", **options: Any) -> str:
        """`user`: in whose name. Raises Refused; httpx.TransportError while the server is away."""
        headers = {**options.pop("headers", {}), **({"impersonate-user": user} if user else {})}
        answer = self._client.request(method, path, headers=headers, **options)
        if answer.is_error:
            try:
                message = str(answer.json()["message"])
            except (ValueError, KeyError):
                message = answer.text
            raise Refused(answer.status_code, message)
        return answer.text

    def call(self, method: str, path: str, **options: Any) -> Any:
        return json.loads(self.text(method, path, **options))

    def apply(self, body: Manifest, namespace: str | None, *, manager: str = "kubectl", **options: Any) -> Manifest:
        """Server-side apply with strict validation, as kubectl's; `dry_run` and `user` as there."""
        params = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        if options.pop("dry_run", False):
            params["dryRun"] = "All"
        resource, metadata = self.resource(body["kind"], body["apiVersion"]), body["metadata"]
        path = resource.path(metadata.get("namespace") or namespace, metadata["name"])
        headers = {"content-type": APPLY_PATCH}
        applied: Manifest = self.call("PATCH", path, params=params, headers=headers, json=body, **options)
        return applied

    def resource(self, word: str, group_version: str = "") -> Resource:
        """By kind, plural, singular or short name; a kind that is not served yet is waited for."""
        key, deadline = f"{group_version}:{word}".lower(), time.monotonic() + DISCOVERY_SECONDS
        while key not in self._resources:
            self._discover()
            assert key in self._resources or time.monotonic() < deadline, f"the API server does not serve {key}"
        return self._resources[key]

    def _discover(self) -> None:
        for root in ("/api", "/apis"):
            for group in self.call("GET", root, headers={"accept": DISCOVERY})["items"]:
                for version in group["versions"]:
                    name = group.get("metadata", {}).get("name", "")
                    for each in version.get("resources", ()):
                        self._learn(f"{name}/{version['version']}" if name else version["version"], each)

    def _learn(self, group_version: str, found: Mapping[str, Any]) -> None:
        kind = found["responseKind"]["kind"]
        made = Resource(group_version, found["resource"], kind, found["scope"] == "Namespaced")
        for word in (kind, found["resource"], found.get("singularResource") or kind, *found.get("shortNames", ())):
            # without a group the first one counts, as for kubectl: `events` are those of v1
            for prefix in (group_version, ""):
                self._resources.setdefault(f"{prefix}:{word}".lower(), made)


class ApiKubectl(Kubectl):
    """A Kubectl whose `json`, `names`, `find`, `log` and `apply` are calls from this process."""

    def __init__(self, kubeconfig: str, namespace: str | None = None) -> None:
        super().__init__(kubeconfig, namespace)
        self.api = api_of(Path(kubeconfig).read_text())
        self.real = Kubectl(kubeconfig, namespace)

    def json(self, *arguments: str) -> Any:
        """`get KINDS [NAME] [-l SELECTOR] [-n NAMESPACE] [--show-managed-fields]`; kubectl itself for the rest."""
        match arguments:
            case ("get", kinds, *more) if (wanted := _Get.parse(more, self.namespace)) is not None:
                return self._get(kinds, wanted)
        return super().json(*arguments)

    def find(self, kind: str, name: str) -> Manifest | None:
        try:
            found: Manifest = self.api.call("GET", self.api.resource(kind).path(self.namespace, name))
        except (Refused, httpx.TransportError):
            return None
        return found

    def log(self, pod: str) -> str:
        try:
            return self.api.text("GET", f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log")
        except (Refused, httpx.TransportError):
            return ""

    def apply(self, *manifests: Manifest, arguments: tuple[str, ...] = ()) -> str:
        """On the server's side, under kubectl's name; `arguments` are for the real one."""
        if arguments:
            return super().apply(*manifests, arguments=arguments)
        applied = [self.api.apply(each, self.namespace or "default") for each in manifests]
        return "".join(f"{each['kind'].lower()}/{each['metadata']['name']} serverside-applied\n" for each in applied)

    def _get(self, kinds: str, wanted: _Get) -> Any:
        items = []
        for kind in kinds.split(","):
            resource = self.api.resource(kind)
            found = self.api.call("GET", resource.path(wanted.namespace, wanted.name), params=wanted.params)
            if wanted.name is not None:
                return wanted.shown(found)
            of = {"apiVersion": resource.group_version, "kind": resource.kind}
            items += [wanted.shown(of | item) for item in found["items"]]
        return {"apiVersion": "v1", "kind": "List", "items": items}


@dataclass
class _Get:
    """The options of one `get`."""

    namespace: str | None
    name: str | None = None
    managed_fields: bool = False

    def __post_init__(self) -> None:
        self.params: dict[str, str] = {}

    @classmethod
    def parse(cls, arguments: list[str], namespace: str | None) -> _Get | None:
        """None: it has an option that is not known here."""
        found, rest = cls(namespace), iter(arguments)
        for each in rest:
            if each == "-l":
                found.params["labelSelector"] = next(rest)
            elif each == "-n":
                found.namespace = next(rest)
            elif each == "--field-selector":
                found.params["fieldSelector"] = next(rest)
            elif each == "--show-managed-fields":
                found.managed_fields = True
            elif each.startswith("-") or found.name is not None:
                return None
            else:
                found.name = each
        return found

    def shown(self, item: Manifest) -> Manifest:
        if not self.managed_fields:
            item["metadata"].pop("managedFields", None)
        return item


@functools.cache
def api_of(kubeconfig: str) -> Api:
    """One for all tests of a process, by the kubeconfig's text: its connections and what it knows of kinds stay."""
    return Api(kubeconfig)
