"""One sandbox for each process that runs tests, and a namespace of its own for each test."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE, Settings
from tests.integration.api import ApiKubectl
from tests.integration.cluster import Kubectl
from tests.rollout_story import PATIENCE_SECONDS

#: Set to a directory, the tests use (and keep) a sandbox there: saves the start while working on a test. With several
#: workers (`make test`) each has its own below it.
KEEP_VARIABLE = "PROMPTROLLOUT_TEST_SANDBOX"


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Control plane, node, Prometheus and simulated model; the operator comes with the fixture `operator`."""
    # of the control plane's processes: less CPU for more memory, as there is a sandbox for each worker
    os.environ.setdefault("GOGC", "200")
    settings = Settings(install_operator=False, token_max_age_seconds=5.0)
    if kept := os.environ.get(KEEP_VARIABLE):
        box = Sandbox(Path(kept, os.environ.get("PYTEST_XDIST_WORKER", "")), settings)
        box.up()
        yield box
        return
    box = Sandbox(tmp_path_factory.mktemp("sandbox"), settings)
    box.up()
    try:
        yield box
    finally:
        box.down()


@pytest.fixture(scope="session")
def operator(sandbox: Sandbox) -> Sandbox:
    """The sandbox with the operator installed from the chart."""
    sandbox.install_operator()
    return sandbox


@pytest.fixture(scope="module")
def no_operator(sandbox: Sandbox) -> Iterator[None]:
    """For tests that write deliveries of no rollout: an operator that others installed would retire them."""
    system = Kubectl(sandbox.kubeconfig, OPERATOR_NAMESPACE)
    deployment = "deployment/promptrollout-operator"
    if system.run("get", deployment).returncode:
        yield
        return
    system("scale", deployment, "--replicas=0")
    system("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=180s")
    yield
    system("scale", deployment, "--replicas=1")
    system("rollout", "status", deployment, "--timeout=180s")


@pytest.fixture
def namespace(sandbox: Sandbox) -> Iterator[str]:
    """A fresh namespace that enforces the restricted Pod Security Standard."""
    with fresh_namespace(sandbox) as name:
        yield name


@pytest.fixture(scope="module")
def shared_namespace(sandbox: Sandbox) -> Iterator[str]:
    """One namespace for all tests of a file that leave nothing behind: dry runs."""
    with fresh_namespace(sandbox) as name:
        yield name


@contextlib.contextmanager
def fresh_namespace(sandbox: Sandbox) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl = ApiKubectl(sandbox.kubeconfig, name)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    # the controller manager makes it; after an outage of the API server it takes its time, and no pod is taken before
    deadline = time.monotonic() + PATIENCE_SECONDS
    while kubectl.find("serviceaccount", "default") is None:
        assert time.monotonic() < deadline, f"the namespace has no default ServiceAccount after {PATIENCE_SECONDS} s"
        time.sleep(0.05)
    yield name
    # the namespace controller takes its time; names are unique, so nobody has to wait for it
    kubectl.api.text("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def kubectl(sandbox: Sandbox, namespace: str) -> ApiKubectl:
    """kubectl with the test's namespace as default."""
    return ApiKubectl(sandbox.kubeconfig, namespace)


@pytest.fixture
def resumed() -> Iterator[Callable[[int], None]]:
    """Stop processes, and let them go on at the end whatever happened."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    yield stop
    for pid in stopped:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(lambda: value, seconds=10)`: the first truthy value, or a failure showing the last one."""

    def wait(read: Callable[[], Any], seconds: float = PATIENCE_SECONDS, every: float = 0.1) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            value = read()
            if value:
                return value
            assert time.monotonic() < deadline, f"not within {seconds} s; last value: {value!r}"
            time.sleep(every)

    return wait
