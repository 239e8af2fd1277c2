"""Signals beyond errors and cost, and people's own PromQL, on a real Prometheus."""

from __future__ import annotations

from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.cluster import Kubectl
from tests.integration.story import ERRORS, Story

ARM = '{version="{{ version }}",variant="{{ variant }}",rollout_uid="{{ rollout_uid }}"}'
PERCENT = {"maxIncreasePercent": 100}


@pytest.fixture
def story(operator: Sandbox, kubectl: Kubectl) -> Story:
    return Story(operator, kubectl)


def objective(name: str, signal: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "signal": signal, "versusStable": PERCENT, **fields}


OBJECTIVES = [
    ERRORS,
    objective("refusals", "RefusalRate"),
    objective("tokens", "TokensPerRequest"),
    objective("slow", "Latency", quantile="0.95", max="30"),
    objective(
        "own-ratio",
        "Custom",
        custom={"ratio": {"bad": f"promptrollout_errors_total{ARM}", "total": f"promptrollout_requests_total{ARM}"}},
    ),
    objective(
        "own-mean",
        "Custom",
        custom={
            "mean": {
                "sum": f"promptrollout_request_cost_usd_sum{ARM}",
                "count": f"promptrollout_request_cost_usd_count{ARM}",
                "sumsq": f"promptrollout_request_cost_usd_sumsq{ARM}",
            }
        },
    ),
    objective("own-value", "Custom", custom={"value": f"1 + 0 * sum(promptrollout_requests_total{ARM})"}),
]


def rows(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in status["analysis"]}


def test_every_kind_of_signal_finds_its_samples(story: Story) -> None:
    story.given(v1={}, v2={}).apply("v1").healthy("v1")
    with story.users():
        steps = [{"weight": 50, "minDurationSeconds": 3600}]
        story.apply("v2", steps=steps, analysis={"objectives": OBJECTIVES})
        story.at_weight(50)
        names = {each["name"] for each in OBJECTIVES}
        status = story.until(lambda s: all(rows(s)[name]["canarySamples"] >= 10 for name in names))
    found = rows(status)
    # the same counters read as the gateway's own and as somebody's
    for own, ours in (("own-ratio", "errors"), ("own-mean", "tokens"), ("refusals", "errors"), ("slow", "errors")):
        assert found[own]["canarySamples"] == found[ours]["canarySamples"]
        assert found[own]["stableSamples"] >= found[own]["canarySamples"] / 4
    assert not [name for name, row in found.items() if row["verdict"] == "Breach"]


def test_a_persons_own_ratio_rolls_back_and_a_query_that_fails_decides_nothing(story: Story) -> None:
    story.given(v1={}, v2={"errorRate": 0.5}).apply("v1").healthy("v1")
    own = OBJECTIVES[4] | {"negligibleRate": "0.05"}
    lenient = ERRORS | {"versusStable": {"maxIncreasePercent": 10_000, "rollbackAbovePercent": 10_000}}
    broken = objective("broken", "Custom", custom={"value": f"no_such_function(promptrollout_requests_total{ARM})"})
    with story.users():
        steps = [{"weight": 50, "minDurationSeconds": 3600}]
        story.apply("v2", steps=steps, analysis={"objectives": [lenient, own, broken]})
        held = story.until(lambda s: "no_such_function" in s["message"])
        assert held["phase"] != "Degraded"
        story.apply("v2", steps=steps, analysis={"objectives": [lenient, own]})
        status = story.rolled_back("v2")
    assert any("own-ratio" in d["message"] for d in status["history"] if d["reason"] == "ObjectiveBreached")
