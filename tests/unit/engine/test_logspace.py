"""Evidence as logarithms: sums, mixtures and thresholds, against the plain numbers that they stand for."""

import math

import pytest

from promptrollout.engine.statistics.common_cause import cusums_after, is_common, suspicion_of
from promptrollout.engine.statistics.logspace import NEVER, StartMixture, log_add, log_mix, log_threshold, shrunk


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (2.0, -5.0), (0.25, 0.25)])
def test_a_sum_is_the_logarithm_of_the_sum(a: float, b: float) -> None:
    assert log_add(math.log(a) if a > 0 else NEVER, 0.5) == pytest.approx(math.log(a + math.exp(0.5)))
    assert log_add(a, b) == pytest.approx(math.log(math.exp(a) + math.exp(b)))


def test_no_mass_adds_nothing_and_huge_evidence_does_not_overflow() -> None:
    assert log_add(NEVER, -3.0) == log_add(-3.0, NEVER) == -3.0
    assert log_add(NEVER, NEVER) == log_mix((NEVER, NEVER), (0.5, 0.5)) == NEVER
    assert log_add(5000.0, 5000.0) == pytest.approx(5000 + math.log(2))
    assert log_mix((4000.0, NEVER), (0.25, 0.75)) == pytest.approx(4000 + math.log(0.25))


def test_evidence_shrinks_with_the_variance_and_counter_evidence_does_not() -> None:
    assert (shrunk(6.0, 3.0), shrunk(0.5, 2.0), shrunk(-6.0, 3.0), shrunk(0.0, 3.0)) == (2.0, 0.25, -6.0, 0.0)


def test_a_level_is_crossed_at_its_inverse_and_lies_between_0_and_1() -> None:
    assert log_threshold(0.05) == pytest.approx(math.log(20))
    for level in (0.0, 1.0, -0.1, 2.0, math.nan):
        with pytest.raises(ValueError, match="an error level lies between 0 and 1, not at"):
            log_threshold(level)


def test_before_the_first_interval_nothing_is_known_and_quiet_ones_leave_it_so() -> None:
    mixture = StartMixture.start(2)
    assert mixture.log_evidence((0.5, 0.5)) == 0
    for _ in range(5):
        mixture = mixture.observe((0.0, 0.0))
        assert mixture.log_evidence((0.5, 0.5)) == pytest.approx(0, abs=1e-12)


def test_the_weights_of_all_starts_and_what_has_not_started_are_one_at_every_interval() -> None:
    """By bets that lose all that has started before t, and nothing from then on: what begins at t, and what is left."""
    mixture, lost, before = StartMixture.start(1), StartMixture.start(1), 1.0
    starts = []
    for t in range(400):
        mixture, lost = mixture.observe((0.0,)), lost.observe((NEVER,))
        assert mixture.log_evidence((1.0,)) == pytest.approx(0, abs=1e-12)
        left = math.exp(lost.log_evidence((1.0,)))
        assert 0 < left <= before
        if left < before:
            starts.append(t)
        before = left
    assert starts == [0, 1, 2, 4, *range(8, 400, 8)]
    # 0.8 at once, and 7.8 nats for what begins after 300 intervals (at 304, the 41st later start)
    assert 1 - math.exp(StartMixture.start(1).observe((NEVER,)).log_evidence((1.0,))) == pytest.approx(0.8)
    aged = StartMixture(304, (NEVER,)).observe((0.0,))
    assert aged.logs[0] == pytest.approx(math.log(0.2 * (41**-0.5 - 42**-0.5)), abs=1e-9)
    assert 7.8 < -aged.logs[0] < 8


def test_a_mixture_starts_again_from_its_numbers_alone() -> None:
    mixture = StartMixture.start(2).observe((0.5, -1.0)).observe((0.25, 2.0))
    assert StartMixture.read(mixture.numbers(), 2) == mixture
    assert StartMixture.read(StartMixture.start(2).numbers(), 2) == StartMixture.start(2)
    for damaged in ((-1.0, 0.0, 0.0), (1.5, 0.0, 0.0), (1.0, math.nan, 0.0), (1.0, math.inf, 0.0)):
        with pytest.raises(ValueError, match="not the sums of a mixture over start times"):
            StartMixture.read(iter(damaged), 2)


def test_suspicion_is_stables_recent_evidence_never_below_0_nor_above_that_of_an_hour() -> None:
    assert cusums_after((1.0, 1.0, 6.0), 50, (0.5, -3.0, 5.0)) == pytest.approx((1.5, 0.0, math.log(1000)))
    assert cusums_after((2.0, 1.0), 0, (99.0, -99.0)) == pytest.approx((1.6, 0.8)), "without requests they fade"
    assert suspicion_of((0.0, 0.0, 0.0)) == 0
    assert suspicion_of((math.log(4), 0.0)) == pytest.approx(math.log(2.5))


def test_a_cause_is_common_while_stable_is_beyond_the_bound_or_has_been_lately() -> None:
    assert not is_common(0.0, 0.0)
    assert is_common(0.0, 0.01)
    assert is_common(math.log(3), -5.0)
    assert not is_common(math.log(3) - 1e-9, -5.0)
