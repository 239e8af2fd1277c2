"""Every signal of the table, read from recorded answers of a Prometheus: its series, and what is made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest

from promptrollout.api import names
from promptrollout.api.slo import Objective, Signal
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.operator.evidence.reader import Reader
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries, Query
from promptrollout.operator.sources.series import parse_matrix

START = 1_800_000_000
WIDTH = 30
VERSIONS = {"canary": "cccccccccc", "stable": "sssssssss1"}
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Grew:
    """A counter of both arms that grew by so much within the interval."""

    metric: str
    canary: float
    stable: float
    labels: tuple[tuple[str, str], ...] = ()

    def answer(self) -> list[dict[str, Any]]:
        """As `/api/v1/query` gives a range vector."""
        found = []
        for variant, by in (("canary", self.canary), ("stable", self.stable)):
            own = {"__name__": self.metric, "rollout_uid": "uid", "rollout": "app", "model": "m", "process": "0123abcd"}
            labels = own | {"variant": variant, "version": VERSIONS[variant], "namespace": "ns"} | dict(self.labels)
            values = [[START - 5, "1000"], [START + 5, "1000"], [START + 25, str(1000 + by)]]
            found.append({"metric": labels, "values": values})
        return found


def grew(metric: str, canary: float, stable: float, **labels: str) -> Grew:
    return Grew(metric, canary, stable, tuple(labels.items()))


def objective(signal: str, **fields: Any) -> Objective:
    return Objective.model_validate({"name": "it", "signal": signal, **fields})


def question(measured: Objective, exposed_at: int) -> EvidenceRequest:
    versions = (VERSIONS["stable"], VERSIONS["canary"])
    return EvidenceRequest("uid", "default", WIDTH, *versions, (ObjectiveQueries.of(measured),), exposed_at=exposed_at)


def counted(measured: Objective, *recorded: Grew, exposed_at: int = 0, at: int = START) -> tuple[Counts, ...]:
    """The counts of the interval from `at`, as long as there are any."""
    reader = Reader(question(measured, exposed_at), at)
    windows: dict[Query, Any] = {}
    for each in recorded:
        parsed = parse_matrix(each.answer(), START - 700, START + WIDTH).get("uid", [])
        windows.setdefault(Query("metric", each.metric), []).extend(parsed)
    (interval,) = reader.read(windows, at + WIDTH)
    return interval.counts.get("it", ())


def judged(canary: tuple[int, ...], stable: tuple[int, ...], dimension: str = "helpful", **labels: str) -> list[Grew]:
    """A histogram of whole scores: how many got 1, 2, 3, 4, 5."""
    labels = {"judge": "j1", "age": "1m"} | labels | {"dimension": dimension}
    bucket = f"{names.METRIC_JUDGE_SCORE}_bucket"
    found = [
        grew(bucket, sum(canary[:le]), sum(stable[:le]), **labels, le=f"{le}.0") for le in range(1, len(canary) + 1)
    ]
    return [*found, grew(bucket, sum(canary), sum(stable), **labels, le="+Inf")]


def moments(
    metric: str, canary: tuple[float, float, float], stable: tuple[float, float, float], **labels: str
) -> list[Grew]:
    parts = ("count", "sum", "sumsq")
    return [grew(f"{metric}_{part}", c, s, **labels) for part, c, s in zip(parts, canary, stable, strict=True)]


COST = names.METRIC_COST_SUM.removesuffix("_sum")
RATE = Counts.of(10, 2, 90, 4)
TWO_RATINGS = [
    grew(names.METRIC_FEEDBACK, 2, 4, rating="negative", age="1m"),
    grew(names.METRIC_FEEDBACK, 8, 86, rating="positive", age="1m"),
]


def of_requests(metric: str) -> tuple[list[Grew], Counts]:
    return [grew(names.METRIC_REQUESTS, 10, 90), grew(metric, 2, 4)], RATE


CASES: dict[str, tuple[dict[str, Any], list[Grew], Counts]] = {
    "ErrorRate": (
        {},
        [
            grew(names.METRIC_REQUESTS, 10, 90),
            grew(names.METRIC_ERRORS, 1, 4, error_type="timeout"),
            grew(names.METRIC_ERRORS, 1, 0, error_type="http_5xx"),
        ],
        RATE,
    ),
    "ContractFailureRate": (
        {},
        [grew(names.METRIC_CONTRACT_CHECKS, 10, 90), grew(names.METRIC_CONTRACT_FAILURES, 2, 4)],
        RATE,
    ),
    "RefusalRate": ({}, *of_requests(names.METRIC_REFUSALS)),
    "TruncationRate": ({}, *of_requests(names.METRIC_TRUNCATED)),
    "EmptyAnswerRate": ({}, *of_requests(names.METRIC_EMPTY_ANSWERS)),
    "AbandonmentRate": ({}, *of_requests(names.METRIC_ABANDONED)),
    "FallbackRate": ({}, *of_requests(names.METRIC_FALLBACKS)),
    "GuardrailViolationRate": (
        {},
        [grew(names.METRIC_GUARDRAIL_CHECKS, 10, 90), grew(names.METRIC_GUARDRAIL_VIOLATIONS, 2, 4)],
        RATE,
    ),
    "ToolFailureRate": ({}, [grew(names.METRIC_TOOL_CALLS, 10, 90), grew(names.METRIC_TOOL_FAILURES, 2, 4)], RATE),
    "NegativeFeedbackRate": ({}, TWO_RATINGS, RATE),
    "FeedbackRate": (
        {},
        [
            grew(names.METRIC_REQUESTS, 100, 900),
            *TWO_RATINGS,
            grew(names.METRIC_FEEDBACK, 0, 70, rating="positive", age="24h"),
        ],
        Counts.of(100, 10, 900, 90),
    ),
    "JudgeScore": (
        {"dimension": "helpful"},
        [
            *judged((1, 0, 0, 0, 2), (0, 0, 1, 1, 0)),
            *judged((9, 0, 0, 0, 0), (0, 0, 0, 0, 9), "polite"),
            grew(names.METRIC_JUDGE_FAILURES, 1, 4, dimension="helpful", judge="j1", age="1m"),
        ],
        Counts(Arm(3, 11, 51, missing=1), Arm(2, 7, 25, missing=4)),
    ),
    "Score": (
        {"score": "answered"},
        [
            *moments(names.METRIC_SCORE, (4, 3, 2.5), (9, 8, 7.25), score="answered", age="10m"),
            *moments(names.METRIC_SCORE, (7, 7, 7), (7, 7, 7), score="other", age="10m"),
        ],
        Counts(Arm(4, 3, 2.5), Arm(9, 8, 7.25)),
    ),
    "CostPerRequest": (
        {},
        [
            *moments(COST, (10, 2, 0.5), (90, 9, 1)),
            grew(names.METRIC_COST_INPUT_SUM, 1.5, 12),
            grew(names.METRIC_COST_SAVED_SUM, 0.25, 6),
        ],
        Counts(Arm(10, 2, 0.5, (), 1.5, 0.25), Arm(90, 9, 1, (), 12, 6)),
    ),
    "CostPerAction": (
        {},
        [grew(names.METRIC_ACTIONS, 5, 20), grew(names.METRIC_ACTION_COST, 0.5, 1.5)],
        Counts(Arm(5, 0.5), Arm(20, 1.5)),
    ),
    "CallsPerAction": (
        {},
        [grew(names.METRIC_ACTIONS, 5, 20), grew(names.METRIC_ACTION_CALLS, 15, 40)],
        Counts(Arm(5, 15), Arm(20, 40)),
    ),
    "ErrorsPerAction": (
        {},
        [grew(names.METRIC_ACTIONS, 5, 20), grew(names.METRIC_ACTION_ERRORS, 7, 1)],
        Counts(Arm(5, 7), Arm(20, 1)),
    ),
    "TokensPerRequest": (
        {},
        moments(names.METRIC_TOKENS_SUM.removesuffix("_sum"), (10, 5000, 3e6), (90, 36000, 2e7)),
        Counts(Arm(10, 5000, 3e6), Arm(90, 36000, 2e7)),
    ),
    "Latency": (
        {"thresholdSeconds": "2.5"},
        [
            grew(f"{names.METRIC_LATENCY}_count", 10, 90),
            grew(f"{names.METRIC_LATENCY}_bucket", 8, 86, le="2.5"),
            grew(f"{names.METRIC_LATENCY}_bucket", 9, 89, le="5.12"),
        ],
        RATE,
    ),
    "TimeToFirstToken": (
        {"quantile": "0.95", "max": "1"},
        [
            grew(f"{names.METRIC_FIRST_TOKEN}_count", 10, 90, cache="miss"),
            grew(f"{names.METRIC_FIRST_TOKEN}_bucket", 8, 86, cache="miss", le="1.0"),
        ],
        RATE,
    ),
    "CacheHitRate": (
        {},
        [
            grew(names.METRIC_INPUT_TOKENS, 1000, 9000),
            grew(names.METRIC_CACHED_INPUT_TOKENS, 200, 8000),
            grew(names.METRIC_OUTPUT_TOKENS, 77, 77),
        ],
        Counts(Arm(1000, 200), Arm(9000, 8000)),
    ),
}


def test_the_table_has_every_signal_of_the_api_and_every_signal_a_recording() -> None:
    assert {*SIGNALS, "Custom"} == set(get_args(Signal))
    assert CASES.keys() == SIGNALS.keys()


@pytest.mark.parametrize("signal", CASES)
def test_a_signal_is_read_from_its_series(signal: str) -> None:
    fields, recorded, wanted = CASES[signal]
    assert counted(objective(signal, **fields), *recorded) == (wanted,)


@pytest.mark.parametrize("signal", CASES)
def test_without_one_of_its_series_there_is_no_count(signal: str) -> None:
    fields, recorded, _ = CASES[signal]
    measured = objective(signal, **fields)
    for metric in {metric.metric for _, metric in SIGNALS[signal].counters if metric.metric not in OPTIONAL}:
        assert counted(measured, *(each for each in recorded if each.metric != metric)) == ()


OPTIONAL = (names.METRIC_COST_INPUT_SUM, names.METRIC_COST_SAVED_SUM, names.METRIC_JUDGE_FAILURES)


def test_a_gateway_that_does_not_export_the_parts_of_the_cost_still_counts() -> None:
    recorded = moments(COST, (10, 2, 0.5), (90, 9, 1))
    assert counted(objective("CostPerRequest"), *recorded) == (Counts(Arm(10, 2, 0.5), Arm(90, 9, 1)),)


@pytest.mark.parametrize(
    "other",
    [
        {"variant": "canary", "version": VERSIONS["stable"]},  # stable's text, canaried again by another revision
        {"variant": "stable", "version": VERSIONS["canary"]},  # what was stable before, or is going to be
        {"variant": "stable-outside", "version": VERSIONS["stable"]},  # outside the audience
        {"variant": "canary", "version": "fallback01"},
    ],
)
def test_traffic_of_no_arm_counts_for_none(other: dict[str, str]) -> None:
    recorded = CASES["ErrorRate"][1]
    strangers = [grew(each.metric, 500, 500, **{**dict(each.labels), **other}, process="ffffffff") for each in recorded]
    assert counted(objective("ErrorRate"), *recorded, *strangers) == (RATE,)


# ---------------------------------------------------------------- strata


def test_cache_hits_and_misses_are_compared_separately() -> None:
    recorded = [
        grew(f"{names.METRIC_FIRST_TOKEN}_{part}", c, s, cache=cache, **labels)
        for cache, n, quick in (("hit", (1, 80), (1, 79)), ("miss", (9, 10), (7, 7)))
        for part, (c, s), labels in (("count", n, {}), ("bucket", quick, {"le": "1.0"}))
    ]
    found = counted(objective("TimeToFirstToken", thresholdSeconds="1"), *recorded)
    assert found == (Counts.of(1, 0, 80, 1), Counts.of(9, 2, 10, 3))


def feedback(age: str) -> list[Grew]:
    return [
        grew(names.METRIC_FEEDBACK, 2, 4, rating="negative", age=age),
        grew(names.METRIC_FEEDBACK, 8, 86, rating="positive", age=age),
    ]


def test_feedback_is_compared_by_the_age_of_its_answer() -> None:
    found = counted(objective("NegativeFeedbackRate"), *feedback("1m"), *feedback("10m"))
    assert found == (RATE, RATE)


@pytest.mark.parametrize(
    ("exposed_before", "ages"),
    [(59, 0), (60, 1), (599, 1), (600, 2), (86_400, 3)],
)
def test_feedback_on_answers_from_before_the_exposure_is_dropped(exposed_before: int, ages: int) -> None:
    recorded = [*feedback("1m"), *feedback("10m"), *feedback("24h")]
    found = counted(objective("NegativeFeedbackRate"), *recorded, exposed_at=START - exposed_before)
    assert len(found) == ages


def test_scores_of_two_judges_and_ages_are_compared_separately() -> None:
    recorded = [
        each
        for judge in ("j1", "j2")
        for age in ("1m", "1h")
        for each in judged((0, 0, 0, 0, 1), (0, 0, 0, 2, 0), judge=judge, age=age)
    ]
    found = counted(objective("JudgeScore", dimension="helpful"), *recorded)
    assert found == (Counts(Arm(1, 5, 25), Arm(2, 8, 32)),) * 4


# ---------------------------------------------------------------- before the exposure


def test_before_the_exposure_stable_stands_alone() -> None:
    """A canary of an earlier attempt may still have had requests: they are of no arm."""
    recorded = CASES["ErrorRate"][1]
    found = counted(objective("ErrorRate"), *recorded, exposed_at=START + WIDTH)
    assert found == (Counts(Arm(0, 0), RATE.stable),)


def test_the_interval_of_the_exposure_counts_for_both() -> None:
    assert counted(objective("ErrorRate"), *CASES["ErrorRate"][1], exposed_at=START + 5) == (RATE,)


def test_the_baseline_needs_stable_only() -> None:
    reader = Reader(question(objective("ErrorRate"), START + 2 * WIDTH), START)
    windows: dict[Query, Any] = {}
    for metric, by in ((names.METRIC_REQUESTS, 50), (names.METRIC_ERRORS, 3)):
        (_, stable) = grew(metric, 0, by).answer()
        stable["values"] += [[START + 55, str(1000 + 2 * by)], [START + 85, str(1000 + 4 * by)]]
        windows[Query("metric", metric)] = parse_matrix([stable], START - 700, START + 90)["uid"]
    first, second, third = reader.read(windows, START + 3 * WIDTH)
    alone = Counts(Arm(0, 0), Arm(50, 3))
    assert (first.counts, second.counts) == ({"it": (alone,)}, {"it": (alone,)})
    assert third.counts == {}  # the canary is exposed and nobody scraped it


# ---------------------------------------------------------------- shards


def sharded(metric: str, canary: float, stable: float, **labels: str) -> list[Grew]:
    """Divided evenly, but for the first shard, which has the rest."""
    name = names.shard_metric(metric)
    first = [grew(name, canary - 31, stable - 31, **labels, shard="0")]
    return first + [grew(name, 1, 1, **labels, shard=str(shard)) for shard in range(1, names.SHARDS)]


def test_shards_come_in_order_and_add_up() -> None:
    recorded = [
        grew(names.METRIC_REQUESTS, 100, 900),
        grew(names.METRIC_ERRORS, 40, 50),
        *reversed(sharded(names.METRIC_REQUESTS, 100, 900)),
        *reversed(sharded(names.METRIC_ERRORS, 40, 50)),
    ]
    (counts,) = counted(objective("ErrorRate"), *recorded)
    assert counts.canary.shards == ((69, 9), *[(1, 1)] * 31)
    assert counts.stable.shards == ((869, 19), *[(1, 1)] * 31)


SHARDED_BY_A_NAME_OF_THEIR_OWN = {
    "Latency": [
        grew("promptrollout_shard_requests_total", 10, 90),
        grew("promptrollout_shard_latency_slow_total", 2, 4, le="2.5"),
    ],
    "TimeToFirstToken": [grew("promptrollout_shard_first_token_slow_total", 2, 4, le="1.0", cache="miss")],
    "JudgeScore": [
        grew("promptrollout_shard_judge_score_count", 3, 2, dimension="helpful", judge="j1", age="1m"),
        grew("promptrollout_shard_judge_score_sum", 11, 7, dimension="helpful", judge="j1", age="1m"),
    ],
}


@pytest.mark.parametrize("signal", CASES)
def test_every_signal_has_shards_of_both_its_counts(signal: str) -> None:
    """By the rule that gateways name them by: the counter's name with `shard_` and a label `shard`."""
    fields, recorded, wanted = CASES[signal]
    divided = [replace(each, metric=names.shard_metric(each.metric)) for each in recorded]
    divided += SHARDED_BY_A_NAME_OF_THEIR_OWN.get(signal, [])
    in_shards = [
        replace(each, labels=(*each.labels, ("shard", str(shard))), canary=each.canary * on, stable=each.stable * on)
        for each in divided
        for shard in range(names.SHARDS)
        for on in [int(shard == 7)]
    ]
    (counts,) = counted(objective(signal, **fields), *recorded, *in_shards)
    for found, arm in ((counts.canary, wanted.canary), (counts.stable, wanted.stable)):
        assert found == replace(arm, shards=((0, 0),) * 7 + ((arm.n, arm.total),) + ((0, 0),) * 24)


@pytest.mark.parametrize("lost", ["one shard", "a pod without shards"])
def test_shards_that_do_not_add_up_are_none(lost: str) -> None:
    requests = sharded(names.METRIC_REQUESTS, 100, 900)
    if lost == "one shard":
        requests = requests[:-1]
    whole = 100 if lost == "one shard" else 101
    recorded = [
        grew(names.METRIC_REQUESTS, whole, 900),
        grew(names.METRIC_ERRORS, 40, 50),
        *requests,
        *sharded(names.METRIC_ERRORS, 40, 50),
    ]
    (counts,) = counted(objective("ErrorRate"), *recorded)
    assert (counts.canary.shards, counts.stable.shards) == ((), ())
    assert counts.canary == Arm(whole, 40)
