"""What must hold for every history of counts: no evidence never passes, more harm is more evidence, levels are kept."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from promptrollout.engine.objectives.judgement import Levels
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.mean_state import MeanState
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.rate_state import WORSE, RateState
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.bernoulli import two_arm_bet
from promptrollout.engine.statistics.contrast import Contrast
from promptrollout.engine.statistics.evidence import Arm, Counts

LEVELS = Levels(breach=0.05, promote=0.05)
RATE = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10, maximum=0.05)
COST = MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5, bound=0.004)

NOBODY = Arm(0, 0)
WEIGHTS = tuple(WORSE.values())

SINGLE = 1e-5

UNHURRIED = settings(deadline=None)
"""A busy machine is no failure."""

counts = st.integers(0, 2000) | st.just(10**12)


@st.composite
def rate_counts(draw: st.DrawFn) -> Counts:
    n_c, n_s = draw(counts), draw(counts)
    return Counts.of(n_c, draw(st.integers(0, n_c)), n_s, draw(st.integers(0, n_s)))


@st.composite
def moments(draw: st.DrawFn) -> Arm:
    n = draw(counts)
    mean, cv = draw(st.just(0.0) | st.floats(1e-9, 0.1)), draw(st.just(0.0) | st.floats(1e-3, 5))
    return Arm(n, n * mean, n * mean * mean * (1 + cv * cv))


rate_histories = st.lists(rate_counts(), max_size=15)
mean_histories = st.lists(st.builds(Counts, moments(), moments()), max_size=15)


def observed_rate(history: list[Counts], test: RateTest = RATE) -> RateState:
    state = test.start()
    for interval in history:
        state = test.observe(state, (interval,), promotable=True)
    return state


def observed_mean(history: list[Counts], test: MeanTest = COST) -> MeanState:
    state = test.start()
    for interval in history:
        state = test.observe(state, (interval,), promotable=True)
    return state


# ---------------------------------------------------------------- checkpoints


@UNHURRIED
@given(rate_histories, rate_histories)
def test_a_restart_anywhere_changes_no_later_bit_of_a_rate(before: list[Counts], later: list[Counts]) -> None:
    state = observed_rate(before)
    text = RATE.encode(state)
    again = RATE.decode(text)
    assert again == state
    assert len(text) <= 1280
    for interval in later:
        state = RATE.observe(state, (interval,), promotable=False)
        again = RATE.observe(again, (interval,), promotable=False)
    assert again == state
    assert RATE.judge(again, LEVELS) == RATE.judge(state, LEVELS)


def huge(canary_total: float) -> Counts:
    """One costly request among a million million free ones: evidence of -1e36 in a single interval."""
    return Counts(Arm(1, canary_total, canary_total**2), Arm(10**12, 0.0, 0.0))


@UNHURRIED
@given(mean_histories, mean_histories)
@example([huge(0.0625), huge(0.0), Counts(Arm(10**12, 0.0, 0.0), Arm(10**12, 0.0, 0.0))], [])
def test_a_restart_anywhere_changes_no_later_bit_of_a_mean(before: list[Counts], later: list[Counts]) -> None:
    state = observed_mean(before)
    text = COST.encode(state)
    again = COST.decode(text)
    assert again == state
    assert len(text) <= 1280
    for interval in later:
        state = COST.observe(state, (interval,), promotable=False)
        again = COST.observe(again, (interval,), promotable=False)
    assert again == state
    assert COST.judge(again, LEVELS) == COST.judge(state, LEVELS)


@UNHURRIED
@given(rate_histories, mean_histories)
def test_texts_fit_into_status(rates: list[Counts], means: list[Counts]) -> None:
    for judgement in (RATE.judge(observed_rate(rates), LEVELS), COST.judge(observed_mean(means), LEVELS)):
        assert len(judgement.message) <= 512
        assert len(judgement.difference) <= 96
        assert max(len(judgement.canary), len(judgement.stable)) <= 32
        assert not (judgement.breach and judgement.non_inferior)


# ---------------------------------------------------------------- no evidence is never a pass


@UNHURRIED
@given(rate_histories)
def test_a_rate_without_canary_requests_has_no_verdict(history: list[Counts]) -> None:
    state = observed_rate([replace(interval, canary=NOBODY) for interval in history])
    judgement = RATE.judge(state, LEVELS)
    assert not judgement.breach
    assert not judgement.non_inferior


@UNHURRIED
@given(mean_histories)
def test_a_mean_without_canary_requests_has_no_verdict(history: list[Counts]) -> None:
    state = observed_mean([replace(interval, canary=NOBODY) for interval in history])
    judgement = COST.judge(state, LEVELS)
    assert not judgement.breach
    assert not judgement.non_inferior


@UNHURRIED
@given(rate_histories, st.data())
def test_intervals_without_the_canary_add_nothing_to_what_promotes_it(
    history: list[Counts], data: st.DataObject
) -> None:
    state = observed_rate(history)
    gap = data.draw(st.sampled_from([x.stable_alone() for x in history] + [Counts(NOBODY, NOBODY)]))
    after = RATE.observe(state, (gap,), promotable=True)
    assert after.promotion == state.promotion
    assert after.step._replace(stable=0, stable_bad=0) == state.step._replace(stable=0, stable_bad=0)
    assert (after.pending.canary, after.pending.canary_bad) == (state.pending.canary, state.pending.canary_bad)
    assert after.relative == state.relative


@UNHURRIED
@given(rate_histories)
def test_one_armed_intervals_say_nothing_about_the_difference(history: list[Counts]) -> None:
    state = observed_rate([replace(interval, stable=NOBODY) for interval in history])
    assert state.relative.log_evidence(WEIGHTS) <= 1e-6 * sum(1 + x.canary.total for x in history)
    assert state.contrast == Contrast()


# ---------------------------------------------------------------- direction


def weights(history: list[Counts]) -> list[float]:
    """What each interval's bets are made smaller by."""
    found, state = [], RATE.start()
    for counts in history:
        found.append(state.dispersion.between_intervals())
        state = RATE.observe(state, (counts,), promotable=True)
    return found


