"""One real node for the session, with the chart and the quickstart on it. What it cannot have is a reason to skip."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from tests.node import binaries, machine
from tests.node.cluster import NodeKubectl, NodeUsers
from tests.node.images import ROOT, Images
from tests.node.node import Node, environment
from tests.progress import Progress, printed
from tests.users import stats_after

_REQUESTS_PER_SECOND = 120.0


@dataclass(frozen=True)
class Prepared:
    """Everything that is built before a node starts, in the user's cache."""

    control: inventory.Binaries
    own: dict[str, Path]
    archives: list[Path]

    @property
    def image(self) -> Path:
        return self.archives[0]


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    return printed(request.config, "node-test")


@pytest.fixture(scope="session")
def prepared(progress: Progress) -> Iterator[Prepared]:
    """Binaries and images; holds a lock until the session ends, as pods' cgroups are the machine's."""
    cache = inventory.cache_dir()
    folder = cache / "node"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "setup.log"
    with inventory.locked(folder / ".lock", progress):
        log.write_text("")
        try:
            machine.prepare(progress, log)
            control = inventory.ensure(progress)
            own = binaries.ensure(cache, progress)
            archives = Images(folder, log, progress).archives(own["pause"], control.prometheus)
        except machine.Unavailable as error:
            pytest.skip(str(error))
        yield Prepared(control, own, archives)


@pytest.fixture(scope="session")
def node(prepared: Prepared, progress: Progress) -> Iterator[Node]:
    """A node that is Ready and has the images. Its logs stay in the cache, everything else goes."""
    machine.remove_cgroups()
    directory = inventory.cache_dir() / "node" / "run"
    shutil.rmtree(directory, ignore_errors=True)  # of a session that was killed
    tools = directory / "tools"
    tools.mkdir(parents=True)
    (tools / "kubectl").symlink_to(prepared.control.kubectl)
    (tools / "helm").symlink_to(prepared.control.helm)
    kubeconfig = directory / "etc" / "admin.kubeconfig"
    made = Node(directory, prepared.control, prepared.own, environment(kubeconfig, tools))
    try:
        made.up(progress)
        made.load(prepared.archives)
        progress("the images are loaded")
        yield made
    finally:
        made.down()
        logs = inventory.cache_dir() / "node" / "log"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(directory / "log", logs)
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def kubectl(node: Node) -> NodeKubectl:
    """In the quickstart's namespace."""
    return NodeKubectl(node, "support")


@pytest.fixture(scope="session")
def system(node: Node) -> NodeKubectl:
    """In the operator's namespace."""
    return NodeKubectl(node, OPERATOR_NAMESPACE)


@pytest.fixture(scope="session")
def installed(node: Node, system: NodeKubectl, progress: Progress) -> None:
    """The chart and the quickstart, by the script of the kind demo, in namespaces with Pod Security `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    system.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE, "labels": labels}})
    script = str(ROOT / "examples" / "kind" / "install")
    done = node.run("bash", script, "--set", "networkPolicy.enabled=true", seconds=420)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{_state(system)}"
    progress("chart and quickstart are Ready")


@pytest.fixture(scope="session")
def users(installed: None, kubectl: NodeKubectl, progress: Progress) -> NodeUsers:
    """Users who ask from now on until the end of the session."""
    made = NodeUsers(kubectl, _REQUESTS_PER_SECOND).__enter__()
    stats_after(made, 2 * _REQUESTS_PER_SECOND)
    progress("users ask")
    return made


def _state(kubectl: NodeKubectl) -> str:
    """Of all pods, for a failure's message."""
    calls: list[tuple[str, ...]] = [
        ("get", "pods", "-A", "-o", "wide"),
        ("get", "events", "-A", "--field-selector", "type=Warning"),
        ("logs", "-l", "app.kubernetes.io/name=promptrollout", "--tail=40"),
    ]
    done: list[subprocess.CompletedProcess[str]] = [kubectl.run(*call) for call in calls]
    return "\n".join(each.stdout + each.stderr for each in done)
