"""Every example is accepted by a real API server, as it is written."""

from pathlib import Path

import httpx
import pytest
import yaml

from promptrollout.sandbox.sandbox import Sandbox
from tests.connections import HTTP
from tests.integration.chart import install_all_but_the_operator
from tests.integration.cluster import Kubectl
from tests.integration.story import Story

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(
    file
    for file in EXAMPLES.rglob("*.yaml")
    if any(
        str((each or {}).get("apiVersion", "")).startswith("promptrollout.dev/")
        for each in yaml.safe_load_all(file.read_text())
    )
)


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


def test_there_are_examples() -> None:
    assert len(FILES) >= 9


@pytest.fixture(scope="module")
def chart(sandbox: Sandbox) -> None:
    install_all_but_the_operator(sandbox.kubeconfig)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_example_is_accepted(chart: None, sandbox: Sandbox, shared_namespace: str, file: Path) -> None:
    kubectl = Kubectl(sandbox.kubeconfig, shared_namespace)
    bodies = [body for body in yaml.safe_load_all(file.read_text()) if body and body["kind"] != "Namespace"]
    for body in bodies:
        body["metadata"].pop("namespace", None)
    text = yaml.safe_dump_all(bodies)
    # strict: a field that the schema does not know is an error, not a warning
    kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)


def asked(story: Story, key: str = "") -> httpx.Response | None:
    """One chat with the rollout; None while nobody listens."""
    if (url := story.gateway_url()) is None:
        return None
    body = {"model": story.name, "messages": [{"role": "user", "content": "Hello"}]}
    body["prompt_variables"] = {"company": "Example"}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        return HTTP.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    except httpx.TransportError:
        return None


def test_the_example_of_callers_lets_in_whom_it_says(story: Story) -> None:
    story.name = "greeter"
    story.given(replicas=1, v1={}).apply("v1").healthy("v1")
    story.kubectl("apply", "-f", str(EXAMPLES / "auth" / "gateway.yaml"))

    def status(key: str) -> int:
        answer = asked(story, key)
        return 0 if answer is None else answer.status_code

    story.wait(lambda: status("") == 401, "a gateway that asks for keys")
    # pods of before, which asked for none, may still answer
    story.kubectl("rollout", "status", "deployment/default-gateway", "--timeout=180s")
    story.wait(lambda: status("shop-key-for-the-example-only") == 200, "an answer to the key")
    assert status("shop-key-for-the-example-onlx") == 401


def test_the_example_of_fallbacks_answers_though_the_first_provider_is_down(story: Story) -> None:
    story.name = "greeter"
    text = (EXAMPLES / "fallback" / "rollout.yaml").read_text()
    for name in ("openai", "second"):
        story.kubectl("create", "secret", "generic", name, "--from-literal=api-key=sk-test")
    text = text.replace("https://api.openai.com/v1", "http://127.0.0.1:1/v1")
    manifests = text.replace("https://llm.example.com/v1", f"{story.sandbox.model_url}/v1")
    story.kubectl("apply", "-f", "-", stdin=manifests)

    def answered() -> httpx.Response | None:
        answer = asked(story)
        return answer if answer is not None and answer.status_code == 200 else None

    answer = story.wait(answered, "an answer")
    assert answer.headers["x-promptrollout-provider"] == "second"
    assert answer.headers["x-promptrollout-model"] == "small"


def test_the_quickstart_is_applied_as_it_is_and_as_often_as_one_likes(story: Story) -> None:
    """The sandbox puts its model in the place of the Service that the provider names, and the address is immutable."""
    text = (EXAMPLES / "quickstart" / "10-provider.yaml").read_text()
    assert "baseURL: http://simulated-model:8080/v1" in text
    for _ in range(2):
        story.kubectl("apply", "-f", "-", stdin=text.replace("namespace: support", f"namespace: {story.namespace}"))
        found = story.kubectl.json("get", "modelprovider", "simulated-model")
        assert found["spec"]["baseURL"] == f"{story.sandbox.model_url}/v1"
