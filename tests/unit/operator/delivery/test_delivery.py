"""Compiling a delivery: what pods get, and when they get something new."""

import dataclasses
import re
from typing import Any

import pytest

from promptrollout.api import names
from promptrollout.api.delivery import DeliverySpec, Memory, ProviderConfig, Stickiness, VersionRef
from promptrollout.api.digest import digest_of
from promptrollout.api.meta import SecretKeyRef
from promptrollout.api.rollout import Snapshot
from promptrollout.engine.lifecycle.facts import DeliveryIntent
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.declarations.reconcile import provider_verdict
from promptrollout.operator.delivery.compile import CannotCompile, body_of, compile_delivery, prompt_in, read
from promptrollout.operator.dependents import of_delivery
from promptrollout.operator.evidence.requests import ObjectiveQueries
from promptrollout.operator.gateways.provider_files import source_of
from promptrollout.operator.rollouts.resolve import resolve
from tests.unit.operator.world import a_copy, an_object, prompt, rollout_spec, store_with

V1, V2 = a_copy(), a_copy(model="large")


def ref(item: dict[str, Any]) -> VersionRef:
    return VersionRef(version=item["metadata"]["name"], digest=digest_of(prompt(model=item["spec"]["model"])))


def intent(weight: int = 10, revision: int = 2) -> DeliveryIntent:
    memory = Memory(revision=revision, stable=ref(V1))
    return DeliveryIntent(ref(V1), ref(V2), weight, "salt/", Stickiness(), None, memory)


def compiled(
    store: Store | None = None,
    existing: DeliverySpec | None = None,
    wanted: DeliveryIntent | None = None,
    at_least: int = 1,
    **changes: Any,
) -> DeliverySpec:
    store = store or store_with(V1, V2)
    spec = rollout_spec(**changes)
    snapshot = resolve("ns", "app", spec, None, store, {"default"}).desired.snapshot
    return compile_delivery("ns", "uid", spec, wanted or intent(), [snapshot], existing, store, at_least)


def snapshot_of(**changes: Any) -> Snapshot:
    found = resolve("ns", "app", rollout_spec(**changes), None, store_with(V1, V2), {"default"}).desired.snapshot
    assert found is not None
    return found


def test_both_arms_with_their_provider_and_price() -> None:
    found = compiled()
    assert found.canary is not None
    assert (found.sequence, found.weight, found.stable.version) == (1, 10, V1["metadata"]["name"])
    assert found.stable.prompt == prompt()
    assert found.canary.provider.base_url == "http://model/v1"
    assert found.canary.provider.price is not None
    assert found.canary.provider.price.model == "large"
    assert not found.canary.provider.needs_key


def test_the_sequence_grows_only_with_something_new_for_pods() -> None:
    first = compiled()
    assert compiled(existing=first) == first
    assert compiled(existing=first, wanted=intent(50)).sequence == 2
    remembered = compiled(existing=first, wanted=intent(revision=3))
    assert (remembered.sequence, remembered.memory.revision) == (1, 3)
    other = dataclasses.replace(intent(), stickiness=Stickiness(by="Request"))
    assert compiled(existing=first, wanted=other).sequence == 2


def test_pods_are_told_which_scores_are_objectives() -> None:
    objectives = [{"name": each, "signal": "Score", "score": each, "min": "4"} for each in ("polite", "helpful")]
    first = compiled(analysis={"objectives": objectives})
    assert first.scores == ["helpful", "polite"]
    # the spec is invalid just now: pods keep what they have
    assert compile_delivery("ns", "uid", rollout_spec(), intent(), [None], first, store_with(V1, V2)) == first
    assert compiled(existing=first).scores == []


def test_a_sequence_that_pods_know_already_is_passed_over() -> None:
    first = compiled()
    assert compiled(existing=first, at_least=41).sequence == 41
    assert compiled(existing=first, wanted=intent(50), at_least=41).sequence == 41
    assert compiled(at_least=7).sequence == 7


def test_a_deleted_provider_or_copy_is_taken_from_the_delivery_in_force() -> None:
    first = compiled()
    store = store_with()
    store.remove("ModelProvider", "ns", "model", "ModelProvider-model")
    found = compile_delivery("ns", "uid", rollout_spec(), intent(0), [None], first, store)
    assert (found.stable, found.canary) == (first.stable, first.canary)
    assert prompt_in(first, ref(V2)) == prompt(model="large")


