"""What the operator makes of objects beside the contract: bad references, owned objects, a rollout's end."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE
from tests.connections import HTTP
from tests.integration.cluster import Kubectl
from tests.integration.story import Story, ours


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


def invalid(status: dict[str, Any]) -> str:
    """The condition's message while it is true."""
    return next(
        (c["message"] for c in status["conditions"] if c["type"] == "InvalidSpec" and c["status"] == "True"), ""
    )


def is_ready(story: Story, kind: str, name: str) -> bool:
    status = story.kubectl.json("get", kind, name).get("status") or {}
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))


def test_what_is_missing_is_named_and_its_arrival_is_enough(story: Story) -> None:
    story.apply("v1")
    status = story.until(lambda s: "no ModelProvider model" in invalid(s) and "no PromptGateway default" in invalid(s))
    assert status["phase"] == "Degraded"
    story.given(v1={})
    story.healthy("v1")


def test_a_spec_that_became_invalid_leaves_serving_alone(story: Story) -> None:
    story.given(v1={}).apply("v1").healthy("v1")
    before = story.delivery()["spec"]
    manifest = story.manifest("v2")
    manifest["spec"]["template"]["messages"][0]["content"] = "{{ unclosed"
    story.kubectl.apply(manifest)
    status = story.until(lambda s: "spec.template.messages[0].content: line 1" in invalid(s))
    assert status["stable"]["digest"] == story.digest("v1")
    manifest = story.manifest("v2", analysis={"sloRefs": [{"name": "absent"}]})
    story.kubectl.apply(manifest)
    story.until(lambda s: "spec.analysis.sloRefs[0].name: there is no PromptSLO absent" in invalid(s))
    assert story.delivery()["spec"] == before
    story.apply("v1").healthy("v1")


def test_an_slo_is_merged_and_declarations_say_whether_they_are_valid(story: Story) -> None:
    cost = {"name": "cost", "signal": "CostPerRequest", "max": "1", "minSamples": 10}
    story.given(v1={}, v2={})
    story.kubectl.apply(ours("PromptSLO", "money", {"objectives": [cost]}))
    story.apply("v1", analysis={"sloRefs": [{"name": "money"}]}).healthy("v1")
    story.apply("v2", steps=[{"weight": 10}], analysis={"sloRefs": [{"name": "money"}]})
    status = story.at_weight(10)
    assert {o["name"] for o in status["snapshot"]["objectives"]} == {"errors", "cost"}
    for kind, name in (("promptslo", "money"), ("modelprovider", "model"), ("promptgateway", "default")):
        story.wait(lambda kind=kind, name=name: is_ready(story, kind, name), f"{kind} {name} ready")
    copy = story.kubectl.json("get", "promptversion", status["canary"]["version"])
    assert copy["status"]["digest"] == story.digest("v2")
    assert "ownerReferences" not in copy["metadata"]


def test_what_is_wrong_with_a_declaration_is_an_event_too(story: Story) -> None:
    prompt = {"providerRef": {"name": "m"}, "model": "m", "messages": [{"role": "user", "content": "{{ unclosed"}]}
    judge = {"name": "judge", "signal": "JudgeScore", "dimension": "tone", "min": "4"}
    provider = {"baseURL": "https://127.0.0.1:1/v1", "tls": {"insecureSkipVerify": True}}
    for item, reason, says in (
        (ours("PromptVersion", "broken", prompt), "InvalidSpec", "spec.messages[0].content: line 1"),
        (ours("PromptSLO", "broken", {"objectives": [judge]}), "InvalidSpec", "do not export JudgeScore"),
        (ours("ModelProvider", "trusting", provider), "InsecureSkipVerify", "Set the endpoint's CA instead"),
    ):
        story.kubectl.apply(item)

        def told(kind: str = item["kind"], reason: str = reason, says: str = says) -> bool:
            which = f"involvedObject.kind={kind},reason={reason}"
            return says in str(story.kubectl.json("get", "events", "--field-selector", which))

        story.wait(told, f"an Event {reason} of the {item['kind']}")


