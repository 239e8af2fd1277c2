"""Counters by groups of units: there while a canary is, whole, monotone, and independent of the bucket."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import pytest

from promptrollout.api import names
from promptrollout.gateway.assignment.bucketing import shard, unit_hash, within
from promptrollout.gateway.metrics import counters as counters_module
from promptrollout.gateway.process import Gateway
from tests.unit.gateway import kit
from tests.unit.gateway.kit import (
    CANARY,
    SCHEMA,
    Caller,
    Provider,
    Samples,
    Script,
    arm,
    completion,
    request,
    samples,
    says,
    value,
)

CONTRACT = (names.METRIC_CONTRACT_CHECKS, names.METRIC_CONTRACT_FAILURES)
COST = (names.METRIC_COST_COUNT, names.METRIC_COST_SUM)
ALWAYS = (
    names.METRIC_REQUESTS,
    names.METRIC_ERRORS,
    names.METRIC_REFUSALS,
    names.METRIC_TRUNCATED,
    names.METRIC_EMPTY_ANSWERS,
    names.METRIC_ABANDONED,
    names.METRIC_TOKENS_COUNT,
    names.METRIC_TOKENS_SUM,
    names.METRIC_INPUT_TOKENS,
    names.METRIC_CACHED_INPUT_TOKENS,
)
FIRST_TOKEN_COUNT = names.METRIC_FIRST_TOKEN + "_count"
SLOW = (names.METRIC_SHARD_LATENCY_SLOW, names.METRIC_SHARD_FIRST_TOKEN_SLOW)
EVERYTHING = [*SLOW, *(names.shard_metric(metric) for metric in (*ALWAYS, *CONTRACT, *COST, FIRST_TOKEN_COUNT))]
CACHES: tuple[dict[str, str], ...] = ({"cache": "hit"}, {"cache": "miss"})
ALL_SHARDS = {str(n) for n in range(32)}
UNITS = [f"user-{n}".encode() for n in range(64_000)]
# of chi-squared with 31 degrees of freedom
CRITICAL = 61.1  # at p = .001
ANSWERS = (
    completion('{"answer": "yes"}'),
    completion("prose"),
    completion(""),
    completion("Hel", "length"),
    completion(None, refusal="No."),
    completion("x", usage={"prompt_tokens": 50, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}),
)


def delivery(sequence: int = 1, **changes: Any) -> dict[str, Any]:
    """Of a rollout whose objectives need all that there is."""
    return kit.delivery(sequence, **{"shardMetrics": EVERYTHING, **changes})


def of_shards(found: Samples, metric: str, variant: str) -> dict[str, float]:
    """By shard, summed over what else tells series apart."""
    sums: defaultdict[str, float] = defaultdict(float)
    for labels, n in found.get(metric, {}).items():
        if (of := dict(labels))["variant"] == variant:
            sums[of[names.LABEL_SHARD]] += n
    return dict(sums)


def exported(found: Samples) -> set[str]:
    return {name for name in found if name.startswith("promptrollout_shard_")}


def test_units_spread_evenly_over_the_shards() -> None:
    sizes = Counter(shard("salt", unit) for unit in UNITS)
    expected = len(UNITS) / names.SHARDS
    assert sizes.keys() == set(range(32))
    assert sum((n - expected) ** 2 / expected for n in sizes.values()) < CRITICAL


@pytest.mark.parametrize("percent", [1, 5, 25, 50])
def test_the_shard_says_nothing_of_the_bucket(percent: int) -> None:
    canary = Counter(shard("salt", unit) for unit in UNITS if within(unit_hash("salt", unit), percent))
    expected = canary.total() / names.SHARDS
    assert sum((canary[n] - expected) ** 2 / expected for n in range(32)) < CRITICAL


def test_another_salt_makes_other_shards() -> None:
    same = sum(shard("one", unit) == shard("two", unit) for unit in UNITS)
    assert abs(same / len(UNITS) - 1 / 32) < 0.005


async def test_they_stand_at_zero_as_soon_as_a_canary_is_loaded(gateway: Gateway, caller: Caller) -> None:
    edges = ["2.5", "0.8"]
    await gateway.registry.apply("support", delivery(latencyEdgesSeconds=edges))
    assert exported(await samples(gateway)) == set()
    schema = arm(outputSchema=SCHEMA)
    await gateway.registry.apply("support", delivery(2, stable=schema, canary=arm(CANARY), latencyEdgesSeconds=edges))
    found = await samples(gateway)
    assert exported(found) == set(EVERYTHING)
    for metric in exported(found):
        canary_has_it = metric not in {names.shard_metric(name) for name in CONTRACT}
        assert of_shards(found, metric, "stable") == dict.fromkeys(ALL_SHARDS, 0), metric
        assert of_shards(found, metric, "canary") == (dict.fromkeys(ALL_SHARDS, 0) if canary_has_it else {}), metric
    labels = {(of["le"], of["cache"]) for of in map(dict, found[names.METRIC_SHARD_FIRST_TOKEN_SLOW])}
    assert labels == {(le, cache) for le in ("0.8", "2.5") for cache in ("hit", "miss")}
    assert {dict(of)["le"] for of in found[names.METRIC_SHARD_LATENCY_SLOW]} == {"0.8", "2.5"}


@pytest.mark.parametrize("needed", [[], ["promptrollout_shard_of_a_later_release"], *([one] for one in EVERYTHING)])
async def test_nothing_but_what_objectives_need_is_exported(gateway: Gateway, needed: list[str]) -> None:
    arms = {"stable": arm(outputSchema=SCHEMA), "canary": arm(CANARY, outputSchema=SCHEMA)}
    await gateway.registry.apply("support", delivery(**arms, latencyEdgesSeconds=["2.5"], shardMetrics=needed))
    found = await samples(gateway)
    assert exported(found) == set(needed) & set(EVERYTHING)
    for metric in exported(found):
        assert of_shards(found, metric, "canary") == of_shards(found, metric, "stable") == dict.fromkeys(ALL_SHARDS, 0)
    page = (await Caller(gateway.admin_app).get("/metrics")).body.decode()
    assert {
        line.split()[2] for line in page.splitlines() if line.startswith("# TYPE promptrollout_shard_")
    } == exported(found), "no headings without series"


async def test_what_comes_into_need_in_mid_canary_stands_at_what_was_counted(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    stable, canary = arm(url=provider.url), arm(CANARY, provider.url)
    requests, tokens = (names.shard_metric(metric) for metric in (names.METRIC_REQUESTS, names.METRIC_TOKENS_COUNT))

    async def step(sequence: int, *needed: str, edges: tuple[str, ...] = ()) -> Samples:
        changes = {"shardMetrics": [*needed], "latencyEdgesSeconds": [*edges]}
        await gateway.registry.apply("support", delivery(sequence, stable=stable, canary=canary, **changes))
        found = await samples(gateway)
        assert exported(found) == set(needed)
        for n in range(20):
            await caller.post(request(user=f"user-{n}"))
        return found

    await step(1, requests)
    assert value(await step(2, requests, tokens), tokens) == 20
    assert value(await step(3, requests), requests) == 40
    found = await step(4, requests, tokens, names.METRIC_SHARD_LATENCY_SLOW, edges=("2.5",))
    assert value(found, tokens) == 60, "it never falls, also where it was away"
    assert of_shards(found, names.METRIC_SHARD_LATENCY_SLOW, "stable") == dict.fromkeys(ALL_SHARDS, 0)


async def test_what_no_objective_can_need_is_not_exported(gateway: Gateway) -> None:
    unpriced: dict[str, Any] = {"provider_price": None}
    await gateway.registry.apply("support", delivery(stable=arm(**unpriced), canary=arm(CANARY, **unpriced)))
    found = await samples(gateway)
    assert {name for name in exported(found) if found[name]} == {names.shard_metric(metric) for metric in ALWAYS}


async def test_they_add_up_to_their_arm(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    rollout = delivery(
        stable=arm(url=provider.url, outputSchema=SCHEMA),
        canary=arm(CANARY, provider.url, outputSchema=SCHEMA),
        weight=30,
        latencyEdgesSeconds=["0.05"],
    )
    await gateway.registry.apply("support", rollout)
    slow = 0
    for n in range(120):
        provider.script.append(slowly(n) if n % 10 == 0 else script(n))
        slow += n % 10 == 0
        await caller.post(request(user=f"user-{n}"))
    found = await samples(gateway)
    for variant in ("stable", "canary"):
        for metric in (*ALWAYS, *CONTRACT, *COST, FIRST_TOKEN_COUNT):
            by_shard = of_shards(found, names.shard_metric(metric), variant)
            total = value(found, metric, variant=variant)
            assert by_shard.keys() == ALL_SHARDS
            assert sum(by_shard.values()) == pytest.approx(total), metric
            assert total > 0 or metric == names.METRIC_ABANDONED, metric
        for shard_metric, metric in (
            (names.METRIC_SHARD_LATENCY_SLOW, names.METRIC_LATENCY),
            (names.METRIC_SHARD_FIRST_TOKEN_SLOW, names.METRIC_FIRST_TOKEN),
        ):
            for cache in CACHES if metric == names.METRIC_FIRST_TOKEN else ({},):
                within = value(found, metric + "_bucket", variant=variant, le="0.05", **cache)
                above = value(found, metric + "_count", variant=variant, **cache) - within
                assert value(found, shard_metric, variant=variant, **cache) == above
    assert value(found, names.METRIC_SHARD_LATENCY_SLOW) >= slow
    assert all(value(found, names.METRIC_SHARD_FIRST_TOKEN_SLOW, **cache) > 0 for cache in CACHES)
    busy = of_shards(found, names.shard_metric(names.METRIC_REQUESTS), "stable")
    assert sum(n > 0 for n in busy.values()) > 20, "units spread over the shards"


def script(n: int) -> Script:
    if n % 7 == 3:
        return says(status=500, body={"error": {"message": "no"}})
    return says(body=ANSWERS[n % len(ANSWERS)])


def slowly(n: int) -> Script:
    """Every other time from the provider's cache."""

    async def answer(incoming: Any) -> Any:
        await asyncio.sleep(0.06)
        return await says(body=ANSWERS[-1 if n % 20 else 0])(incoming)

    return answer


