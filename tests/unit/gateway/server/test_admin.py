"""The admin port: what Prometheus reads, and fast enough."""

from __future__ import annotations

import re

from promptrollout.api import names
from promptrollout.gateway.process import Gateway
from promptrollout.llm.errors import ERROR_TYPES
from tests.unit.gateway.kit import CANARY, Caller, Provider, arm, delivery, request, samples


async def test_series_stand_at_zero_as_soon_as_a_configuration_is_loaded(gateway: Gateway) -> None:
    rollout = delivery(canary=arm(CANARY), latencyEdgesSeconds=["2.5", "5"])
    await gateway.registry.apply("support", rollout)
    found = await samples(gateway)
    base = {"rollout_uid": "uid-1", "rollout": "support", "model": "gpt", "process": gateway.counters.process}
    for variant, digest in (("stable", "a"), ("canary", "b")):
        labels = {**base, "version": digest * 10, "variant": variant}

        def value(metric: str, labels: dict[str, str] = labels, **more: str) -> float:
            return found[metric][tuple(sorted({**labels, **more}.items()))]

        for metric in (
            names.METRIC_REQUESTS,
            names.METRIC_ABANDONED,
            names.METRIC_CONTRACT_CHECKS,
            names.METRIC_CONTRACT_FAILURES,
            names.METRIC_COST_COUNT,
            names.METRIC_COST_SUM,
            names.METRIC_COST_SUMSQ,
            names.METRIC_COST_INPUT_SUM,
            names.METRIC_COST_SAVED_SUM,
            names.METRIC_REFUSALS,
            names.METRIC_TRUNCATED,
            names.METRIC_EMPTY_ANSWERS,
            names.METRIC_TOKENS_COUNT,
            names.METRIC_TOKENS_SUM,
            names.METRIC_TOKENS_SUMSQ,
            names.METRIC_INPUT_TOKENS,
            names.METRIC_CACHED_INPUT_TOKENS,
            names.METRIC_OUTPUT_TOKENS,
            names.METRIC_LATENCY + "_count",
            names.METRIC_LATENCY + "_sum",
        ):
            assert value(metric) == 0
        assert [value(names.METRIC_ERRORS, error_type=kind) for kind in ERROR_TYPES] == [0] * len(ERROR_TYPES)
        for le in ("0.01", "2.5", "5.0", "81.92", "+Inf"):
            assert value(names.METRIC_LATENCY + "_bucket", le=le) == 0
            for cache in ("hit", "miss"):
                assert value(names.METRIC_FIRST_TOKEN + "_bucket", le=le, cache=cache) == 0
    of_rollout = (("rollout", "support"), ("rollout_uid", "uid-1"))
    assert found[names.METRIC_UNASSIGNED][of_rollout] == 0
    assert found[names.METRIC_DIVERTED][of_rollout] == 0
    assert found["promptrollout_gateway_config_sequence"][of_rollout] == 1


async def test_every_series_of_an_arm_says_whose_counters_these_are(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(canary=arm(CANARY)))
    assert re.fullmatch("[0-9a-f]{8}", gateway.counters.process)
    found = await samples(gateway)
    of_arms = [dict(labels) for series in found.values() for labels in series if "variant" in dict(labels)]
    assert len(of_arms) > 50
    assert {labels.get(names.LABEL_PROCESS) for labels in of_arms} == {gateway.counters.process}
    assert Gateway(gateway.settings).counters.process != gateway.counters.process, "another start, other counters"


async def test_requests_show_up(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, model='odd "name"\\')))
    await caller.post(request())
    found = await samples(gateway)
    ((labels, value),) = found[names.METRIC_REQUESTS].items()
    assert (dict(labels)["model"], value) == ('odd "name"\\', 1)
    buckets = {dict(labels)["le"]: value for labels, value in found[names.METRIC_LATENCY + "_bucket"].items()}
    assert buckets["+Inf"] == 1
    assert list(buckets.values()) == sorted(buckets.values())


async def test_a_page_of_a_hundred_rollouts_lets_the_event_loop_go(gateway: Gateway) -> None:
    for n in range(100):
        await gateway.registry.apply(f"r{n}", delivery(canary=arm(CANARY)))
    admin = Caller(gateway.admin_app)
    page = await admin.get("/metrics")
    assert page.body.count(b"\n") > 7000
    assert len(page.pieces) > 3, "the event loop is let go in between"


async def test_probes(gateway: Gateway) -> None:
    admin = Caller(gateway.admin_app)
    assert (await admin.get("/healthz")).status == 200
    assert (await admin.get("/readyz")).status == 503, "nothing was loaded yet"
    assert (await admin.get("/nonsense")).status == 404
    assert (await admin.post(b"", path="/metrics")).status == 405
