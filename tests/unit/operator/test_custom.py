"""Signal `Custom`: a person's own PromQL, one arm at a time, read as carefully as the gateways' metrics."""

from typing import Any

import pytest

from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.definitions import definition_hash, make_test
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.operator.evidence.reader import Reader
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries, Query
from promptrollout.operator.sources.series import Series, parse_own

START = 1_800_000_000
WIDTH = 30
ARM = '{version="{{ version }}",variant="{{variant}}",ns="{{ namespace }}",app="{{ rollout }}",uid="{{ rollout_uid }}"}'
RATIO = {"ratio": {"bad": f"failed_total{ARM}", "total": f"done_total{ARM}"}}
MEAN = {"mean": {"sum": f"basket_sum{ARM}", "count": f"basket_count{ARM}", "sumsq": f"basket_sumsq{ARM}"}}
VALUE = {"value": f"sum(queue{ARM}) / 2"}
VERSIONS = {"canary": "cccccccccc", "stable": "sssssssss1"}


def objective(custom: dict[str, Any], **fields: Any) -> Objective:
    return Objective.model_validate({"name": "own", "signal": "Custom", "custom": custom, "max": "0.5", **fields})


def question(custom: dict[str, Any], exposed_at: int = 0, alone: bool = False) -> EvidenceRequest:
    measured = ObjectiveQueries.of(objective(custom))
    versions = (VERSIONS["stable"], VERSIONS["canary"])
    return EvidenceRequest("u-1", "default", WIDTH, *versions, (measured,), alone, exposed_at, "app", "shop")


def selector(metric: str, arm: str) -> Query:
    text = f'{metric}{{version="{VERSIONS[arm]}",variant="{arm}",ns="shop",app="app",uid="u-1"}}'
    return Query("selector", text, "shop", arm)


def series(*samples: tuple[float, float], **labels: str) -> Series:
    entry = {"metric": {"job": "app", "instance": "a", **labels}, "values": [[START + t, str(v)] for t, v in samples]}
    return parse_own([entry], 0, 2e9)[0]


def read(asked: EvidenceRequest, windows: dict[Query, list[Series]], intervals: int = 1) -> list[tuple[Counts, ...]]:
    found = Reader(asked, START).read(windows, START + intervals * WIDTH)
    return [interval.counts.get("own", ()) for interval in found]


def test_its_queries_name_one_arm_each() -> None:
    asked = set(question(RATIO).queries)
    assert asked == {selector(metric, arm) for metric in ("failed_total", "done_total") for arm in VERSIONS}


def test_a_ratio_is_of_counters_by_target() -> None:
    windows = {
        selector("done_total", "canary"): [series((-5, 5), (25, 15)), series((-5, 0), (20, 2), instance="b")],
        selector("failed_total", "canary"): [series((-5, 1), (25, 2), why="x"), series((-5, 0), (20, 1), instance="b")],
        selector("done_total", "stable"): [series((-5, 0), (25, 50)), series((-5, 70), (25, 20), instance="b")],
        selector("failed_total", "stable"): [series((-5, 0), (25, 3)), series((-5, 7), (25, 1), instance="b")],
    }
    # stable's target b was restarted
    assert read(question(RATIO), windows) == [(Counts.of(12, 2, 70, 4),)]


def test_a_counter_of_failures_that_is_not_there_before_the_first_one_counts_from_zero() -> None:
    windows = {
        selector("done_total", "canary"): [series((-5, 5), (10, 10), (25, 15))],
        selector("failed_total", "canary"): [series((25, 2))],
        selector("done_total", "stable"): [series((-5, 0), (25, 50))],
    }
    assert read(question(RATIO), windows) == [(Counts.of(10, 2, 50, 0),)]


