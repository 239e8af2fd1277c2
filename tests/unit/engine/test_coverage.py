"""Where one arm's answers could not be judged as often as the other's, nothing is concluded from the scores."""

import math
from dataclasses import replace

import pytest

from promptrollout.engine.objectives.coverage import Coverage
from promptrollout.engine.objectives.judgement import Levels
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.evidence import Arm, Counts

SCORE = MeanTest(SIGNALS["JudgeScore"], "d", margin=0.1, rollback=0.02, more_is_worse=False, gate=50)
LEVELS = Levels(breach=0.05, promote=0.03)


def scores(n: float, mean: float, missing: float) -> Arm:
    return Arm(n, n * mean, n * (mean * mean + 0.6), missing=missing)


def interval(canary_missing: float, stable_missing: float, *, mean: float = 4.0) -> Counts:
    """A hundred answers to be judged in the canary, and three hundred in stable."""
    return Counts(scores(100 - canary_missing, mean, canary_missing), scores(300 - stable_missing, 4.0, stable_missing))


def after(counts: Counts, times: int) -> Coverage:
    coverage = Coverage()
    for _ in range(times):
        coverage = coverage.observe((counts,))
    return coverage


@pytest.mark.parametrize(("canary", "stable"), [(0, 0), (2, 6), (20, 60), (3, 6)])
def test_arms_that_miss_alike_or_nearly_can_be_compared(canary: float, stable: float) -> None:
    assert not after(interval(canary, stable), 200).differs


@pytest.mark.parametrize(("canary", "stable"), [(10, 6), (0, 30), (40, 60)])
def test_arms_that_miss_unlike_can_not(canary: float, stable: float) -> None:
    assert not after(interval(canary, stable), 1).differs, "one interval is chance"
    assert after(interval(canary, stable), 30).differs


def test_the_bets_are_the_likelihood_ratios_written_out() -> None:
    first, second = interval(4, 6), interval(8, 3)
    coverage = Coverage().observe((first,)).observe((second,))
    rate = 6 / 300  # of stable, as the interval before showed it
    expected = 0.0
    for multiple in (2.0,):
        a, b = 100 / (1 - rate), 300 / (1 - rate)
        q_s = rate * (a + b) / (a * multiple + b)
        q_c = multiple * q_s
        expected = 8 * math.log(q_c / rate) + 92 * math.log((1 - q_c) / (1 - rate))
        expected += 3 * math.log(q_s / rate) + 297 * math.log((1 - q_s) / (1 - rate))
    alone = Coverage().observe((first,))
    assert coverage.more - alone.more == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mean", [4.0, 2.0])
def test_nothing_is_concluded_from_scores_of_which_one_arm_misses_more(mean: float) -> None:
    state, fair = SCORE.start(), SCORE.start()
    for _ in range(300):
        state = SCORE.observe(state, (interval(30, 6, mean=mean),), promotable=True)
        fair = SCORE.observe(fair, (interval(6, 18, mean=mean),), promotable=True)
    judgement, known = SCORE.judge(state, LEVELS), SCORE.judge(fair, LEVELS)
    assert (known.breach, known.non_inferior, known.common_cause) == (mean < 4, mean == 4, False)
    assert (judgement.breach, judgement.non_inferior, judgement.common_cause) == (False, False, True)
    assert not SCORE.breached(state, LEVELS)
    assert "30 % of the canary's answers and 2 % of stable's could not be judged" in judgement.message
    assert SCORE.decode(SCORE.encode(state)) == state
    assert len(SCORE.encode(state)) <= 1280


def test_a_damaged_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="judged answers"):
        Coverage.read(iter([-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))


def test_missing_ones_that_are_no_number_are_no_evidence() -> None:
    state = SCORE.start()
    bad = replace(interval(1, 1), canary=scores(99, 4.0, math.nan))
    assert SCORE.observe(state, (bad,), promotable=True) == state