@UNHURRIED
@given(rate_histories.filter(bool), st.data())
def test_one_more_bad_canary_request_is_more_evidence_of_harm(history: list[Counts], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(history) - 1))
    at = history[k]
    if at.canary.total >= at.canary.n or at.stable.n == 0:
        return
    worse = [*history[:k], replace(at, canary=replace(at.canary, total=at.canary.total + 1)), *history[k + 1 :]]
    # a surprise of stable's that the canary does not share any more is unrest, and weighs later intervals either way
    assume(weights(history) == weights(worse))
    good, bad = observed_rate(history), observed_rate(worse)
    slack = 1e-9 * (1 + sum(x.canary.n + x.stable.n for x in history))
    assert RATE.log_breach_relative(bad) >= RATE.log_breach_relative(good) - slack
    assert RATE.log_promote_relative(bad) <= RATE.log_promote_relative(good) + slack
    assert RATE.log_breach_absolute(bad) >= RATE.log_breach_absolute(good) - slack


@UNHURRIED
@given(
    rate_counts().filter(lambda x: x.canary.n > 0 and x.stable.n > 0),
    st.sampled_from([1.25, 1.6, 3.2]),
    st.floats(0, 0.25),
)
def test_swapped_arms_mirror_the_evidence(x: Counts, multiple: float, rate: float) -> None:
    """The canary is worse by a factor just as much as stable, in its place, is better by it."""
    worse = two_arm_bet(1.0, multiple, rate, x.canary.n, x.stable.n).log_value(x)
    better = two_arm_bet(1.0, 1 / multiple, rate, x.stable.n, x.canary.n).log_value(Counts(x.stable, x.canary))
    assert better == pytest.approx(worse, rel=1e-6, abs=1e-9 * (1 + x.canary.n + x.stable.n))


@UNHURRIED
@given(mean_histories)
def test_swapped_arms_mirror_the_interval_of_a_mean(history: list[Counts]) -> None:
    """For one interval after any history of stable: what is learned of fluctuation comes from stable alone."""
    before = observed_mean([x.stable_alone() for x in history]).dispersion
    for x in history:
        one = replace(COST.start(), canary=x.canary, stable=x.stable, dispersion=before)
        other = replace(COST.start(), canary=x.stable, stable=x.canary, dispersion=before)
        a = COST.observe(one, (x,), promotable=True).contrast
        b = COST.observe(other, (Counts(x.stable, x.canary),), promotable=True).contrast
        assert (b.canary, b.stable) == pytest.approx((a.stable, a.canary), rel=1e-9)
        assert (b.canary_spread, b.stable_spread) == pytest.approx((a.stable_spread, a.canary_spread), rel=1e-9)


@UNHURRIED
@given(st.integers(1, 5000), st.floats(0, 1), st.integers(1, 30))
def test_equal_arms_never_breach_versus_stable(n: int, rate: float, times: int) -> None:
    state = observed_rate([Counts.of(n, n * rate, n, n * rate)] * times)
    assert state.relative.log_evidence(WEIGHTS) < math.log(1 / LEVELS.breach)


# ---------------------------------------------------------------- what must not matter


@UNHURRIED
@given(st.integers(1, 500), st.integers(1, 5000), st.floats(0, 1), st.floats(0, 1), st.integers(2, 20))
def test_splitting_an_interval_of_constant_rates_changes_no_sum(
    n_c: int, n_s: int, p_c: float, p_s: float, parts: int
) -> None:
    baseline = Counts.of(0, 0, n_s, n_s * p_s)
    whole = observed_rate([baseline, Counts.of(n_c, n_c * p_c, n_s, n_s * p_s)])
    part = Counts.of(n_c / parts, n_c * p_c / parts, n_s / parts, n_s * p_s / parts)
    split = observed_rate([baseline] + [part] * parts)
    # sums of a step, and what is known before a block, are in single precision
    assert split.step == pytest.approx(whole.step, rel=SINGLE, abs=SINGLE)
    assert settled(split).promotion == pytest.approx(settled(whole).promotion, rel=SINGLE, abs=SINGLE)


