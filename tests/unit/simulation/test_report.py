"""Numbers of many runs, and evidence read off the tests."""

import pytest

from promptrollout.engine.lifecycle.analysis import levels
from promptrollout.engine.objectives import wording
from promptrollout.simulation.report import duration
from promptrollout.simulation.summary import chance, spread, summary
from promptrollout.simulation.toll import tolls
from promptrollout.simulation.traces import MOST, strictest, traces
from promptrollout.simulation.world import simulate
from tests.unit.simulation.steady import Steady, rules


def test_evidence_crosses_its_threshold_when_the_rollout_is_rolled_back() -> None:
    run = simulate(rules(), Steady(rates={"errors": (0.03, 0.01)}), looks=True)
    (trace,) = traces(rules(), run.looks)
    assert [point.breach >= trace.breach_threshold for point in trace.points] == [False] * (len(trace.points) - 1) + [
        True
    ]
    assert trace.points[-1].seconds == run.seconds
    assert trace.unit == "points"
    low, high = trace.points[-1].low, trace.points[-1].high
    assert low is not None
    assert high is not None
    assert low < 2 < high


def test_evidence_of_a_good_version_crosses_when_it_may_pass() -> None:
    # one step: what passes an early one by NoBreach alone is shown as passed, too
    run = simulate(rules(steps=[{"weight": 50, "minDurationSeconds": 3000}]), Steady(), looks=True)
    (trace,) = traces(rules(), run.looks)
    first = next(point.seconds for point in trace.points if point.promotion >= trace.promotion_threshold)
    passed = next(look.seconds for look in run.looks if look.rows[0].verdict == "Pass")
    assert first == passed
    assert trace.breach_threshold == pytest.approx(1.30, abs=0.01)
    assert levels(rules(), 1).promote == pytest.approx(10**-trace.promotion_threshold)


def test_the_strictest_level_is_found() -> None:
    assert strictest(lambda level: level >= 0.01) == pytest.approx(2, abs=0.01)
    assert strictest(lambda level: False) == 0
    assert strictest(lambda level: True) == pytest.approx(MOST, abs=0.01)


def test_differences_are_drawn_in_the_unit_that_people_read() -> None:
    run = simulate(rules(), Steady(rates={"errors": (0.03, 0.01)}), looks=True)
    (trace,) = (each for each in traces(rules(), run.looks) if each.objective == "errors")
    last, row = trace.points[-1], next(row for row in run.looks[-1].rows if row.name == "errors")
    assert trace.unit == "points"
    assert last.low is not None
    assert last.high is not None
    assert row.difference == wording.share_difference(last.low / 100, last.high / 100)


def test_chances_do_not_pretend_certainty() -> None:
    none = chance(0, 50)
    assert (none.share, none.low) == (0, 0)
    assert none.high == pytest.approx(0.071, abs=0.001)
    half = chance(50, 100)
    assert (half.low, half.high) == pytest.approx((0.404, 0.596), abs=0.001)


def test_medians_and_nine_of_ten() -> None:
    found = spread([float(x) for x in range(1, 11)])
    assert (found.median, found.p90) == (5, 9)
    assert spread([7.0]).p90 == 7


def test_a_summary_counts_every_run_once() -> None:
    runs = [simulate(rules(), Steady(rates={"errors": rates})) for rates in ((0.01, 0.01), (0.03, 0.01), (0.04, 0.01))]
    runs.append(simulate(rules(), Steady(requests=6)))
    found = summary(runs)
    assert [found.chances[o].count for o in ("Promoted", "RolledBack", "Held")] == [1, 2, 1]
    assert found.reasons == {"errors": 2}
    assert found.seconds["Promoted"] == spread([1800.0])


def test_without_stable_its_last_mean_says_what_was_more() -> None:
    traffic = Steady(rates={"errors": (0.03, 0.01)})
    toll = tolls([traffic.counts(0, 50), traffic.counts(1, 100)])["errors"]
    assert toll.requests == 900
    assert toll.excess == pytest.approx(900 * 0.02)


def test_durations() -> None:
    assert duration(2712) == "0:45:12"
    assert duration(90_000) == "1 d 1:00:00"
    assert duration(float("inf")) == "never"