def test_a_provider_that_is_made_anew_elsewhere_moves_no_version_that_is_served() -> None:
    """Its URL is immutable, but not against deleting it: stable would move without a canary."""
    first = compiled()
    moved = an_object(
        "ModelProvider", "model", {"baseURL": "http://elsewhere/v1", "maxRetries": 5}, uid="b", resourceVersion="8"
    )
    store = store_with(V1, V2)
    store.put("ModelProvider", moved)
    found = compiled(store, existing=first)
    assert (found.stable.provider.base_url, found.stable.provider.max_retries) == ("http://model/v1", 5)
    assert found.canary is not None
    assert found.canary.provider.base_url == "http://model/v1"
    # a version that was not served before comes there by a rollout of its own
    alone = first.model_copy(update={"canary": None})
    found = compiled(store, existing=alone)
    assert found.canary is not None
    assert (found.stable.provider.base_url, found.canary.provider.base_url) == (
        "http://model/v1",
        "http://elsewhere/v1",
    )
    # nobody is served by a rollout that was deleted
    retired = first.model_copy(update={"retired_at": "2026-01-01T00:00:00Z"})
    assert compiled(store, existing=retired).stable.provider.base_url == "http://elsewhere/v1"


def test_a_key_goes_with_the_url_that_it_was_named_for() -> None:
    """Whoever makes a provider of another's name gets none of its key, and changes none."""

    def ca_of(name: str) -> dict[str, str]:
        return {"name": name, "key": "ca.crt"}

    def made(url: str, secret: str, ca: str) -> dict[str, Any]:
        spec = {"baseURL": url, "apiKeySecretRef": {"name": secret, "key": "k"}, "tls": {"caSecretRef": ca_of(ca)}}
        return an_object("ModelProvider", "model", spec, uid=secret, resourceVersion="8")

    def sources(found: ProviderConfig) -> tuple[str | None, str | None]:
        return found.key_source, found.tls.ca_source

    def of(secret: str, ca: str) -> tuple[str, str]:
        return source_of(SecretKeyRef(name=secret, key="k")), source_of(SecretKeyRef(**ca_of(ca)))

    store = store_with(V1, V2)
    store.put("ModelProvider", made("http://model/v1", "theirs", "ca"), even_older=True)
    first = compiled(store).model_copy(update={"canary": None})
    assert sources(first.stable.provider) == of("theirs", "ca")
    store.put("ModelProvider", made("http://evil/v1", "mine", "my-ca"), even_older=True)
    found = compiled(store, existing=first)
    assert found.canary is not None
    assert sources(found.stable.provider) == of("theirs", "ca")
    assert (found.canary.provider.base_url, sources(found.canary.provider)) == ("http://evil/v1", of("mine", "my-ca"))
    # another Secret for the same URL is taken over
    store.put("ModelProvider", made("http://model/v1", "rotated", "ca"), even_older=True)
    assert sources(compiled(store, existing=first).stable.provider) == of("rotated", "ca")


def test_a_provider_says_what_is_served_elsewhere() -> None:
    store = store_with(V1, V2)
    delivery = body_of("ns", "app", compiled(), None)
    provider = store.get("ModelProvider", "ns", "model")
    assert provider is not None
    store.put("PromptDelivery", delivery)
    assert provider_verdict(provider, store)[0]
    moved = provider | {"spec": {**provider["spec"], "baseURL": "http://elsewhere/v1"}}
    truth, reason, message = provider_verdict(moved, store)
    assert (truth, reason) == (False, "ServedElsewhere")
    assert "app still use http://model/v1 until their next version" in message
    key = Key("PromptDelivery", "ns", "app")
    assert Key("ModelProvider", "ns", "model") in of_delivery(key, delivery, None, store)
    assert Key("ModelProvider", "ns", "model") not in of_delivery(key, delivery, delivery, store)


def test_what_was_never_compiled_needs_its_copy_and_its_provider() -> None:
    with pytest.raises(CannotCompile, match="PromptVersion"):
        compiled(store_with(V1))
    store = store_with(V1, V2)
    store.remove("ModelProvider", "ns", "model", "ModelProvider-model")
    with pytest.raises(CannotCompile, match="ModelProvider model"):
        compile_delivery("ns", "uid", rollout_spec(), intent(), [], None, store)


