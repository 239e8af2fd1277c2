"""Levels are kept for every null: exact means of e-values, by the sum over all outcomes of small arms."""

import math
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.engine.lifecycle.analysis import is_outage
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.rate_state import BETTER, WORSE, RateState
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.bernoulli import two_arm_bet
from promptrollout.engine.statistics.evidence import Counts, Interval
from promptrollout.engine.statistics.logspace import log_mix
from tests.world import ERRORS

UNHURRIED = settings(deadline=None)
FEW = settings(deadline=None, max_examples=25)
ROUNDED = 1e-9
SINGLE = 1e-5
"""What a block knows of before is in single precision."""

shares = st.floats(0, 1)
rates = st.floats(0.001, 0.9)


def binomial(n: int, p: float) -> list[float]:
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def outcomes(n_c: int, p_c: float, n_s: int, p_s: float) -> Iterator[tuple[float, Counts]]:
    """Each with its chance."""
    for e_c, of_canary in enumerate(binomial(n_c, p_c)):
        for e_s, of_stable in enumerate(binomial(n_s, p_s)):
            if of_canary * of_stable > 0:
                yield of_canary * of_stable, Counts.of(n_c, e_c, n_s, e_s)


def null(half: str, share: float, theta0: float, negligible: float, p_s: float) -> float:
    """A canary's rate that is not worse than stable's (`ratio`), or negligible; at the edge where `share` is 1."""
    edge = theta0 * p_s if half == "ratio" else negligible
    return min(1.0, share * edge)


edges = shares | st.just(1.0)
halves = st.sampled_from(["ratio", "negligible"])


@UNHURRIED
@given(
    halves,
    edges,
    st.floats(1, 2),
    st.sampled_from(sorted(WORSE)),
    st.floats(0, 1),
    rates,
    st.floats(0.001, 0.49),
    st.integers(1, 6),
    st.integers(0, 8),
)
def test_an_interval_is_worth_at_most_one_on_average_under_either_half_of_the_null(
    half: str,
    share: float,
    theta0: float,
    multiple: float,
    believed: float,
    p_s: float,
    negligible: float,
    n_c: int,
    n_s: int,
) -> None:
    """Whatever stable's rate is, and was believed to be: also less than what negligible/theta0 is."""
    p_c = null(half, share, theta0, negligible, p_s)
    bet = two_arm_bet(theta0, multiple, believed, n_c, n_s)
    found = outcomes(n_c, p_c, n_s, p_s)
    assert sum(chance * math.exp(bet.log_value_above(negligible, x)) for chance, x in found) <= 1 + ROUNDED


@UNHURRIED
@given(st.sampled_from(sorted(WORSE)), rates, st.floats(0.001, 0.49), st.integers(1, 6), st.integers(0, 8), st.data())
def test_it_is_never_worth_more_than_the_comparison_alone(
    multiple: float, believed: float, negligible: float, n_c: int, n_s: int, data: st.DataObject
) -> None:
    bet = two_arm_bet(1.1, multiple, believed, n_c, n_s)
    x = Counts.of(n_c, data.draw(st.integers(0, n_c)), n_s, data.draw(st.integers(0, n_s)))
    assert bet.log_value_above(negligible, x) <= bet.log_value(x) + ROUNDED


NEGLIGIBLE = 0.1
TEST = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10, negligible=NEGLIGIBLE)


def worth(state: RateState) -> float:
    return math.exp(TEST.log_breach_relative(state))


@FEW
@given(st.lists(st.tuples(halves, edges, st.sampled_from([0.01, 0.1, 0.4, 0.8])), min_size=2, max_size=2))
def test_the_null_may_hold_by_another_half_in_each_interval(steps: list[tuple[str, float, float]]) -> None:
    """As where both arms have a spike, and before it a canary with few errors had more than stable."""
    known = TEST.observe(TEST.start(), (Counts.of(0, 0, 40, 2),), promotable=True)
    states = [(1.0, known)]
    for half, share, p_s in steps:
        p_c = null(half, share, 1.1, NEGLIGIBLE, p_s)
        states = [
            (before * chance, TEST.observe(state, (x,), promotable=True))
            for before, state in states
            for chance, x in outcomes(4, p_c, 6, p_s)
        ]
    assert abs(sum(chance for chance, _ in states) - 1) < ROUNDED
    assert sum(chance * worth(state) for chance, state in states) <= 1 + ROUNDED


# ---------------------------------------------------------------- outages, which promote nothing


def outage(counts: Counts) -> bool:
    return is_outage([ERRORS], Interval(0, 30, {ERRORS.name: (counts,)}))


@UNHURRIED
@given(st.sampled_from(sorted(BETTER)), shares, rates, st.integers(1, 5), st.integers(0, 14))
def test_leaving_outages_out_makes_no_canary_at_the_margin_pass(
    multiple: float, believed: float, p_s: float, n_c: int, n_s: int
) -> None:
    """What promotes grows with stable's failures, so what is left out where there are many was worth more than 1."""
    bet = two_arm_bet(1.5, multiple, believed, n_c, n_s)
    p_s = min(p_s, 1 / 1.5)
    values = [bet.log_value(Counts.of(n_c, 0, n_s, e_s)) for e_s in range(n_s + 1)]
    assert values == sorted(values)
    found = list(outcomes(n_c, 1.5 * p_s, n_s, p_s))
    assert sum(chance * (1 if outage(x) else math.exp(bet.log_value(x))) for chance, x in found) <= 1 + ROUNDED


@FEW
@given(st.sampled_from([(4, 7), (2, 6)]), st.sampled_from([0.05, 0.3, 0.5, 0.66]), st.integers(1, 39))
def test_nor_does_a_block_of_intervals_that_has_an_outage(arms: tuple[int, int], p_s: float, bad: int) -> None:
    """Two intervals of the test itself: of four canary requests each, or of two, which it merges."""
    known = TEST.observe(TEST.start(), (Counts.of(0, 0, 40, bad),), promotable=False)
    mean = 0.0
    first = list(outcomes(arms[0], 1.5 * p_s, arms[1], p_s))
    for chance, x in first:
        between = TEST.observe(known, (x,), promotable=True, outage=outage(x))
        for chance_then, y in first:
            state = TEST.observe(between, (y,), promotable=True, outage=outage(y))
            mean += chance * chance_then * math.exp(log_mix(state.promotion, list(BETTER.values())))
    assert mean <= 1 + SINGLE
