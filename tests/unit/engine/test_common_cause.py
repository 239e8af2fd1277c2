"""Suspicion of stable at little traffic: seldom wrong, and never without a reason that people could see."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.engine.objectives.judgement import Levels
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.common_cause import COMMON, SUSPECT
from promptrollout.engine.statistics.evidence import Arm, Counts

LEVELS = Levels(breach=0.05, promote=0.05)
MAXIMUM = RateTest(SIGNALS["ErrorRate"], "d", maximum=0.02)
COST = MeanTest(SIGNALS["CostPerRequest"], "d", bound=0.004)
INTERVALS = 20_000


def shares(suspicions: list[float]) -> tuple[float, float]:
    """Of the intervals in which one is left out, and in which people are told."""
    return sum(x >= SUSPECT for x in suspicions) / len(suspicions), sum(x >= COMMON for x in suspicions) / len(
        suspicions
    )


@pytest.mark.parametrize("requests", [1, 3, 9, 27, 90])
def test_stable_at_half_of_the_maximum_is_seldom_suspect_at_any_traffic(requests: int) -> None:
    rng, state, found = random.Random(requests), MAXIMUM.start(), []
    for _ in range(INTERVALS):
        bad = sum(rng.random() < 0.01 for _ in range(requests))
        state = MAXIMUM.observe(state, (Counts.of(0, 0, requests, bad),), promotable=True)
        found.append(state.suspicion)
    suspect, common = shares(found)
    assert suspect <= 0.05
    assert common <= 0.01


def test_a_cost_at_half_of_its_maximum_is_seldom_suspect_either() -> None:
    """Nine requests an interval, lognormal with a coefficient of variation of 1."""
    rng, state, found = random.Random(9), COST.start(), []
    spread = math.sqrt(math.log(2))
    for k in range(3_000):
        costs = [rng.lognormvariate(math.log(0.002) - spread**2 / 2, spread) for _ in range(9)]
        stable = Arm(9, sum(costs), sum(x * x for x in costs))
        canary = Arm(1, 0.002, 0.000008) if k % 4 == 0 else Arm(0, 0)
        state = COST.observe(state, (Counts(canary, stable),), promotable=True)
        found.append(state.suspicion)
    suspect, common = shares(found)
    assert suspect <= 0.05
    assert common <= 0.01


def test_stable_at_twice_the_maximum_is_told_to_people() -> None:
    rng, state = random.Random(1), MAXIMUM.start()
    for _ in range(500):
        bad = sum(rng.random() < 0.04 for _ in range(9))
        state = MAXIMUM.observe(state, (Counts.of(1, 0, 9, bad),), promotable=True)
    judgement = MAXIMUM.judge(state, LEVELS)
    assert judgement.common_cause
    assert "stable was above 2 % lately, so that bound is suspended" in judgement.message


def test_suspicion_leaves_an_interval_out_before_people_are_told_of_it() -> None:
    """Two failures of nine are suspect, and no more."""
    state = MAXIMUM.observe(MAXIMUM.start(), (Counts.of(1, 0, 9, 2),), promotable=True)
    assert SUSPECT <= state.suspicion < COMMON
    judgement = MAXIMUM.judge(state, LEVELS)
    assert not judgement.common_cause
    assert "stable was above" not in judgement.message
    failing = MAXIMUM.observe(state, (Counts.of(9, 9, 9, 0),), promotable=True)
    assert failing.absolute == state.absolute


within = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=30)


@settings(deadline=None)
@given(within)
def test_where_stable_never_was_above_nothing_says_so(history: list[tuple[int, int, float]]) -> None:
    rate, cost = MAXIMUM.start(), COST.start()
    for n_c, n_s, share in history:
        counts = Counts.of(n_c, n_c // 2, n_s, math.floor(share * 0.02 * n_s))
        rate = MAXIMUM.observe(rate, (counts,), promotable=True)
        one = share * 0.004
        stable = Arm(n_s, n_s * one, n_s * one * one * 2)
        cost = COST.observe(cost, (Counts(Arm(n_c, n_c * 0.01, n_c * 0.0002), stable),), promotable=True)
    for test, state in ((MAXIMUM, rate), (COST, cost)):
        assert state.suspicion == 0
        judgement = test.judge(state, LEVELS)
        assert not judgement.common_cause
        assert "stable was" not in judgement.message
