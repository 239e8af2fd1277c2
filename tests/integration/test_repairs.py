"""What others did behind the operator's back: a restored backup, a removed label, a moved gateway, a refused copy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from promptrollout.operator.delivery.confirmations import DOUBT_SECONDS
from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl
from tests.integration.story import Status, Story, ours

LONG = [{"weight": 50, "minDurationSeconds": 3600}]
QUICK: dict[str, Any] = {"steps": [{"weight": 50, "minDurationSeconds": 1}], "canary": {"bakeSeconds": 0}}


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


def patch(story: Story, kind: str, body: dict[str, Any], *more: str) -> None:
    story.kubectl("patch", kind, story.name, "--type=merge", "-p", json.dumps(body), *more)


def condition(status: Status, name: str) -> dict[str, Any]:
    return next(c for c in status["conditions"] if c["type"] == name)


@contextmanager
def no_operator(story: Story) -> Iterator[None]:
    """The operator is away in the meantime."""
    before = story.operator_pod()
    story.system("scale", "deployment/promptrollout-operator", "--replicas=0")
    story.wait(lambda: story.system.find("pod", before) is None, "the operator's end")
    try:
        yield
    finally:
        story.system("scale", "deployment/promptrollout-operator", "--replicas=1")
        story.system("rollout", "status", "deployment/promptrollout-operator", "--timeout=180s")


def test_pods_are_asked_after_a_restore_from_backup(story: Story) -> None:
    """Status and delivery agree with each other, as of before v2, and pods serve v2 under a higher sequence."""
    story.given(replicas=1, v1={}, v2={}).apply("v1", **QUICK).healthy("v1")
    story.wait(lambda: story.delivery().get("status", {}).get("acknowledged"), "the delivery's status")
    rollout, delivery = story.kubectl.json("get", "promptrollout", "app"), story.delivery()
    with story.users():
        story.apply("v2", **QUICK).healthy("v2")
    served = story.reports()[0]
    assert served["stable"] == story.digest("v2")
    with no_operator(story):
        story.apply("v1", **QUICK)
        left_over = story.status().keys() - rollout["status"].keys()
        patch(story, "promptrollout", {"status": rollout["status"] | dict.fromkeys(left_over)}, "--subresource=status")
        patch(story, "promptdelivery", {"spec": delivery["spec"]})
        patch(story, "promptdelivery", {"status": delivery["status"]}, "--subresource=status")
    story.wait(lambda: story.reports()[0]["stable"] == story.digest("v1"), "pods to serve what the status says")
    assert story.delivery()["spec"]["sequence"] > served["sequence"]
    status = story.until(lambda s: condition(s, "Delivered")["status"] == "True")
    assert status["phase"] == "Healthy"


def test_a_restart_writes_nothing_where_pods_agree(story: Story) -> None:
    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    story.wait(lambda: story.delivery().get("status", {}).get("acknowledged"), "the delivery's status")

    def versions() -> list[str]:
        items = story.kubectl.json("get", "promptrollout,promptdelivery,promptversion")["items"]
        return [item["metadata"]["resourceVersion"] for item in items]

    story.wait(lambda: story.kubectl.json("get", "promptversions")["items"][0].get("status"), "the copy's status")
    story.until(lambda s: condition(s, "Delivered")["status"] == "True")
    before = versions()
    with no_operator(story):
        pass
    time.sleep(2 * DOUBT_SECONDS)
    assert versions() == before


def test_a_delivery_that_lost_its_label_gets_it_back(story: Story) -> None:
    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    story.kubectl("label", "promptdelivery", "app", "promptrollout.dev/gateway-")
    story.wait(
        lambda: story.delivery()["metadata"]["labels"].get("promptrollout.dev/gateway") == "default", "the label"
    )
    assert story.kubectl.json("get", "promptdelivery", "app")["spec"]["gateway"] == "default"


def test_a_canary_is_not_moved_to_another_gateway(story: Story) -> None:
    """A breach reaches the pods that serve it; the move follows when all is calm."""
    story.given(replicas=1, v1={}, v2={}).apply("v1").healthy("v1")
    story.kubectl.apply(ours("PromptGateway", "other", {"replicas": 1, "drainSeconds": 1}))
    with story.users():
        story.apply("v2", steps=LONG).at_weight(50)
        story.apply("v2", steps=LONG, gatewayRef={"name": "other"})
        story.until(lambda s: "gateway default keeps serving it until the canary ends, then other" in s["message"])
        assert story.delivery()["spec"]["gateway"] == "default"
        story.behave(v1={}, v2={"errorRate": 1.0})
        story.rolled_back("v2")
    story.wait(lambda: story.delivery()["spec"]["gateway"] == "other", "the move")
    assert [(r["weight"], r["stable"]) for r in story.reports()] == [(0, story.digest("v1"))]
    status = story.until(lambda s: condition(s, "Delivered")["status"] == "True")
    assert "keeps serving it until" not in status["message"]


@contextmanager
def no_new_versions(story: Story) -> Iterator[None]:
    """An admission policy refuses every PromptVersion in the namespace."""
    group = "admissionregistration.k8s.io/v1"
    rule = {"apiGroups": ["promptrollout.dev"], "apiVersions": ["*"], "operations": ["CREATE"]}
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": story.namespace}}}
    policy = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": story.namespace},
        "spec": {
            "matchConstraints": where | {"resourceRules": [rule | {"resources": ["promptversions"]}]},
            "validations": [{"expression": "false", "message": "no more versions"}],
        },
    }
    binding = {
        "apiVersion": group,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": story.namespace},
        "spec": {"policyName": story.namespace, "validationActions": ["Deny"]},
    }
    story.kubectl.apply(policy, binding)
    try:
        probe = json.dumps(ours("PromptVersion", "probe", story.manifest("probe")["spec"]["template"]))
        story.wait(
            lambda: story.kubectl.run("create", "--dry-run=server", "-f", "-", stdin=probe).returncode, "the policy"
        )
        yield
    finally:
        story.kubectl("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", story.namespace)


def test_a_breach_rolls_back_though_no_copy_can_be_made(story: Story) -> None:
    story.given(replicas=1, v1={}, v2={}, v3={}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2", steps=LONG).at_weight(50)
        with no_new_versions(story):
            story.apply("v3", steps=LONG)
            status = story.until(lambda s: condition(s, "InvalidSpec")["status"] == "True")
            assert "no more versions" in condition(status, "InvalidSpec")["message"]
            assert (status["stage"], status["weight"]) == ("Stepping", 50)
            story.behave(v1={}, v2={"errorRate": 1.0}, v3={})
            story.rolled_back("v2")
        status = story.at_weight(50)
        assert status["canary"]["digest"] == story.digest("v3")
        assert condition(status, "InvalidSpec")["status"] == "False"
