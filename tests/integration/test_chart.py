"""The chart on a real API server: every object is accepted, and the permissions are the ones that it promises."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptrollout.sandbox import assets
from promptrollout.sandbox.install import find_chart

OPERATOR_NAMESPACE = "promptrollout-system"
OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:promptrollout-operator"
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(sandbox: Any) -> Kubectl:
    binary = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert binary, "kubectl is missing: install the dev requirements"

    def kubectl(*arguments: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
        text = stdin if isinstance(stdin, str) or stdin is None else json.dumps(stdin)
        command = [binary, f"--kubeconfig={sandbox.kubeconfig}", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    return kubectl


def rendered(*values: str) -> list[dict[str, Any]]:
    helm = assets.find("helm", assets.cache_dir(), os.environ) or assets.ensure(print).helm
    flags = [flag for value in values for flag in ("--set", value)]
    done = subprocess.run(
        [str(helm), "template", "promptrollout", str(find_chart()), "--namespace", OPERATOR_NAMESPACE, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [body for body in yaml.safe_load_all(done.stdout) if body]


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("podDisruptionBudget.enabled=true", "networkPolicy.enabled=true", "crds.keep=false"),
        ("watchNamespaces={default,kube-public}",),
    ],
    ids=["default", "all on", "namespaced"],
)
def test_every_object_is_accepted(run: Kubectl, values: tuple[str, ...]) -> None:
    """Also by Pod Security's restricted standard: the operator's namespace enforces it."""
    bodies = rendered(*values)
    text = yaml.safe_dump_all(bodies)
    done = run(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(bodies)
    assert "Warning" not in done.stderr


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
def test_what_the_operator_may_do(run: Kubectl, verb: str, resource: str, allowed: bool) -> None:
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
def test_the_operator_hands_out_the_gateway_role_only(run: Kubectl, namespace: str, role: str, allowed: bool) -> None:
    done = run(
        "apply", "--server-side", "--dry-run=server", f"--as={OPERATOR}", "-f", "-", stdin=role_binding(namespace, role)
    )
    assert (done.returncode == 0) == allowed, done.stderr
    if not allowed:
        assert "attempting to grant RBAC permissions not currently held" in done.stderr


def test_a_gateway_reads_deliveries_and_overrides_and_nothing_else(run: Kubectl, namespace: str) -> None:
    assert run("apply", "-f", "-", stdin=role_binding(namespace, "promptrollout-gateway")).returncode == 0

    def may(verb: str, resource: str, where: str) -> bool:
        who = f"--as=system:serviceaccount:{namespace}:default"
        return run("auth", "can-i", verb, resource, who, "--namespace", where).stdout.strip() == "yes"

    assert may("watch", "promptdeliveries.promptrollout.dev", namespace)
    assert may("watch", "configmaps", namespace)
    assert not may("patch", "promptdeliveries.promptrollout.dev", namespace)
    assert not may("get", "secrets", namespace)
    assert not may("get", "promptrollouts.promptrollout.dev", namespace)
    assert not may("watch", "promptdeliveries.promptrollout.dev", "default")


def test_people_with_the_edit_role_write_rollouts_but_no_deliveries(run: Kubectl) -> None:
    """Aggregation is the controller manager's work; the roles' labels are what it goes by."""
    done = run("get", "clusterrole", "-l", "rbac.authorization.k8s.io/aggregate-to-edit=true", "-o", "json")
    rules = [rule for role in json.loads(done.stdout)["items"] for rule in role["rules"] or ()]
    ours = [rule for rule in rules if rule["apiGroups"] == ["promptrollout.dev"]]
    written = {resource for rule in ours if "patch" in rule["verbs"] for resource in rule["resources"]}
    assert "promptrollouts" in written
    assert "promptdeliveries" not in written
