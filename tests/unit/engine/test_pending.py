"""Intervals with hardly a canary request: merged before both arms are compared, and no request of stable's is lost."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.engine.objectives.judgement import Levels
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.rate_state import RateState
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.contrast import Contrast
from promptrollout.engine.statistics.dispersion import SHARDS
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.engine.statistics.pending import Pending

LEVELS = Levels(breach=0.05, promote=0.05)
RATE = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10, maximum=0.05)
BEFORE = [Counts.of(0, 0, 20, k % 2) for k in range(40)]
"""Stable's intervals before the canary's first user."""
FEW = [Counts.of(1, 0, 19, 1), Counts.of(0, 0, 20, 0), Counts.of(2, 1, 18, 0), Counts.of(1, 0, 19, 2)]
CLOSE = 1e-6
"""Relative: what was known before a block is kept in single precision."""


def after(intervals: list[Counts], state: RateState | None = None, *, promotable: bool = True) -> RateState:
    state = state or RATE.start()
    for counts in intervals:
        state = RATE.observe(state, (counts,), promotable=promotable)
    return state


def pooled(intervals: list[Counts]) -> Counts:
    canary, stable = [x.canary for x in intervals], [x.stable for x in intervals]
    return Counts.of(
        sum(a.n for a in canary), sum(a.total for a in canary), sum(a.n for a in stable), sum(a.total for a in stable)
    )


def assert_same_evidence(one: RateState, other: RateState) -> None:
    assert one.relative.intervals == other.relative.intervals
    assert one.relative.logs == pytest.approx(other.relative.logs, rel=CLOSE)
    assert one.promotion == pytest.approx(other.promotion, rel=CLOSE)
    assert one.effective == pytest.approx(other.effective, rel=CLOSE)
    assert list(one.contrast.numbers()) == pytest.approx(list(other.contrast.numbers()), rel=CLOSE)


def test_four_canary_requests_of_several_intervals_are_worth_what_they_are_in_one() -> None:
    before = after(BEFORE)
    waiting = after(FEW[:3], before)
    assert waiting.pending.counts == pooled(FEW[:3])
    assert_same_evidence(waiting, before)
    merged, at_once = after(FEW, before), after([pooled(FEW)], before)
    assert merged.relative.intervals == 1
    assert_same_evidence(merged, at_once)
    assert merged.pending == at_once.pending == Pending()


def test_what_people_read_counts_each_interval_at_once() -> None:
    state = after(FEW[:3], after(BEFORE, promotable=False))
    assert (state.canary, state.canary_bad, state.stable, state.stable_bad) == (3, 1, 57, 1)
    assert state.step[:4] == (3, 1, 57, 1)
    assert RATE.judge(state, LEVELS).canary_samples == 3


def test_before_the_canarys_first_request_nothing_waits() -> None:
    assert after(BEFORE).pending == Pending()


def test_a_block_ends_where_intervals_may_no_longer_promote_or_may_do_so_again() -> None:
    before = after(BEFORE)
    for first in (True, False):
        some = after(FEW[:3], before, promotable=first)
        changed = RATE.observe(some, (FEW[3],), promotable=not first)
        assert_same_evidence(changed, RATE._settled(some))
        assert (changed.promotion != before.promotion) is first
        assert changed.relative.intervals == 1
        assert changed.pending.counts == FEW[3]


def test_an_outage_ends_no_block_and_a_block_with_one_promotes_nothing() -> None:
    """An end chosen by outcomes would choose the evidence, as a block is not the product of its parts."""
    before, down = after(BEFORE), Counts.of(1, 1, 19, 19)
    some = after(FEW[:3], before)
    state = RATE.observe(some, (down,), promotable=True, outage=True)
    at_once = RATE.observe(before, (pooled([*FEW[:3], down]),), promotable=False)
    assert_same_evidence(state, at_once)
    assert state.promotion == before.promotion
    assert state.step[:2] == some.step[:2], "and it is no sample of the step"
    later = after(FEW, state)
    assert later.promotion != before.promotion, "the next block promotes again"


def test_a_new_step_takes_what_waits_as_evidence_of_a_breach() -> None:
    some = after(FEW[:3], after(BEFORE))
    fresh = RATE.new_step(some)
    assert fresh.relative.intervals == 1
    assert fresh.promotion == (0.0,) * 4
    assert fresh.pending == Pending()
    assert fresh.step == RATE.start().step
    assert fresh.relative == RATE._settled(some).relative


@pytest.mark.parametrize("seconds", [30, 60, 300, 7200])
def test_what_waits_for_an_hour_is_compared_as_it_is(seconds: int) -> None:
    test = replace(RATE, interval_seconds=seconds)
    state = test.observe(test.start(), (Counts.of(1, 1, 19, 0),), promotable=True)
    waited = 1
    while not state.relative.intervals:
        state = test.observe(state, (Counts.of(0, 0, 20, 0),), promotable=True)
        waited += 1
    assert waited == max(1, 3600 // seconds)
    assert state.effective == 1
    quiet = test.observe(state, (Counts.of(0, 0, 20, 0),), promotable=True)
    for _ in range(3600 // seconds):
        quiet = test.observe(quiet, (Counts.of(0, 0, 20, 0),), promotable=True)
    assert quiet.relative == state.relative, "and an hour without a canary is not a comparison"
    assert quiet.contrast == state.contrast


def test_without_stable_a_block_compares_nothing() -> None:
    state = after([Counts.of(1, 1, 0, 0)] * 40)
    assert state.relative.log_evidence((0.05, 0.4, 0.45, 0.1)) == pytest.approx(0, abs=1e-9)
    assert state.promotion == pytest.approx((0.0,) * 4, abs=1e-9)
    assert state.contrast == Contrast()


def test_answers_of_an_age_are_compared_among_themselves_and_wait_for_no_others() -> None:
    votes = RateTest(SIGNALS["NegativeFeedbackRate"], "d", margin_percent=50, rollback_percent=10)
    state = votes.observe(votes.start(), (Counts.of(1, 1, 19, 0), Counts.of(0, 0, 10, 3)), promotable=True)
    assert state.relative.intervals == 1
    assert state.pending == Pending()


def test_a_canary_that_always_fails_at_a_request_a_minute_is_rolled_back_within_eight_requests() -> None:
    """Intervals of 30 s, 5 %: the canary has a request each twenty minutes, stable the other nineteen."""
    state, seen = RATE.start(), 0
    while not RATE.judge(state, LEVELS).breach:
        for k in range(40):
            counts = Counts.of(k == 39, k == 39, k % 2 and k < 39, 0)
            state = RATE.observe(state, (counts,), promotable=True)
        seen += 1
        assert seen <= 8


small = st.builds(
    lambda c, e, s, f: Counts.of(c, min(c, e), s, min(s, f)), *[st.integers(0, 3)] * 2, *[st.integers(0, 30)] * 2
)
intervals = st.lists(
    st.tuples(small, st.sampled_from([(True, False), (True, False), (False, False), (True, True)])), max_size=40
)


@settings(deadline=None)
@given(intervals)
def test_a_restart_after_every_interval_changes_no_bit(history: list[tuple[Counts, tuple[bool, bool]]]) -> None:
    one = other = RATE.start()
    for counts, (promotable, outage) in history:
        one = RATE.observe(one, (counts,), promotable=promotable, outage=outage)
        other = RATE.decode(RATE.encode(other))
        other = RATE.observe(other, (counts,), promotable=promotable, outage=outage)
    assert other == one
    assert RATE.encode(other) == RATE.encode(one)


def arm(n: float, total: float) -> Arm:
    return Arm(n, total, 2 * total, shards=tuple((n / SHARDS, total / SHARDS) for _ in range(SHARDS)))


@pytest.mark.parametrize("canary", [2.0, 1e9])
def test_a_checkpoint_with_shards_has_at_most_1280_characters(canary: float) -> None:
    mean = MeanTest(SIGNALS["CostPerRequest"], "d" * 10, margin=10, rollback=5, bound=0.004)
    for test in (replace(RATE, definition="d" * 10), mean):
        state = test.start()
        for k in range(70):
            counts = Counts(arm(canary * (k > 60), 0.5 * (k > 60)), arm(200 + k, 3.3))
            state = test.observe(state, (counts,), promotable=True)
        assert state.dispersion.requests
        assert len(test.encode(state)) <= 1280
        assert test.decode(test.encode(state)) == state
