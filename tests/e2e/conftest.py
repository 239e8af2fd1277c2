"""The cluster of KUBECONFIG, or a kind cluster made for the session; what cannot be had is a reason to skip."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e import kind
from tests.e2e.places import GATEWAY, ROOT, Place, moved, operator_deployment, place_of
from tests.e2e.story import FIRST, QuickstartStory
from tests.integration.cluster import Kubectl
from tests.progress import Progress, printed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kind", action="store_true", help="make a kind cluster for tests/e2e and delete it at the end")


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    return printed(request.config, "e2e")


@pytest.fixture(scope="session")
def kubeconfig(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, progress: Progress
) -> Iterator[str]:
    if request.config.getoption("--kind"):
        if problem := kind.unavailable():
            pytest.skip(problem)
        with kind.kind_cluster(tmp_path_factory.mktemp("kind"), progress) as made:
            yield str(made)
        return
    named = os.environ.get("KUBECONFIG", "")
    if not named:
        pytest.skip("KUBECONFIG is not set: it names the cluster for tests/e2e (tests/README.md)")
    assert Path(named).is_file(), f"KUBECONFIG={named}: no such file (name one, not a list)"
    yield named


@pytest.fixture(scope="session")
def place(kubeconfig: str) -> Place:
    return place_of(kubeconfig)


@pytest.fixture(scope="session")
def system(kubeconfig: str, place: Place) -> Kubectl:
    """In the operator's namespace."""
    return Kubectl(kubeconfig, operator_deployment(Kubectl(kubeconfig))["metadata"]["namespace"])


@pytest.fixture(scope="session")
def kubectl(kubeconfig: str, place: Place, progress: Progress) -> Iterator[Kubectl]:
    """In a new namespace with the quickstart's provider, model and gateway; deleted at the end."""
    name = f"e2e-{secrets.token_hex(4)}"
    made = Kubectl(kubeconfig, name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        quickstart = ROOT / "examples" / "quickstart"
        place.install_model(made, yaml.safe_load((quickstart / "changes" / "simulated-model.json").read_text()))
        for file in ("10-provider.yaml", "20-gateway.yaml"):
            made.apply(*(moved(each, name) for each in yaml.safe_load_all((quickstart / file).read_text()) if each))
        made("wait", "--for=condition=Ready", f"promptgateway/{GATEWAY}", "--timeout=100s")
        progress(f"the gateway in namespace {name} is Ready")
        yield made
    finally:
        made("delete", "namespace", name, "--wait=false")


@pytest.fixture
def story(place: Place, kubeconfig: str, kubectl: Kubectl, system: Kubectl) -> Iterator[QuickstartStory]:
    """A rollout that serves the quickstart's first version to everybody."""
    made = QuickstartStory(place, kubeconfig, kubectl, system, f"assistant-{secrets.token_hex(3)}")
    made.apply(FIRST).healthy(FIRST)
    yield made
    kubectl("delete", "promptrollout", made.name)