def test_a_target_that_appears_with_a_history_counts_from_then_on() -> None:
    windows = {
        selector("done_total", "canary"): [series((5, 500), (25, 515))],
        selector("failed_total", "canary"): [series((5, 400), (25, 402))],
        selector("done_total", "stable"): [series((-5, 0), (25, 50))],
    }
    assert read(question(RATIO), windows) == [(Counts.of(15, 2, 50, 0),)]


def test_a_mean_has_its_squares() -> None:
    windows = {
        selector(f"basket_{part}", arm): [series((-5, 0), (25, value))]
        for arm, values in (("canary", (4, 20, 120)), ("stable", (9, 40, 200)))
        for part, value in zip(("count", "sum", "sumsq"), values, strict=True)
    }
    assert read(question(MEAN), windows) == [(Counts(Arm(4, 20, 120), Arm(9, 40, 200)),)]


def value(arm: str) -> Query:
    return Query("value", selector("queue", arm).text.replace("queue", "sum(queue") + ") / 2", "shop", arm)


def test_a_value_is_one_sample_an_interval_of_both_arms_or_of_neither() -> None:
    windows = {
        value("canary"): [series((30, 4), (90, 6))],
        value("stable"): [series((30, 3), (60, 3), (90, 5))],
    }
    assert read(question(VALUE), windows, 3) == [
        (Counts(Arm(1, 4, 16), Arm(1, 3, 9)),),
        (),
        (Counts(Arm(1, 6, 36), Arm(1, 5, 25)),),
    ]


def test_values_before_the_exposure_are_stables_alone() -> None:
    windows = {value("canary"): [series((30, 4), (60, 4))], value("stable"): [series((30, 3), (60, 3))]}
    before, after = read(question(VALUE, exposed_at=START + WIDTH), windows, 2)
    assert before == (Counts(Arm(0, 0), Arm(1, 3, 9)),)
    assert after == (Counts(Arm(1, 4, 16), Arm(1, 3, 9)),)


def test_a_first_version_is_asked_for_as_the_arm_that_it_is() -> None:
    asked = question(RATIO, alone=True)
    windows = {selector("done_total", "stable"): [series((-5, 0), (25, 50))]}
    assert read(asked, windows) == [(Counts.of(50, 0, 0, 0),)]


@pytest.mark.parametrize(
    ("custom", "says"),
    [
        ({"value": "up"}, r"custom\.value: .* variant .*is missing"),
        (
            {"value": 'up{a="{{ variant }}{{ version }}{{ pod }}"}'},
            r"custom\.value: .*\{\{ pod \}\} is no variable: there are namespace,",
        ),
        ({"ratio": {"bad": f"a{ARM}", "total": 'b{v="{{ version }}"}'}}, r"custom\.ratio\.total: .* variant"),
    ],
)
def test_a_query_that_cannot_be_right_names_itself_and_the_fix(custom: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=rf"objective own: {says}"):
        make_test(objective(custom))


@pytest.mark.parametrize(
    "query",
    [
        """up{a!='"'}[1h:1s] #{{ version }}{{ variant }}"}""",
        'up{a=`"`}[1h:1s]+{b="{{ version }}{{ variant }}"}',
        'up{version="{{ version }}",variant="{{ variant }}" # "\n}',
        """up{version='{{ version }}',variant="{{ variant }}"}""",
    ],
)
def test_a_selector_hides_no_expression_in_quotes_or_comments(query: str) -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        objective({"ratio": {"bad": query, "total": RATIO["ratio"]["total"]}})


def test_a_selectors_values_may_hold_any_character() -> None:
    odd = """up{a="it's \\" # {`}",version="{{ version }}",variant="{{ variant }}"}"""
    assert objective({"ratio": {"bad": odd, "total": RATIO["ratio"]["total"]}})


def test_other_queries_are_other_evidence() -> None:
    hashes = [definition_hash(objective(custom)) for custom in (RATIO, MEAN, VALUE)]
    hashes.append(definition_hash(objective(VALUE, direction="LowerIsBetter")))
    assert len(set(hashes)) == 4
