"""The one incident of a baseline: found where it is, and only if it is out of the ordinary."""

import random

import pytest

from promptrollout.engine.statistics.incident import Seen, incident

USUAL = 0.02


def baseline(rates: list[float], n: float = 300.0) -> list[Seen]:
    return [Seen(n, n * rate, USUAL * (1 - USUAL), 50.0) for rate in rates]


@pytest.mark.parametrize("stretch", [range(20, 40), range(5, 6), range(15), range(45, 60), range(4, 48)])
def test_it_is_the_stretch_that_differs(stretch: range) -> None:
    assert incident(baseline([0.3 if k in stretch else USUAL for k in range(60)])) == stretch


def test_scores_that_fall_are_an_incident_too() -> None:
    scores = [Seen(60.0, 60.0 * (2.5 if 10 <= k < 20 else 4.0), 0.64, 10.0) for k in range(60)]
    assert incident(scores) == range(10, 20)


def test_it_must_differ_by_three_deviations_of_what_is_usual() -> None:
    """Ten intervals: 1/3000 + 1/15000 for the counts, 0.1/10 for a shock that is usual."""
    three = 3 * (USUAL * (1 - USUAL) * (1 / 3000 + 1 / 15000 + 0.01)) ** 0.5

    def found(difference: float) -> range | None:
        return incident(baseline([USUAL + difference if 20 <= k < 30 else USUAL for k in range(60)]))

    assert found(1.01 * three) == range(20, 30)
    assert found(0.99 * three) is None


def test_the_rest_must_show_what_is_usual() -> None:
    """What lasts for more than three quarters is no incident: it is how stable is."""
    found = incident(baseline([0.3 if 2 <= k < 56 else USUAL for k in range(60)]))
    assert found is None or len(found) <= 45


def test_a_bad_stretch_may_have_a_better_moment_in_it() -> None:
    assert incident(baseline([0.3 if k in range(20, 30) or k in range(33, 43) else USUAL for k in range(60)])) == range(
        20, 43
    )


def test_shocks_that_are_usual_are_seldom_taken_for_one() -> None:
    rng = random.Random(4)
    found = 0
    for _ in range(100):
        levels = [rng.betavariate(1.98, 97.02) for _ in range(6)]
        rates = [sum(rng.random() < levels[k // 10] for _ in range(100)) / 100 for k in range(60)]
        found += incident(baseline(rates, 100.0)) is not None
    assert found <= 20


@pytest.mark.parametrize("empty", [[], baseline([0.0]), baseline([0.02] * 60), baseline([0.1, 0.2], 0.0)])
def test_where_nothing_differs_there_is_none(empty: list[Seen]) -> None:
    assert incident(empty) is None
