"""Configuration, events, copies, dependents and the statuses of declarations."""

from pathlib import Path
from typing import Any

import pytest

from promptrollout.api.rollout import Decision
from promptrollout.operator import dependents
from promptrollout.operator.cluster.events import event_of, recent
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.config import ConfigError, load, pod_environment
from promptrollout.operator.declarations.reconcile import provider_verdict, slo_verdict, version_verdict
from promptrollout.operator.delivery import copies
from promptrollout.operator.delivery.confirmations import Acknowledgement
from promptrollout.operator.delivery.status import delivery_status, is_complete
from tests.unit.operator.world import PROMPT, a_copy, an_object, store_with

OF = {
    "PromptDelivery": dependents.of_delivery,
    "PromptVersion": dependents.of_version,
    "PromptSLO": dependents.of_slo,
    "ModelProvider": dependents.of_provider,
    "PromptGateway": dependents.of_gateway,
    "ConfigMap": dependents.of_overrides,
    "Deployment": dependents.of_deployment,
}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metricsSources: [{name: default}]", "metricsSources.0.url"),
        ("metricsSources: [{name: a, url: 'http://x', namespaceLabel: a-b}]", "metricsSources.0.namespaceLabel"),
        ("metricsSources: [{name: a, url: 'http://x'}, {name: a, url: 'http://y'}]", "the name a is used twice"),
        ("metricSources: []", "metricSources"),
        ("metricsSources: [{name: a, url: 'http://x', bearerTokenFile: token}]", "metricsSources.0.bearerTokenFile"),
        (
            "metricsSources: [{name: a, url: 'http://x', headers: {authorization: b}, bearerTokenFile: /t}]",
            "Authorization or bearerTokenFile, not both",
        ),
        ("logLevel: loud", "logLevel"),
        (
            "allowedProviderNetworks: [10.0.0.1/8]",
            "allowedProviderNetworks.0: Value error, '10.0.0.1/8' is not a network",
        ),
        ("- a", "must be a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_configuration_names_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml") as error:
        load(file)
    assert says in str(error.value)


def test_a_missing_configuration_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load(tmp_path / "no.yaml")


def test_a_configuration_as_the_chart_renders_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "metricsSources:\n- {name: default, url: 'http://prometheus:9090'}\n"
        'watchNamespaces: []\nlogLevel: INFO\ngatewayImage: "x/promptrollout:1"\n'
    )
    config = load(file)
    assert (config.metrics_sources[0].url, config.log_level) == ("http://prometheus:9090", "info")
    assert pod_environment({"POD_NAME": "p", "PROMPTROLLOUT_BIND_ADDRESS": "127.0.0.9"}).bind_address == "127.0.0.9"


def decision(at: str = "2026-11-21T09:00:00Z", **fields: Any) -> Decision:
    base = {"id": "6a-1", "at": at, "reason": "ObjectiveBreached", "revision": 2, "weight": 10, "message": "why"}
    return Decision.model_validate(base | fields)


def test_an_event_names_its_decision_and_fits() -> None:
    event = event_of(an_object("PromptRollout", "app", {}), decision(type="Warning", message="ü" * 1024), "pod")
    assert event["metadata"]["name"] == "app.6a-1"
    assert (event["reason"], event["type"]) == ("ObjectiveBreached", "Warning")
    assert len(event["note"].encode()) <= 1024
    assert event["eventTime"] == "2026-11-21T09:00:00.000000Z"


def test_after_a_restart_the_last_hour_is_posted_again_in_order() -> None:
    young, younger = decision("2026-11-21T09:00:00Z"), decision("2026-11-21T09:10:00Z")
    old = decision("2026-11-21T07:00:00Z")
    now = 1795253400.0  # 09:30
    assert recent([younger, young, old], now) == [young, younger]


def test_copies_are_collected_but_never_those_in_use() -> None:
    owned = [a_copy(model=f"m{n}") for n in range(5)]
    in_use = {owned[0]["metadata"]["name"]}
    assert copies.superfluous(owned, in_use, 2) == [owned[1], owned[2]]
    assert copies.superfluous(owned, in_use, 0) == owned[1:]
    assert copies.superfluous(owned, in_use, 9) == []


