"""The CRDs on a real API server: good manifests are accepted, each kind of bad one is refused with a clear message."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptrollout.api.delivery import ArmConfig, DeliverySpec, ProviderConfig
from promptrollout.api.digest import digest_of
from promptrollout.api.names import API_VERSION
from promptrollout.api.prompt import PromptSpec
from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.api import ApiKubectl, Refused
from tests.integration.chart import install_all_but_the_operator

pytestmark = pytest.mark.usefixtures("no_operator")

Manifest = dict[str, Any]
PROMPT: Manifest = {
    "providerRef": {"name": "openai"},
    "model": "gpt-5.4-mini",
    "parameters": {
        "temperature": "0.2",
        "maxTokens": 400,
        "extra": {"reasoning_effort": "low", "weights": [0.5, None]},
    },
    "messages": [
        {"role": "system", "content": "You are the assistant of {{ company }}."},
        {"placeholder": "history"},
        {"role": "user", "content": "Ends."},
    ],
    "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    "outputSchema": {
        "type": "object",
        "required": ["answer"],
        "properties": {"answer": {"type": "string"}, "score": {"type": "number", "maximum": 1.0, "default": None}},
    },
}


def manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": copy.deepcopy(spec)}


def rollout() -> Manifest:
    return manifest(
        "PromptRollout",
        "support",
        {
            "gatewayRef": {"name": "default"},
            "template": PROMPT,
            "stickiness": {"by": "User"},
            "evidenceSource": "Reported",
            "reporting": {"cacheSeconds": 0, "settleSeconds": 60},
            "strategy": {
                "canary": {
                    "audience": {
                        "include": [{"header": "x-plan", "values": ["free"]}],
                        "exclude": [{"baggage": "user.plan", "values": ["gold"]}],
                    },
                    "testers": [{"header": "x-team", "values": ["qa"]}],
                    "steps": [
                        {"weight": 5, "minDurationSeconds": 600},
                        {"pause": {}},
                        {"weight": 50, "minDurationSeconds": 600},
                    ],
                }
            },
            "analysis": {
                "sloRefs": [{"name": "support-quality"}],
                "objectives": [
                    {
                        "name": "cost",
                        "signal": "CostPerRequest",
                        "max": "0.004",
                        "versusStable": {"maxIncreasePercent": 10, "rollbackAbovePercent": 5},
                        "minSamples": 200,
                    },
                    {"name": "slow", "signal": "Latency", "thresholdSeconds": "2.5", "max": "0.1"},
                ],
            },
        },
    )


def provider() -> Manifest:
    return manifest(
        "ModelProvider",
        "openai",
        {
            "baseURL": "https://api.openai.com/v1",
            "apiKeySecretRef": {"name": "openai", "key": "api-key"},
            "prices": [{"model": "gpt-5.4-mini", "inputPerMillionUsd": "0.4", "outputPerMillionUsd": "1.6"}],
        },
    )


def version() -> Manifest:
    return manifest("PromptVersion", "support-v1", PROMPT)


def gateway() -> Manifest:
    return manifest("PromptGateway", "default", {"replicas": 2})


def slo() -> Manifest:
    return manifest("PromptSLO", "quality", {"objectives": [{"name": "errors", "signal": "ErrorRate", "max": "0.02"}]})


def delivery() -> Manifest:
    spec = PromptSpec.model_validate(PROMPT)
    arm = ArmConfig(
        version="support-0123456789",
        digest=digest_of(spec),
        prompt=spec,
        provider=ProviderConfig(name="openai", base_url="https://api.openai.com/v1"),
    )
    body = DeliverySpec(gateway="default", rollout_uid="7f", sequence=3, weight=5, salt="s", stable=arm, canary=arm)
    return manifest("PromptDelivery", "support", body.dump())


GOOD = (rollout, provider, version, gateway, slo, delivery)


class Objects:
    """Manifests applied on the server's side, in the test's namespace."""

    def __init__(self, kubectl: ApiKubectl) -> None:
        self.kubectl = kubectl

    def apply(self, body: Manifest) -> Manifest:
        return self.kubectl.api.apply(body, self.kubectl.namespace)

    def refusal(self, body: Manifest) -> str:
        """What the API server says of a dry run."""
        try:
            accepted = self.kubectl.api.apply(body, self.kubectl.namespace, dry_run=True)
        except Refused as refused:
            return str(refused)
        pytest.fail(f"accepted: {accepted}")


@pytest.fixture(scope="module")
def chart(sandbox: Sandbox) -> None:
    install_all_but_the_operator(sandbox.kubeconfig)


@pytest.fixture
def objects(chart: None, kubectl: ApiKubectl) -> Objects:
    return Objects(kubectl)


@pytest.fixture
def trials(chart: None, sandbox: Sandbox, shared_namespace: str) -> Objects:
    """For dry runs alone."""
    return Objects(ApiKubectl(sandbox.kubeconfig, shared_namespace))


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_good_manifest_is_accepted_and_applying_it_again_changes_nothing(
    objects: Objects, eventually: Callable[..., Any], make: Callable[[], Manifest]
) -> None:
    objects.apply(make())

    def unchanged() -> bool:
        # an operator that runs may be writing its status in between; it comes to rest
        before, after = objects.apply(make())["metadata"], objects.apply(make())["metadata"]
        assert before["generation"] == after["generation"]
        return bool(before["resourceVersion"] == after["resourceVersion"])

    eventually(unchanged)


def test_client_side_apply_twice_changes_nothing(objects: Objects) -> None:
    bodies = [make() for make in GOOD]
    objects.kubectl.real.apply(*bodies)
    lines = objects.kubectl.real.apply(*bodies).splitlines()
    assert len(lines) == len(GOOD)
    assert [line for line in lines if not line.endswith("unchanged")] == []


def test_digest_survives_the_api_server(objects: Objects) -> None:
    """Nothing that the API server fills in, reorders or rewrites (1.0 becomes 1) reaches the digest."""
    wanted = digest_of(PromptSpec.model_validate(PROMPT))
    stored_version = objects.apply(version())["spec"]
    stored_rollout = objects.apply(rollout())["spec"]["template"]
    stored_delivery = objects.apply(delivery())["spec"]["canary"]["prompt"]
    for stored in (stored_version, stored_rollout, stored_delivery):
        assert digest_of(PromptSpec.model_validate(stored)) == wanted


def _set(*path: Any, to: Any) -> Callable[[Manifest], None]:
    def change(body: Manifest) -> None:
        node: Any = body["spec"]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return change


def _drop(*path: Any) -> Callable[[Manifest], None]:
    def change(body: Manifest) -> None:
        node: Any = body["spec"]
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


STEPS = ("strategy", "canary", "steps")
OBJECTIVES = ("analysis", "objectives")
TESTERS = ("strategy", "canary", "testers")
Refusal = tuple[str, Callable[[], Manifest], Callable[[Manifest], None], str]
REFUSALS: tuple[Refusal, ...] = (
    ("neither template nor versionRef", rollout, _drop("template"), "set exactly one of template"),
    ("both template and versionRef", rollout, _set("versionRef", to={"name": "v"}), "set exactly one of template"),
    (
        "reporting to nobody",
        rollout,
        _set("evidenceSource", to="Gateway"),
        "reporting belongs to evidenceSource: Reported; set that, or remove spec.reporting",
    ),
    (
        "reporting by default",
        rollout,
        _drop("evidenceSource"),
        "reporting belongs to evidenceSource: Reported; set that, or remove spec.reporting",
    ),
    ("a match of two", rollout, _set(*TESTERS, 0, "baggage", to="team"), "a match names either header or baggage"),
    ("a match of nothing", rollout, _drop(*TESTERS, 0, "header"), "a match names either header or baggage"),
    ("a match without values", rollout, _set(*TESTERS, 0, "values", to=[]), "strategy.canary.testers[0].values"),
    ("settled at once", rollout, _set("reporting", "settleSeconds", to=0), "spec.reporting.settleSeconds"),
    ("a model that no header can name", version, _set("model", to="gpt\n"), "spec.model"),
    ("a fallback likewise", version, _set("fallbacks", to=[{"providerRef": {"name": "o"}, "model": " gpt"}]), "model"),
    ("weight 0", rollout, _set(*STEPS, 0, "weight", to=0), "spec.strategy.canary.steps[0].weight"),
    ("weight 101", rollout, _set(*STEPS, 2, "weight", to=101), "spec.strategy.canary.steps[2].weight"),
    ("weights out of order", rollout, _set(*STEPS, 2, "weight", to=3), "weights must grow strictly"),
    ("a weight twice", rollout, _set(*STEPS, 2, "weight", to=5), "weights must grow strictly"),
    (
        "more held back than the last step leaves",
        rollout,
        _set("strategy", "canary", to={"steps": [{"weight": 80}], "holdbackPercent": 21}),
        "holdbackPercent must not exceed 100 minus the last weight: lower it, or set it to 0",
    ),
    (
        "a holdback without a bake",
        rollout,
        _set("strategy", "canary", to={"steps": [{"weight": 80}], "holdbackPercent": 5, "bakeSeconds": 0}),
        "holdbackPercent needs bakeSeconds above 0: raise bakeSeconds, or set holdbackPercent to 0",
    ),
    ("only pauses", rollout, _set(*STEPS, to=[{"pause": {}}]), "at least one step needs a weight"),
    ("no steps", rollout, _set(*STEPS, to=[]), "spec.strategy.canary.steps"),
    ("empty step", rollout, _set(*STEPS, 0, to={}), "a step has either weight or pause"),
    ("weight and pause", rollout, _set(*STEPS, 0, "pause", to={}), "a step has either weight or pause"),
    (
        "time on a pause",
        rollout,
        _set(*STEPS, 1, "minDurationSeconds", to=5),
        "minDurationSeconds belongs to a weight",
    ),
    ("objective without bound", rollout, _drop(*OBJECTIVES, 1, "max"), "an objective needs a bound"),
    ("objective twice", rollout, _set(*OBJECTIVES, 1, "name", to="cost"), "cost"),
    (
        "latency without threshold",
        rollout,
        _drop(*OBJECTIVES, 1, "thresholdSeconds"),
        "need exactly one of",
    ),
    (
        "threshold without latency",
        rollout,
        _set(*OBJECTIVES, 0, "thresholdSeconds", to="1"),
        "thresholdSeconds and quantile belong to",
    ),
    ("rate above 1", rollout, _set(*OBJECTIVES, 1, "max", to="1.5"), "max of a rate is a share between 0 and 1"),
    ("number for a decimal", rollout, _set(*OBJECTIVES, 0, "max", to=0.004), "max"),
    ("max no number", rollout, _set(*OBJECTIVES, 0, "max", to="cheap"), "spec.analysis.objectives[0].max"),
    ("max of zero", rollout, _set(*OBJECTIVES, 0, "max", to="0.0"), "max must be above 0"),
    ("threshold of zero", rollout, _set(*OBJECTIVES, 1, "thresholdSeconds", to="0"), "thresholdSeconds must be"),
    ("unknown signal", rollout, _set(*OBJECTIVES, 0, "signal", to="Vibes"), "supported values"),
    (
        "rollback above the margin",
        rollout,
        _set(*OBJECTIVES, 0, "versusStable", "rollbackAbovePercent", to=20),
        "rollbackAbovePercent must not exceed maxIncreasePercent",
    ),
    ("sticky by a header not named", rollout, _set("stickiness", to={"by": "Header"}), "stickiness.header belongs to"),
    (
        "header without by",
        rollout,
        _set("stickiness", to={"by": "User", "header": "x-user"}),
        "stickiness.header belongs to",
    ),
    ("mode None with objectives", rollout, _set("analysis", "mode", to="None"), "mode None excludes objectives"),
    ("nothing to judge by", rollout, _set("analysis", to={}), "declare objectives or sloRefs, or say mode: None"),
    ("misspelt field", rollout, _set("strategy", "canary", "stepz", to=[]), "stepz"),
    ("name too long for its copies", rollout, lambda body: body["metadata"].update(name="a" * 53), "metadata.name"),
    (
        "placeholder with a role",
        version,
        _set("messages", 1, "role", to="user"),
        "a message has either role and content, or placeholder",
    ),
    ("role without content", version, _drop("messages", 2, "content"), "role and content go together"),
    (
        "history twice",
        version,
        _set("messages", 2, to={"placeholder": "history"}),
        "placeholder: history may appear at most once",
    ),
    ("no messages", version, _set("messages", to=[]), "spec.messages"),
    (
        "one message of 300 KiB",
        version,
        _set("messages", 0, "content", to="x" * 300 * 1024),
        "spec.messages[0].content",
    ),
    (
        "messages of 300 KiB together",
        version,
        _set("messages", to=[{"role": "user", "content": "x" * 100 * 1024}] * 3),
        "192 KiB",
    ),
    ("temperature as a number", version, _set("parameters", "temperature", to=0.2), "temperature"),
    ("base URL without scheme", provider, _set("baseURL", to="api.openai.com/v1"), "spec.baseURL"),
    (
        "provider's header of the connection",
        provider,
        _set("headers", to=[{"name": "HOST", "value": "a"}]),
        "connection",
    ),
    (
        "provider's header of authentication",
        provider,
        _set("headers", to=[{"name": "Cookie", "value": "a"}]),
        "carries",
    ),
    (
        "provider's header twice",
        provider,
        _set("headers", to=[{"name": "a", "value": "b"}] * 2),
        "duplicate entries for key",
    ),
    (
        "provider with two CAs",
        provider,
        _set("tls", to={"caSecretRef": {"name": "a", "key": "b"}, "caConfigMapRef": {"name": "a", "key": "b"}}),
        "a CA comes from caConfigMapRef or from caSecretRef, not from both",
    ),
    ("base URL with a slash at the end", provider, _set("baseURL", to="https://api.openai.com/v1/"), "spec.baseURL"),
    (
        "two prices for one model",
        provider,
        lambda body: body["spec"]["prices"].append(dict(body["spec"]["prices"][0])),
        "gpt-5.4-mini",
    ),
    ("no replicas", gateway, _set("replicas", to=0), "spec.replicas"),
    ("keys without a Secret", gateway, _set("auth", to={"mode": "Keys"}), "this mode needs keysSecretRef"),
    (
        "a rate of keys that nobody asks for",
        gateway,
        _set("limits", to={"requestsPerMinutePerKey": 60}),
        "requestsPerMinutePerKey needs auth.mode",
    ),
    ("slo without objectives", slo, _set("objectives", to=[]), "spec.objectives"),
)


@pytest.mark.parametrize(
    ("make", "change", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_bad_manifest_is_refused(
    trials: Objects, make: Callable[[], Manifest], change: Callable[[Manifest], None], message: str
) -> None:
    body = make()
    change(body)
    assert message in trials.refusal(body)


Change = tuple[str, Callable[[], Manifest], Callable[[Manifest], None], str]
IMMUTABLE: tuple[Change, ...] = (
    ("text", version, _set("messages", 0, "content", to="Else."), "make another PromptVersion"),
    ("inside the output schema", version, _set("outputSchema", "required", to=[]), "make another PromptVersion"),
    ("inside a tool", version, _set("tools", 0, "function", "name", to="other"), "make another PromptVersion"),
    ("inside extra", version, _set("parameters", "extra", "reasoning_effort", to="high"), "make another PromptVersion"),
    ("a field removed", version, _drop("tools"), "make another PromptVersion"),
    ("provider's URL", provider, _set("baseURL", to="https://else.example/v1"), "type and baseURL are immutable"),
)


@pytest.mark.parametrize(
    ("make", "change", "message"), [case[1:] for case in IMMUTABLE], ids=[case[0] for case in IMMUTABLE]
)
def test_what_is_immutable_stays(
    objects: Objects, make: Callable[[], Manifest], change: Callable[[Manifest], None], message: str
) -> None:
    objects.apply(make())
    body = make()
    change(body)
    assert message in objects.refusal(body)


def test_provider_keys_and_prices_may_change(objects: Objects) -> None:
    objects.apply(provider())
    body = provider()
    body["spec"]["prices"][0]["inputPerMillionUsd"] = "0.5"
    body["spec"]["apiKeySecretRef"]["name"] = "other"
    assert objects.apply(body)["metadata"]["generation"] == 2


def test_mode_none_needs_no_objectives(objects: Objects) -> None:
    body = rollout()
    body["spec"]["analysis"] = {"mode": "None"}
    objects.apply(body)


def test_largest_delivery_is_accepted(objects: Objects) -> None:
    """Two prompts of 192 KiB each in one object stay below etcd's and the CRD's limits."""
    body = delivery()
    text = {"role": "user", "content": "x" * 96 * 1024}
    for arm in ("stable", "canary"):
        body["spec"][arm]["prompt"]["messages"] = [text, text]
    objects.apply(body)


def test_defaults_and_columns(objects: Objects) -> None:
    spec = objects.apply(gateway())["spec"]
    assert spec["metricsSource"] == "default"
    assert spec["limits"]["maxRequestBytes"] == 4 * 1024 * 1024
    assert spec["resources"]["requests"] == {"cpu": "250m", "memory": "256Mi"}
    objects.apply(rollout())
    header = objects.kubectl("get", "pro").splitlines()[0].split()
    assert header == ["NAME", "PHASE", "STEP", "WEIGHT", "STABLE", "CANARY", "READY", "AGE"]
    for name in ("promptrollout", "promptrollouts", "pro"):
        assert "Gateway Ref" in objects.kubectl("describe", name, "support")
    assert "promptrollout.promptrollout.dev/support" in objects.kubectl("get", "prompts", "-o", "name")
    by_gateway = objects.kubectl("get", "pro", "--field-selector=spec.gatewayRef.name=default", "-o", "name")
    assert by_gateway.strip() == "promptrollout.promptrollout.dev/support"


def test_examples_of_the_docs_are_accepted(objects: Objects) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "objects.md").read_text("utf-8")
    blocks = [block.split("```")[0] for block in page.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        objects.apply(yaml.safe_load(block))


def test_status_is_a_subresource(objects: Objects) -> None:
    body = rollout()
    body["status"] = {"phase": "Healthy"}
    assert "status" not in objects.apply(body)