def test_owned_objects_are_put_right_and_go_with_their_gateway(story: Story) -> None:
    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    kinds = "deployment,service,serviceaccount,rolebinding,poddisruptionbudget,networkpolicy"
    names = story.kubectl.names(kinds, "-l", "promptrollout.dev/gateway=default")
    assert len(names) == 6
    story.kubectl("scale", "deployment", "default-gateway", "--replicas=3")
    story.wait(
        lambda: story.kubectl.json("get", "deployment", "default-gateway")["spec"]["replicas"] == 1,
        "the replicas of the PromptGateway",
    )

    def limits() -> dict[str, str]:
        item = story.kubectl.json("get", "deployment", "default-gateway")
        return dict(item["spec"]["template"]["spec"]["containers"][0]["resources"].get("limits") or {})

    for cpu in ('"1500m"', "null"):
        patch = f'{{"spec":{{"resources":{{"limits":{{"cpu":{cpu},"memory":"512Mi"}}}}}}}}'
        story.kubectl("patch", "promptgateway", "default", "--type=merge", "-p", patch)
        story.wait(lambda cpu=cpu: ("cpu" in limits()) == (cpu != "null"), f"limits.cpu {cpu}")
    # an apply of somebody else, whose fields an apply of ours leaves alone
    theirs = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "default-gateway"}}
    env = [{"name": "HTTP_PROXY", "value": "http://elsewhere"}]
    pods = {"containers": [{"name": "gateway", "env": env, "resources": {"limits": {"cpu": "2"}}}]}
    flags = ("--server-side", "--force-conflicts", "--field-manager=somebody", "--validate=false")
    story.kubectl.apply(theirs | {"spec": {"template": {"spec": pods}}}, arguments=flags)

    def is_ours() -> bool:
        item = story.kubectl.json("get", "deployment", "default-gateway")
        return "HTTP_PROXY" not in str(item["spec"]) and "cpu" not in limits()

    story.wait(is_ours, "the Deployment as the PromptGateway has it")
    story.kubectl("delete", "promptgateway", "default")
    story.wait(
        lambda: not story.kubectl.names(kinds, "-l", "promptrollout.dev/gateway=default"),
        "the end of the owned objects",
    )


def test_a_deleted_rollout_is_retired_and_a_new_one_takes_over(story: Story) -> None:
    story.given(v1={}, v2={"errorRate": 0.5}).apply("v1").healthy("v1")
    with story.users():
        story.apply("v2").rolled_back("v2")
    before = story.delivery()["spec"]["sequence"]
    story.kubectl("delete", "promptrollout", "app")
    story.wait(lambda: story.delivery()["spec"].get("retiredAt"), "retiredAt")
    story.apply("v1").healthy("v1")
    story.wait(lambda: "retiredAt" not in story.delivery()["spec"], "the delivery in force again")
    assert story.delivery()["spec"]["sequence"] > before
    assert story.digest("v2") in [r["digest"] for r in story.status()["rejected"]]


def test_without_analysis_steps_advance_by_time_alone(story: Story) -> None:
    story.given(v1={}, v2={})
    changes: dict[str, Any] = {"steps": [{"weight": 50, "minDurationSeconds": 1}], "canary": {"bakeSeconds": 0}}

    def apply(word: str) -> None:
        manifest = story.manifest(word, **dict(changes))
        manifest["spec"]["analysis"] = {"mode": "None", "intervalSeconds": 1}
        story.kubectl.apply(manifest)

    apply("v1")
    story.healthy("v1")
    apply("v2")
    story.healthy("v2")