def test_the_copy_that_was_promoted_last_is_known_by_its_mark() -> None:
    first, second, third = (a_copy(model=f"m{n}") for n in range(3))
    first["metadata"]["annotations"] = {copies.ANNOTATION_PROMOTED: "10"}
    second["metadata"]["annotations"] = {copies.ANNOTATION_PROMOTED: "9"}
    found = copies.promoted([first, second, third])
    assert found is not None
    assert found.version == first["metadata"]["name"]
    assert copies.promoted([third]) is None


def rollout(name: str, **spec: Any) -> dict[str, Any]:
    return an_object("PromptRollout", name, {"gatewayRef": {"name": "default"}} | spec)


def test_what_is_looked_at_again() -> None:
    store: Store = store_with(
        rollout("a", template=PROMPT),
        rollout("b", versionRef={"name": "first"}, analysis={"sloRefs": [{"name": "slo"}]}),
    )
    a, b, gateway = (
        Key("PromptRollout", "ns", "a"),
        Key("PromptRollout", "ns", "b"),
        Key("PromptGateway", "ns", "default"),
    )

    def after(kind: str, name: str, **metadata: Any) -> set[Key]:
        return OF[kind](Key(kind, "ns", name), None, an_object(kind, name, {}, **metadata), store)

    assert after("PromptDelivery", "a") == {a}
    assert after("PromptVersion", "first") == {Key("PromptVersion", "ns", "first"), b}
    assert a in after("PromptVersion", "a-1", labels={"promptrollout.dev/rollout": "a"})
    # an object that was in the way of a copy, once it is deleted
    foreign = an_object("PromptVersion", "a-0123456789", {})
    assert a in dependents.of_version(Key("PromptVersion", "ns", "a-0123456789"), foreign, None, store)
    assert Key("PromptRollout", "ns", "no") not in after("PromptVersion", "no-0123456789")
    assert b in after("PromptSLO", "slo")
    assert a not in after("PromptSLO", "slo")
    assert {a, b, gateway} <= after("ModelProvider", "model")
    assert {a, b, gateway} == after("PromptGateway", "default")
    assert after("ConfigMap", "promptrollout-overrides") == {a, b}
    assert after("Deployment", "default-gateway", labels={"promptrollout.dev/gateway": "default"}) == {gateway}


def test_the_status_of_a_delivery_is_written_once_per_news() -> None:
    item = an_object("PromptDelivery", "app", {})
    answer = Acknowledgement(True, 2, 2)
    status = delivery_status(item, 4, answer, 1_800_000_000)
    assert status is not None
    item["status"] = status
    assert is_complete(item, 4) == (2, 2)
    assert is_complete(item, 5) is None
    assert delivery_status(item, 4, answer, 1_900_000_000) is None
    assert delivery_status(item, 4, None, 1_900_000_000) is None
    waiting = delivery_status(item, 5, Acknowledgement(False, 1, 2), 1_900_000_000)
    assert waiting is not None
    assert waiting["conditions"][0]["status"] == "False"


def test_declarations_say_what_is_wrong_with_them() -> None:
    good, digest = version_verdict(an_object("PromptVersion", "v", PROMPT))
    assert (good[0], digest is not None) == (True, True)
    bad, _ = version_verdict(an_object("PromptVersion", "v", PROMPT | {"outputSchema": {"type": "odd"}}))
    assert bad[:2] == (False, "InvalidSpec")
    assert "spec.outputSchema" in bad[2]
    assert provider_verdict(an_object("ModelProvider", "m", {"baseURL": "http://m/v1"}), Store())[0]
    doubtful = provider_verdict(an_object("ModelProvider", "m", {"baseURL": "https://api.openai.com"}), Store())
    assert doubtful[:2] == (True, "Valid")
    assert "spec.baseURL has no /v1" in doubtful[2]
    assert provider_verdict(an_object("ModelProvider", "m", {}), Store())[2].startswith("spec.baseURL")
    assert slo_verdict(an_object("PromptSLO", "s", {"objectives": []}))[0] is False
