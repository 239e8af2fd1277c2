"""Keys of providers and of response ids, from their objects to real pods: where they go, and who believes them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from promptrollout.gateway.assignment.response_id import ResponseId, ResponseIds
from promptrollout.sandbox.sandbox import Sandbox
from tests.connections import HTTP
from tests.integration.cluster import Kubectl
from tests.integration.story import Story, ours

READABLE = "5e" * 32


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


def secret(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "model"}, "stringData": data}


def condition(story: Story, kind: str) -> dict[str, Any]:
    status = story.kubectl.json("get", "promptgateway", "default").get("status", {})
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), {})


def signing_key(story: Story) -> dict[str, Any]:
    found: dict[str, Any] = story.kubectl.json("get", "promptsigningkey", story.name)["spec"]
    return found


def vote(story: Story, response_id: str) -> dict[str, Any]:
    url = story.wait(story.gateway_url, "the gateway's URL")
    answer = HTTP.post(f"{url}/v1/feedback", json={"response_id": response_id, "rating": "positive"})
    found: dict[str, Any] = answer.json()
    return found


def ask(story: Story) -> str:
    url = story.wait(story.gateway_url, "the gateway's URL")
    message = {"role": "user", "content": "Hello"}
    body = {"model": story.name, "user": "u1", "messages": [message]}
    return str(HTTP.post(f"{url}/v1/chat/completions", json=body).json()["id"])


def forged(story: Story, key: str) -> str:
    """By whoever has read the key and the rollout's status."""
    uid = story.kubectl.json("get", "promptrollout", story.name)["metadata"]["uid"]
    now, version = int(time.time()), story.digest("v1").removeprefix("sha256:")[:10]
    given = ResponseId("chatcmpl-1", version, "stable", 3, now, b"..", now)
    return ResponseIds(uid, bytes.fromhex(key)).wrap(given)


def test_a_key_goes_only_to_the_hosts_that_its_secret_names(story: Story) -> None:
    story.given(replicas=1, v1={})
    story.kubectl.apply(secret(**{"api-key": "sk-test", "hosts": "elsewhere.example.com"}))
    story.apply("v1")
    story.until(lambda s: "`hosts` of its Secret does not name it" in s["message"])
    story.wait(lambda: condition(story, "ProviderKeysBound").get("reason") == "ProviderKeyNotBound", "the condition")
    assert "model (1 of 1 pods)" in condition(story, "ProviderKeysBound")["message"]
    events = story.kubectl.json("get", "events")["items"]
    assert "ProviderKeyNotBound" in [event["reason"] for event in events]
    story.kubectl.apply(secret(**{"api-key": "sk-test", "hosts": "127.0.0.1"}))
    story.healthy("v1")
    assert ask(story).startswith("chatcmpl-P")
    story.wait(lambda: condition(story, "ProviderKeysBound").get("status") == "True", "the condition")


def test_without_hosts_the_key_is_sent_and_the_gateway_says_so(story: Story) -> None:
    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    assert ask(story).startswith("chatcmpl-P")
    story.wait(lambda: condition(story, "ProviderKeysBound").get("reason") == "ProviderKeyUnbound", "it")


class Elsewhere(BaseHTTPRequestHandler):
    """A host of somebody who wants the key; answers as a model would."""

    keys: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.keys.append(self.headers["authorization"])
        message = {"role": "assistant", "content": "{}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}).encode()
        self.send_response(200)
        for name, value in (("content-type", "application/json"), ("content-length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.keys.append(self.headers["authorization"])
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test asserts what was sent."""


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the keys that it was sent."""
    Elsewhere.keys.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", Elsewhere.keys
        server.shutdown()


def test_a_provider_of_the_same_name_sends_the_key_of_the_one_before_nowhere(
    story: Story, elsewhere: tuple[str, list[str]]
) -> None:
    """The pods mount it until their Deployment is rolled, and its Secret does not say where it may go."""
    url, sent = elsewhere
    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    mine = secret(**{"api-key": "sk-mine"})
    mine["metadata"]["name"] = "mine"
    provider = ours("ModelProvider", "model", {"baseURL": url, "apiKeySecretRef": {"name": "mine", "key": "api-key"}})
    with story.users():
        story.kubectl("delete", "modelprovider", "model")
        story.kubectl.apply(mine, provider)
        story.apply("v2", steps=[{"weight": 50, "minDurationSeconds": 60}])
        story.wait(lambda: len(sent) > 20, "requests of the canary")
    assert set(sent) == {"Bearer sk-mine"}
    arms = story.delivery()["spec"]
    assert arms["stable"]["provider"]["baseURL"] != arms["canary"]["provider"]["baseURL"] == url


def test_keys_of_response_ids_are_in_an_object_of_their_own(story: Story) -> None:
    story.given(v1={}).apply("v1").healthy("v1")
    spec = story.delivery()["spec"]
    assert not {"responseKey", "responseKeys"} & spec.keys()
    assert [report["signingKey"] for report in story.reports()] == [True, True]
    key = signing_key(story)["key"]
    assert key not in json.dumps(story.delivery())
    given = ask(story)
    uid = story.kubectl.json("get", "promptrollout", story.name)["metadata"]["uid"]
    assert ResponseIds(uid, bytes.fromhex(key)).unwrap(given, time.time()) is not None
    assert vote(story, given)["counted"]
    # who wants others deletes it: they are drawn at once, and pods take them over without a restart
    story.kubectl("delete", "promptsigningkey", story.name)
    story.wait(lambda: story.kubectl.find("promptsigningkey", story.name), "the new one")
    assert signing_key(story)["key"] != key
    story.wait(lambda: vote(story, given).get("error", {}).get("code") == "invalid_response_id", "its being taken over")
    assert story.delivery()["spec"]["sequence"] == spec["sequence"], "it is no change of the configuration"


def test_a_delivery_of_a_release_before_loses_its_readable_key_once_all_pods_have_others(story: Story) -> None:
    story.given(v1={}).apply("v1").healthy("v1")
    sequence = story.delivery()["spec"]["sequence"] + 1
    patch = {"spec": {"responseKey": READABLE, "sequence": sequence}}
    story.kubectl("patch", "promptdelivery", story.name, "--type=merge", "-p", json.dumps(patch))
    story.wait(lambda: "responseKey" not in story.delivery()["spec"], "the operator's taking it out")
    assert signing_key(story)["readable"] == [READABLE]
    wanted = story.delivery()["spec"]["sequence"]
    story.wait(lambda: [report["sequence"] for report in story.reports()] == [wanted] * 2, "the pods' confirming it")
    answer = vote(story, forged(story, READABLE))
    assert (answer["counted"], answer["reason"]) == (False, "key_retired")
    assert vote(story, ask(story))["counted"]
    story.healthy("v1")