def test_its_own_metrics_tell_of_phases_decisions_and_writes(story: Story) -> None:
    story.given(v1={}).apply("v1").healthy("v1")
    pod = story.system.json("get", "pod", story.operator_pod(), "-n", OPERATOR_NAMESPACE)
    text = HTTP.get(f"http://{pod['status']['podIP']}:9090/metrics").text
    phase = f'promptrollout_rollout_info{{namespace="{story.namespace}",phase="Healthy",rollout="app"}} 1.0'
    assert phase in text
    assert 'promptrollout_decisions_total{reason="InitialVersion"}' in text
    assert 'promptrollout_writes_total{kind="PromptRollout",result="ok",verb="status"}' in text


def test_an_object_in_the_way_is_named_and_its_end_is_enough(story: Story) -> None:
    ports = [{"name": "http", "port": 80}]
    story.kubectl.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "default-gateway"}, "spec": {"ports": ports}}
    )
    story.given(replicas=1, v1={})

    def ready() -> dict[str, Any]:
        status = story.kubectl.json("get", "promptgateway", "default").get("status") or {}
        return dict(next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {}))

    story.wait(lambda: "Service default-gateway" in ready().get("message", ""), "the object in the way")
    assert (ready()["status"], ready()["reason"]) == ("False", "ObjectInTheWay")
    story.kubectl("delete", "service", "default-gateway")
    # seen at the next list of all objects, or as here when the gateway is looked at anyway
    story.kubectl("scale", "deployment", "default-gateway", "--replicas=2")
    story.wait(lambda: ready().get("status") == "True", "a gateway that is ready")


def test_callers_need_keys_of_the_secret_and_keys_rotate_without_a_restart(story: Story) -> None:
    def secret(*keys: str) -> dict[str, Any]:
        lines = "\n".join(f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in keys)
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "callers"}, "stringData": {"shop": lines}}

    def asked(key: str) -> int:
        url, headers = story.gateway_url(), {"authorization": f"Bearer {key}"} if key else {}
        try:
            return HTTP.get(f"{url}/v1/models", headers=headers).status_code if url else 0
        except httpx.TransportError:
            return 0

    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    assert asked("") == 200
    story.kubectl.apply(secret("old"))
    auth = '{"spec":{"auth":{"mode":"Keys","keysSecretRef":{"name":"callers"}}}}'
    story.kubectl("patch", "promptgateway", "default", "--type=merge", "-p", auth)
    story.wait(lambda: asked("") == 401 and asked("old") == 200, "a gateway that asks for keys")
    gateway = story.kubectl.json("get", "promptgateway", "default")
    (said,) = [c for c in gateway["status"]["conditions"] if c["type"] == "Authenticated"]
    assert (said["status"], said["reason"]) == ("True", "Keys")
    before = [pod["metadata"]["name"] for pod in story.pods()]
    story.kubectl.apply(secret("new"))
    story.wait(lambda: asked("new") == 200 and asked("old") == 401, "the other key")
    assert [pod["metadata"]["name"] for pod in story.pods()] == before


def test_what_only_pods_know_is_in_the_gateways_conditions_and_events(story: Story) -> None:
    def said(kind: str) -> tuple[str, str]:
        gateway = story.kubectl.json("get", "promptgateway", "default")
        found = [c for c in (gateway.get("status") or {}).get("conditions", []) if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    story.wait(lambda: said("ProvidersAnswer") == ("True", "Answering"), "the pods' word on their providers")
    # neither the Secret nor the permission is there
    refused = {
        "NoKeys": {"mode": "Keys", "keysSecretRef": {"name": "nowhere"}},
        "TokenReviewsForbidden": {"mode": "ServiceAccounts", "keysSecretRef": None},
    }
    for reason, auth in refused.items():
        patch = json.dumps({"spec": {"auth": auth}})
        story.kubectl("patch", "promptgateway", "default", "--type=merge", "-p", patch)
        wanted = ("False", reason)
        story.wait(lambda wanted=wanted: said("Authenticated") == wanted, reason)  # type: ignore[misc]
    told = story.kubectl("get", "events", "--field-selector", "involvedObject.kind=PromptGateway", "-o", "json")
    assert '"reason": "NoKeys"' in told
    assert "set gateway.tokenReviewers in the chart" in told
