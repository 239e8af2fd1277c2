"""What differs between the sandbox and a cluster of containers: how users reach a gateway, and where the model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl
from tests.users import LocalUsers, PodUsers, Users, eventually

ROOT = Path(__file__).parents[2]
SANDBOX_OS_IMAGE = "promptrollout sandbox"
GATEWAY = "default"
VARIABLES = {"company": "Example Telecom"}


class Place(Protocol):
    """A cluster with the operator in it."""

    patience: float
    """Seconds that a change may take to reach everybody, or to be rolled back."""

    def install_model(self, kubectl: Kubectl, behaviours: list[dict[str, Any]]) -> None:
        """Have the address in the quickstart's ModelProvider answer by these rules."""

    def users(self, kubectl: Kubectl, rollout: str, rate: float) -> Users:
        """Users of the rollout behind the gateway of kubectl's namespace."""


class InSandbox:
    """Its Services are ports of this machine; its API server puts the address of its model into ModelProviders."""

    patience = 90.0

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    def install_model(self, kubectl: Kubectl, behaviours: list[dict[str, Any]]) -> None:
        url = f"{self._box.model_url}/control/behaviours"
        httpx.put(url, json=behaviours, trust_env=False).raise_for_status()

    def users(self, kubectl: Kubectl, rollout: str, rate: float) -> Users:
        url = eventually(lambda: self._box.gateways().get(f"{kubectl.namespace}/{GATEWAY}"), "no gateway's Service")
        return LocalUsers(url, rollout, rate, variables=VARIABLES)


class InContainers:
    """Model and users are pods of the image that the operator runs."""

    patience = 240.0

    def __init__(self, image: str, pull_policy: str) -> None:
        self._image = image
        self._pull_policy = pull_policy

    def install_model(self, kubectl: Kubectl, behaviours: list[dict[str, Any]]) -> None:
        rules = {"simulated-model.json": json.dumps(behaviours)}
        kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "simulated-model"}, "data": rules})
        text = (ROOT / "examples" / "kind" / "simulated-model.yaml").read_text()
        manifests = [moved(manifest, str(kubectl.namespace)) for manifest in yaml.safe_load_all(text)]
        for container in manifests[0]["spec"]["template"]["spec"]["containers"]:
            container |= {"image": self._image, "imagePullPolicy": self._pull_policy}
        kubectl.apply(*manifests)
        kubectl("rollout", "status", "deployment/simulated-model", "--timeout=100s")

    def users(self, kubectl: Kubectl, rollout: str, rate: float) -> Users:
        return PodUsers(kubectl, self._image, f"{GATEWAY}-gateway", rollout, rate)


def place_of(kubeconfig: str) -> Place:
    """The cluster of a kubeconfig; fails where there is no operator in it."""
    kubectl = Kubectl(kubeconfig)
    (node, *_) = kubectl.json("get", "nodes")["items"]
    if node["status"]["nodeInfo"]["osImage"] == SANDBOX_OS_IMAGE:
        return InSandbox(Sandbox(Path(kubeconfig).parent))
    container = operator_deployment(kubectl)["spec"]["template"]["spec"]["containers"][0]
    return InContainers(container["image"], container["imagePullPolicy"])


def operator_deployment(kubectl: Kubectl) -> dict[str, Any]:
    labels = "app.kubernetes.io/name=promptrollout,app.kubernetes.io/component=operator"
    found = kubectl.json("get", "deployments", "-A", "-l", labels)["items"]
    assert found, "no operator in this cluster: install the chart first (docs/install.md, or examples/kind/install)"
    operator: dict[str, Any] = found[0]
    return operator


def moved(manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The manifest in another namespace than its file says."""
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