def test_a_retired_delivery_is_taken_over() -> None:
    retired = compiled().model_copy(update={"retired_at": "2026-01-01T00:00:00Z", "rollout_uid": "old", "sequence": 9})
    found = compiled(existing=retired)
    assert (found.sequence, found.retired_at, found.rollout_uid) == (10, None, "uid")


def test_latency_thresholds_become_histogram_edges() -> None:
    slow = {"objectives": [{"name": "s", "signal": "Latency", "thresholdSeconds": "2.5", "max": "0.1"}]}
    first = compiled(analysis=slow)
    assert first.latency_edges_seconds == ["2.5"]
    # the spec is invalid just now: pods keep what they have
    assert compile_delivery("ns", "uid", rollout_spec(), intent(), [None], first, store_with(V1, V2)) == first


def test_what_is_read_of_shards_is_what_pods_are_told_to_export() -> None:
    arm = '{version="{{ version }}",variant="{{ variant }}"}'
    custom = {"ratio": {"total": f"app_requests_total{arm}", "bad": f"app_failures_total{arm}"}}
    analysis = {
        "objectives": [
            {"name": "slow", "signal": "Latency", "thresholdSeconds": "2.5", "max": "0.1"},
            {"name": "first", "signal": "TimeToFirstToken", "thresholdSeconds": "0.8", "max": "0.1"},
            {"name": "cost", "signal": "CostPerRequest", "max": "0.01"},
            {"name": "posted", "signal": "Score", "score": "tone", "min": "4"},
            {"name": "mine", "signal": "Custom", "custom": custom, "max": "0.1"},
        ]
    }
    first, snapshot = compiled(analysis=analysis), snapshot_of(analysis=analysis)
    measured = [ObjectiveQueries.of(objective) for objective in snapshot.objectives]
    read_of_shards = {selector.query.text for each in measured for selector in each.selectors if selector.divided}
    assert set(first.shard_metrics) == read_of_shards
    assert {names.METRIC_SHARD_LATENCY_SLOW, names.shard_metric(names.METRIC_COST_SUM)} < read_of_shards
    assert first.shard_metrics == sorted(first.shard_metrics)
    # the spec is invalid just now: pods keep what they have
    assert compile_delivery("ns", "uid", rollout_spec(), intent(), [None], first, store_with(V1, V2)) == first
    fewer = compiled(existing=first)
    assert (fewer.sequence, len(fewer.shard_metrics) < len(read_of_shards)) == (2, True)
    both = [snapshot_of(), snapshot]
    assert compile_delivery("ns", "uid", rollout_spec(), intent(), both, first, store_with(V1, V2)) == first


def test_the_sample_ratio_finds_its_requests_whatever_the_objectives() -> None:
    snapshot = snapshot_of().model_copy(update={"objectives": []})
    found = compile_delivery("ns", "uid", rollout_spec(), intent(), [snapshot], None, store_with(V1, V2))
    assert found.shard_metrics == [names.shard_metric(names.METRIC_REQUESTS)]


def test_the_table_fits_the_list_of_a_delivery() -> None:
    metrics = {counter.metric for signal in SIGNALS.values() for _, counter in signal.shard_counters}
    described = DeliverySpec.model_json_schema()["properties"]["shardMetrics"]
    assert len(metrics) <= described["maxItems"]
    assert all(re.search(described["items"]["pattern"], metric) for metric in metrics)
    assert max(map(len, metrics)) <= described["items"]["maxLength"]


def test_the_object_survives_a_round_trip_with_the_digest_of_its_prompts() -> None:
    existing = an_object("PromptDelivery", "app", {})
    made = compiled()
    body = body_of("ns", "app", made, existing)
    assert body["metadata"]["resourceVersion"] == "7"
    assert body["metadata"]["labels"]["promptrollout.dev/gateway"] == "default"
    found = read(body)
    assert found == made
    assert found is not None
    assert digest_of(found.stable.prompt) == found.stable.digest


def test_an_unreadable_delivery_is_none() -> None:
    assert read(an_object("PromptDelivery", "app", {"weight": "much"})) is None
    assert read(None) is None
