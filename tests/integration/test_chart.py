"""The chart on a real API server: every object is accepted, and the permissions are the ones that it promises."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from promptrollout.sandbox.controlplane.install import find_chart
from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from tests.integration.chart import install_all_but_the_operator, rendered
from tests.integration.cluster import Kubectl, Manifest

OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:promptrollout-operator"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(sandbox: Sandbox) -> Run:
    install_all_but_the_operator(sandbox.kubeconfig)
    kubectl = Kubectl(sandbox.kubeconfig)

    def call(*arguments: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
        return kubectl.run(*arguments, stdin=stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin))

    return call


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("podDisruptionBudget.enabled=true", "networkPolicy.enabled=true", "crds.keep=false"),
        ("watchNamespaces={default,kube-public}",),
        (
            "metricsSources[0].name=mimir",
            "metricsSources[0].url=https://mimir/prometheus",
            "metricsSources[0].secretName=mimir-access",
            "metricsSources[0].bearerTokenFile=token",
        ),
    ],
    ids=["default", "all on", "namespaced", "a source's Secret"],
)
def test_every_object_is_accepted(run: Run, values: tuple[str, ...]) -> None:
    """Also by Pod Security's restricted standard: the operator's namespace enforces it."""
    bodies = rendered(*values)
    text = yaml.safe_dump_all(bodies)
    done = run(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(bodies)
    assert "Warning" not in done.stderr


def examples_for_kind() -> list[Manifest]:
    folder = find_chart().parents[1] / "examples" / "kind"
    return [body for path in sorted(folder.glob("*.yaml")) for body in yaml.safe_load_all(path.read_text("utf-8"))]


def test_pods_meet_the_restricted_standard(run: Run, namespace: str, eventually: Callable[..., Any]) -> None:
    """Pod Security refuses pods, not Deployments, so the templates are tried as pods."""
    eventually(lambda: run("get", "serviceaccount", "default", "--namespace", namespace).returncode == 0)
    deployments = [body for body in (*rendered(), *examples_for_kind()) if body["kind"] == "Deployment"]
    assert len(deployments) == 3
    for deployment in deployments:
        template = deployment["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "probe", "namespace": namespace, "labels": template["metadata"]["labels"]},
            "spec": {**template["spec"], "serviceAccountName": "default"},
        }
        done = run("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=pod)
        assert done.returncode == 0, done.stderr


def test_what_kind_demo_applies_is_accepted(run: Run, namespace: str) -> None:
    bodies = examples_for_kind()
    for body in bodies:
        if body["kind"] != "Namespace" and not body["kind"].startswith("Cluster"):
            body["metadata"]["namespace"] = namespace
    done = run(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(bodies)
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("verb", "resource", "allowed"),
    [
        ("get", "secrets", False),
        ("list", "secrets", False),
        ("patch", "promptrollouts.promptrollout.dev", False),
        ("update", "modelproviders.promptrollout.dev", False),
        ("delete", "promptrollouts.promptrollout.dev", False),
        ("create", "clusterroles.rbac.authorization.k8s.io", False),
        ("escalate", "clusterroles.rbac.authorization.k8s.io", False),
        ("create", "pods", False),
        ("watch", "promptrollouts.promptrollout.dev", True),
        ("create", "promptdeliveries.promptrollout.dev", True),
        ("patch", "promptrollouts.promptrollout.dev/status", True),
        ("create", "pods/eviction", True),
    ],
)
def test_what_the_operator_may_do(run: Run, verb: str, resource: str, allowed: bool) -> None:
    name, _, subresource = resource.partition("/")
    flags = [f"--subresource={subresource}"] if subresource else []
    answer = run("auth", "can-i", verb, name, f"--as={OPERATOR}", "--all-namespaces", *flags)
    assert answer.stdout.strip() == ("yes" if allowed else "no"), answer.stderr


def role_binding(namespace: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "probe", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }


@pytest.mark.parametrize(
    ("role", "allowed"),
    [("promptrollout-gateway", True), ("cluster-admin", False), ("system:aggregate-to-view", False)],
)
def test_the_operator_hands_out_the_gateway_role_only(run: Run, namespace: str, role: str, allowed: bool) -> None:
    done = run(
        "apply", "--server-side", "--dry-run=server", f"--as={OPERATOR}", "-f", "-", stdin=role_binding(namespace, role)
    )
    assert (done.returncode == 0) == allowed, done.stderr
    if not allowed:
        assert "attempting to grant RBAC permissions not currently held" in done.stderr


def test_a_gateway_reads_deliveries_and_overrides_and_nothing_else(run: Run, namespace: str) -> None:
    assert run("apply", "-f", "-", stdin=role_binding(namespace, "promptrollout-gateway")).returncode == 0

    def may(verb: str, resource: str, where: str) -> bool:
        who = f"--as=system:serviceaccount:{namespace}:default"
        return run("auth", "can-i", verb, resource, who, "--namespace", where).stdout.strip() == "yes"

    assert may("watch", "promptdeliveries.promptrollout.dev", namespace)
    assert may("watch", "configmaps/promptrollout-overrides", namespace)
    assert not may("get", "configmaps", namespace)
    assert not may("patch", "promptdeliveries.promptrollout.dev", namespace)
    assert not may("get", "secrets", namespace)
    assert not may("get", "promptrollouts.promptrollout.dev", namespace)
    assert not may("watch", "promptdeliveries.promptrollout.dev", "default")


ALLOWED_TO_EDIT = ("promptrollouts", "promptversions", "modelproviders", "promptgateways", "promptslos")


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_what_people_may_do_by_the_aggregated_roles(
    run: Run, namespace: str, role: str, eventually: Callable[..., Any]
) -> None:
    """As a user whom a RoleBinding gives Kubernetes' own role: the controller manager adds the chart's rules to it."""
    binding = role_binding(namespace, role)
    binding["subjects"] = [{"kind": "User", "name": "person", "apiGroup": "rbac.authorization.k8s.io"}]
    assert run("apply", "-f", "-", stdin=binding).returncode == 0

    def may(verb: str, resource: str) -> bool:
        asked = ("auth", "can-i", verb, f"{resource}.promptrollout.dev", "--as=person", "--namespace", namespace)
        return run(*asked).stdout.strip() == "yes"

    eventually(lambda: may("watch", "promptrollouts"))
    for kind in ALLOWED_TO_EDIT:
        assert may("get", kind)
        assert may("patch", kind) == (role != "view"), kind
    assert may("get", "promptdeliveries")
    assert not may("patch", "promptdeliveries")