def settled(state: RateState) -> RateState:
    """With intervals that wait for more requests compared as they are."""
    return RATE._settled(state) if state.pending.intervals else state


@UNHURRIED
@given(mean_histories, st.integers(-20, 20))
def test_the_unit_of_cost_does_not_matter(history: list[Counts], power: int) -> None:
    """Powers of two, so that nothing is rounded and the evidence must agree to the last bit."""
    unit = 2.0**power

    def scaled(arm: Arm) -> Arm:
        return Arm(arm.n, arm.total * unit, arm.total_squared * unit * unit)

    test = MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5, bound=0.004 * unit)
    one = observed_mean(history)
    other = observed_mean([Counts(scaled(x.canary), scaled(x.stable)) for x in history], test)
    assert other.relative == one.relative
    assert other.absolute == one.absolute
    assert other.suspicion == one.suspicion
    assert test.log_promote_relative(other) == COST.log_promote_relative(one)
    judgements = COST.judge(one, LEVELS), test.judge(other, LEVELS)
    assert judgements[0].breach == judgements[1].breach
    assert judgements[0].non_inferior == judgements[1].non_inferior


# ---------------------------------------------------------------- levels, by simulation


def poisson(rng: random.Random, mean: float) -> int:
    """Knuth's method in pieces of 30."""
    count = 0
    while mean > 0:
        limit, product = math.exp(-min(mean, 30.0)), rng.random()
        while product > limit:
            count += 1
            product *= rng.random()
        mean -= 30.0
    return count


def breaches(rng: random.Random, test: RateTest, rate: float, times: float, looks: int) -> int | None:
    """Canary requests until breach on a ramp 5, 10, 25, 50 % of 600 requests a look; None if it never does."""
    state = test.start()
    for look in range(looks):
        weight = (0.05, 0.10, 0.25, 0.50)[min(4 * look // looks, 3)]
        n_c, n_s = 600 * weight, 600 * (1 - weight)
        bad = poisson(rng, n_c * rate * times), poisson(rng, n_s * rate)
        state = test.observe(state, (Counts.of(n_c, bad[0], n_s, bad[1]),), promotable=True)
        if test.log_breach_relative(state) >= math.log(20):
            return int(state.canary)
    return None


def test_false_breaches_stay_below_the_level_at_every_look() -> None:
    """The hardest null: theta0 = 1, arms equal, 60 looks, level 5 %. 300 runs, so 3.8 standard errors of slack."""
    rng = random.Random(20261121)
    test = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=0)
    false = sum(breaches(rng, test, 0.02, 1.0, looks=60) is not None for _ in range(300))
    assert false / 300 <= 0.05


def test_three_times_the_errors_are_found_within_a_few_hundred_requests() -> None:
    rng = random.Random(7)
    test = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10)
    found = [breaches(rng, test, 0.02, 3.0, looks=60) for _ in range(100)]
    assert None not in found
    assert sorted(x or 0 for x in found)[50] <= 320


def expensive(rng: random.Random, n: int, mean: float) -> Arm:
    """Lognormal costs with a coefficient of variation of 0.95."""
    sigma = math.sqrt(math.log(1 + 0.95**2))
    costs = [rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma) for _ in range(n)]
    return Arm(n, sum(costs), sum(x * x for x in costs))


def risen_costs_breach(rng: random.Random, test: MeanTest, rise: float) -> bool:
    state = test.start()
    for _ in range(40):
        interval = Counts(expensive(rng, 20, 0.002 * rise), expensive(rng, 80, 0.002))
        state = test.observe(state, (interval,), promotable=True)
        if test.judge(state, LEVELS).breach:
            return True
    return False


def test_a_skewed_cost_keeps_its_level_and_a_rise_is_found() -> None:
    rng = random.Random(11)
    test = MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5)
    assert sum(risen_costs_breach(rng, test, 1.05) for _ in range(60)) <= 6
    assert all(risen_costs_breach(rng, test, 1.5) for _ in range(20))


@given(rate_histories, mean_histories)
def test_breach_and_pass_are_the_same_without_the_sentences(rates: list[Counts], means: list[Counts]) -> None:
    for test, state in ((RATE, observed_rate(rates)), (COST, observed_mean(means))):
        judgement = test.judge(state, LEVELS)
        assert test.breached(state, LEVELS) == judgement.breach
        assert test.passed(state, LEVELS) == (judgement.non_inferior and not judgement.common_cause)
