"""Rules of the simulated model: matching, outcomes and errors that name the field."""

import pytest

from promptrollout.sandbox.model.behaviour import (
    Behaviour,
    BehaviourError,
    Latency,
    Match,
    Outcome,
    first_fit,
    parse_behaviours,
)


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({}, True),
        ({"promptContains": "support assistant"}, True),
        ({"promptContains": "Support Assistant"}, False),
        ({"promptRegex": r"assistant of \w+"}, True),
        ({"promptRegex": r"^assistant"}, False),
        ({"model": "m"}, True),
        ({"model": "n"}, False),
        ({"header": {"X-Plan": "free"}}, True),
        ({"header": {"x-plan": "pro"}}, False),
        ({"promptContains": "support", "model": "n"}, False),
    ],
)
def test_a_rule_fits_when_every_given_part_does(match: dict[str, object], fits: bool) -> None:
    rule = Match.model_validate(match)
    assert rule.fits("You are the support assistant of Acme.", "m", {"x-plan": "free"}) is fits


def test_the_first_rule_that_fits_wins_and_none_means_the_default() -> None:
    rules = parse_behaviours(
        [{"name": "a", "match": {"promptContains": "v2"}}, {"name": "b", "match": {"promptContains": "v"}}]
    )
    assert [first_fit(rules, prompt, "m", {}).name for prompt in ("v2", "v1", "x")] == ["a", "b", "default"]


@pytest.mark.parametrize(
    ("behaviours", "path", "reason"),
    [
        ({"name": "a"}, "behaviours", "list"),
        ([{}], "behaviours[0].name", "required"),
        ([{"name": "a", "errorRate": 1.2}], "behaviours[0].errorRate", "less than or equal to 1"),
        ([{"name": "a", "errorRate": float("nan")}], "behaviours[0].errorRate", "finite"),
        ([{"name": "a", "erorRate": 0.2}], "behaviours[0].erorRate", "not permitted"),
        ([{"name": "a"}, {"name": "a"}], "behaviours[1].name", "already the name"),
        ([{"name": "a", "match": {"promptRegex": "("}}], "behaviours[0].match", "promptRegex"),
        ([{"name": "a", "errorRate": 0.6, "garbageRate": 0.6}], "behaviours[0]", "add up to 1.2"),
        (
            [{"name": "a", "errorRate": 0.1, "errorKinds": [{"status": 500, "share": 0.1}]}],
            "behaviours[0]",
            "not both",
        ),
        (
            [{"name": "a", "errorKinds": [{"status": 200, "share": 0.1}]}],
            "behaviours[0].errorKinds[0].status",
            "400",
        ),
        ([{"name": "a", "latency": {"medianMs": 5}}], "behaviours[0].latency", "p99Ms"),
        ([{"name": "a", "latency": {"medianMs": 5, "p99Ms": 2}}], "behaviours[0].latency", "p99Ms"),
        ([{"name": "a", "latency": {"fixedMs": 5, "medianMs": 2, "p99Ms": 3}}], "behaviours[0].latency", "not both"),
        ([{"name": "a", "tokens": {"completionSpread": 5}}], "behaviours[0].tokens", "completionMean"),
        ([{"name": "a", "answer": 3}], "behaviours[0].answer", "valid"),
    ],
)
def test_a_bad_list_is_refused_with_the_path_of_the_field(behaviours: object, path: str, reason: str) -> None:
    with pytest.raises(BehaviourError) as refused:
        parse_behaviours(behaviours)
    assert refused.value.path == path
    assert reason in refused.value.reason


def test_every_rate_is_a_share_of_all_requests() -> None:
    rule = Behaviour.model_validate(
        {
            "name": "a",
            "errorKinds": [{"status": 429, "share": 0.1, "retryAfterSeconds": 2}, {"status": 503, "share": 0.1}],
            "refusalRate": 0.2,
            "contractBreakRate": 0.3,
        }
    )
    outcomes = [rule.outcome((index + 0.5) / 1000) for index in range(1000)]
    counts = {name: sum(1 for outcome, _ in outcomes if outcome is name) for name in Outcome}
    assert counts[Outcome.ERROR] == 200
    assert counts[Outcome.REFUSAL] == 200
    assert counts[Outcome.CONTRACT_BREAK] == 300
    assert counts[Outcome.GOOD] == 300
    assert sum(1 for _, kind in outcomes if kind is not None and kind.status == 429) == 100


def test_latency_passes_through_its_median_and_p99() -> None:
    latency = Latency(median_ms=100, p99_ms=900)
    assert latency.seconds(0.5) == pytest.approx(0.1)
    assert latency.seconds(0.99) == pytest.approx(0.9)
    assert Latency(fixed_ms=7).seconds(0.99) == pytest.approx(0.007)


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_latency_stays_finite_at_the_ends(uniform: float) -> None:
    assert 0 < Latency(median_ms=1, p99_ms=5).seconds(uniform) < 1