async def test_a_unit_stays_in_its_shard_and_requests_without_one_have_none(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    rollout = delivery(stable=arm(url=provider.url), canary=arm(CANARY, provider.url), weight=0)
    await gateway.registry.apply("support", rollout)
    for _ in range(5):
        await caller.post(request(user="u1"))
    await caller.post(request(user=None))
    found = await samples(gateway)
    by_shard = of_shards(found, names.shard_metric(names.METRIC_REQUESTS), "stable")
    assert {of: n for of, n in by_shard.items() if n} == {str(shard("salt", b"u1")): 5}
    assert of_shards(found, names.shard_metric(names.METRIC_REQUESTS), "stable-outside") == {}


async def test_by_request_every_request_has_a_shard(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    rollout = delivery(stable=arm(url=provider.url), canary=arm(CANARY, provider.url), stickiness={"by": "Request"})
    await gateway.registry.apply("support", rollout)
    for _ in range(40):
        await caller.post(request(user="u1"))
    by_shard = of_shards(await samples(gateway), names.shard_metric(names.METRIC_REQUESTS), "stable")
    assert sum(by_shard.values()) == 40
    assert sum(n > 0 for n in by_shard.values()) > 10


async def test_they_go_on_over_changes_and_leave_some_scrapes_after_the_canary(
    gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    stable, canary = arm(url=provider.url), arm(CANARY, provider.url)
    metric = names.shard_metric(names.METRIC_REQUESTS)
    seen: Samples = {}

    async def step(sequence: int, **changes: Any) -> Samples:
        """Another configuration, then more requests; nothing that is still there may have fallen."""
        await gateway.registry.apply("support", delivery(sequence, stable=stable, **changes))
        for n in range(20):
            await caller.post(request(user=f"user-{n}"))
        found = await samples(gateway)
        for name, series in seen.items():
            if name.startswith("promptrollout_") and not name.startswith("promptrollout_gateway_"):
                fallen = {of for of, n in series.items() if found.get(name, {}).get(of, n) < n}
                assert not fallen, name
        seen.clear()
        seen.update(found)
        return found

    await step(1)
    found = await step(2, canary=canary, weight=10)
    assert value(found, metric) == 20, "stable's begin at zero too"
    found = await step(3, canary=canary, weight=50, latencyEdgesSeconds=["0.5"])
    assert value(found, metric) == 40
    assert set(of_shards(found, names.METRIC_SHARD_LATENCY_SLOW, "stable")) == ALL_SHARDS
    assert value(found, names.shard_metric(FIRST_TOKEN_COUNT)) == 20, "from the first edge on"
    found = await step(4)
    assert value(found, metric, variant="stable") > 20, "what was last counted is still seen"
    found = await step(5, canary=arm("c" * 64, provider.url), weight=10)
    assert value(found, metric) == 80
    monkeypatch.setattr(counters_module, "SECONDS_KEPT", -1.0)
    assert value(await samples(gateway), metric, variant="stable") > 40, "another canary came in time"
    await gateway.registry.apply("support", delivery(6, stable=stable))
    found = await samples(gateway)
    assert exported(found) == set()
    assert value(found, names.METRIC_REQUESTS, variant="stable") > 60, "the arm's own stay"


async def test_a_pod_exports_those_of_so_many_rollouts_and_says_of_how_many_it_does_not(
    gateway: Gateway, caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    stable, canary = arm(url=provider.url), arm(CANARY, provider.url)
    metric = names.shard_metric(names.METRIC_REQUESTS)

    async def load(n: int, sequence: int = 1, **changes: Any) -> None:
        changes = {"stable": stable, "canary": canary, "shardMetrics": [metric], **changes}
        await gateway.registry.apply(f"app-{n}", delivery(sequence, rolloutUID=f"uid-{n}", **changes))

    async def with_shards() -> tuple[set[str], float, set[str]]:
        """Rollouts that export them; how many do not, by the gauge; and which, by the report."""
        found = await samples(gateway, metric, names.METRIC_SHARDS_WITHHELD)
        report = (await Caller(gateway.admin_app).get("/rollouts")).json["rollouts"]
        withheld = {each["name"] for each in report if each["shardsWithheld"]}
        return {dict(of)["rollout"] for of in found[metric]}, value(found, names.METRIC_SHARDS_WITHHELD), withheld

    async def requests_by_shards(n: int) -> float:
        await caller.post(request(model=f"app-{n}"))
        return value(await samples(gateway, metric), metric, rollout=f"app-{n}")

    placed = {f"app-{n}" for n in range(64)}
    for n in reversed(range(64)):
        await load(n)
    assert await with_shards() == (placed, 0, set())
    for n in (66, 65, 64):
        await load(n)
    assert await with_shards() == (placed, 3, {"app-64", "app-65", "app-66"})
    for n in (64, 3):
        await load(n, 2, weight=100)
    await caller.post(request(model="app-64"))
    assert await requests_by_shards(3) == 1
    assert value(await samples(gateway, names.METRIC_REQUESTS), names.METRIC_REQUESTS, rollout="app-64") == 1, (
        "the arms count all the same"
    )
    await load(65, 2, canary=None)
    assert await with_shards() == (placed, 2, {"app-64", "app-66"}), "without a canary nothing is missing"
    await load(7, 2, canary=None)
    assert await with_shards() == (placed, 2, {"app-64", "app-66"}), "its last increments are still to be seen"
    with monkeypatch.context() as patched:
        patched.setattr(counters_module, "SECONDS_KEPT", -1.0)
        assert await with_shards() == (placed - {"app-7"} | {"app-66"}, 1, {"app-64"}), "the first that waited"
    assert await requests_by_shards(66) == 1, "from zero on"
    assert await requests_by_shards(3) == 2
    serving = gateway.registry.find("app-64")
    assert serving is not None
    serving.gone_at = 0.0
    await gateway.registry.sweep()
    assert (await with_shards())[1:] == (0, set())


async def test_the_emergency_override_keeps_them(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    rollout = delivery(stable=arm(url=provider.url), canary=arm(CANARY, provider.url), weight=100)
    await gateway.registry.apply("support", rollout)
    await gateway.registry.set_overrides({"support"})
    await caller.post(request())
    found = await samples(gateway)
    metric = names.shard_metric(names.METRIC_REQUESTS)
    assert (value(found, metric, variant="stable"), value(found, metric, variant="canary")) == (1, 0)
