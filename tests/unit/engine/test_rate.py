"""Rates: golden numbers by direct formulas, what breaches, what passes, what is no evidence, and what people read."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest

from promptrollout.engine.objectives.judgement import Judgement, Levels
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.rate_state import BETTER, WORSE, WORSE_ODDS, RateState
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.bernoulli import log_bound, two_arm_bet
from promptrollout.engine.statistics.evidence import Counts
from promptrollout.engine.statistics.logspace import StartMixture

ERRORS = SIGNALS["ErrorRate"]
LEVELS = Levels(breach=0.05 / 3, promote=0.05)
VERSUS_STABLE = RateTest(ERRORS, "d", margin_percent=50, rollback_percent=10)
MAXIMUM = RateTest(ERRORS, "d", maximum=0.02)
BOTH = RateTest(ERRORS, "d", margin_percent=50, rollback_percent=10, maximum=0.05)


def after(
    test: RateTest, *intervals: tuple[float, float, float, float], times: int = 1, promotable: bool = True
) -> RateState:
    state = test.start()
    for _ in range(times):
        for interval in intervals:
            state = test.observe(state, (Counts.of(*interval),), promotable=promotable)
    return state


def judged(test: RateTest, *intervals: tuple[float, float, float, float], times: int = 1) -> Judgement:
    return test.judge(after(test, *intervals, times=times), LEVELS)


def looks_until(test: RateTest, interval: tuple[float, float, float, float], verdict: str) -> int:
    state = test.start()
    for look in range(1, 5000):
        state = test.observe(state, (Counts.of(*interval),), promotable=True)
        if getattr(test.judge(state, LEVELS), verdict):
            return look
    raise AssertionError(f"never {verdict}")


# ---------------------------------------------------------------- formulas


def rare_event_limit(theta0: Fraction, multiple: Fraction, n_c: int, e_c: int, n_s: int, e_s: int) -> Fraction:
    """The two-arm e-value of rare events written out, in exact arithmetic."""
    theta = theta0 * multiple
    r = (n_c * theta0 + n_s) / (n_c * theta + n_s)
    return multiple**e_c * r ** (e_c + e_s)


def turner(multiple: Fraction, null: Fraction, n_c: int, e_c: int, n_s: int, e_s: int) -> Fraction:
    """Turner, Ly, Gruenwald (arXiv 2106.02693, eq. 5): the alternative's likelihood over that of the pooled rate, in
    exact arithmetic, for the pair of rates whose pooled rate is `null` and whose ratio is `multiple`."""
    stable = null * (n_c + n_s) / (multiple * n_c + n_s)
    canary = multiple * stable
    likelihood = canary**e_c * (1 - canary) ** (n_c - e_c) * stable**e_s * (1 - stable) ** (n_s - e_s)
    return likelihood / (null ** (e_c + e_s) * (1 - null) ** (n_c + n_s - e_c - e_s))


def log_ratio(theta0: float, multiple: float, rate: float, counts: Counts) -> float:
    return two_arm_bet(theta0, multiple, rate, counts.canary.n, counts.stable.n).log_value(counts)


def worse_or_negligible(multiple: float, rate: float, n_c: float, e_c: float, n_s: float, e_s: float) -> float:
    """e-value of an interval against both: what stable adds is at most what gives e^C a mean of 1 at 0.5 %."""
    bet = two_arm_bet(1.1, multiple, max(rate, 0.005 / 1.1), n_c, n_s)
    bad, good = math.exp(bet.canary_bad), math.exp(bet.canary_good)
    of_stable = math.exp(e_s * bet.stable_bad + (n_s - e_s) * bet.stable_good)
    return bad**e_c * good ** (n_c - e_c) * min(of_stable, (0.005 * bad + 0.995 * good) ** -n_c)


COUNTS = [(100, 5, 900, 18), (1, 1, 19, 0), (300, 0, 300, 7), (7, 7, 1, 0)]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("multiple", ["1.1", "3", "10", "0.33"])
def test_without_a_known_rate_an_interval_is_worth_the_rare_event_limit(counts: tuple[int, ...], multiple: str) -> None:
    expected = rare_event_limit(Fraction("1.1"), Fraction(multiple), *counts)
    assert log_ratio(1.1, float(multiple), 0.0, Counts.of(*counts)) == pytest.approx(math.log(expected), abs=1e-12)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("multiple", ["1.25", "2", "0.5"])
@pytest.mark.parametrize("null", ["0.02", "0.3"])
def test_against_equal_rates_it_is_worth_turner_ly_gruenwald(counts: tuple[int, ...], multiple: str, null: str) -> None:
    expected = turner(Fraction(multiple), Fraction(null), *counts)
    found = log_ratio(1.0, float(multiple), float(null), Counts.of(*counts))
    assert found == pytest.approx(math.log(expected), abs=1e-9)


@pytest.mark.parametrize("multiple", [*WORSE, *BETTER])
@pytest.mark.parametrize("believed", [0.0, 0.05, 0.3, 0.7])
@pytest.mark.parametrize("theta0", [1.0, 1.1, 1.5])
def test_its_mean_is_at_most_one_whatever_stables_rate_is_and_was_believed_to_be(
    multiple: float, believed: float, theta0: float
) -> None:
    """Brute force over all outcomes of two binomial arms at p_c = theta0 p_s."""
    n_c, n_s = 6, 9

    def binomial(k: int, n: int, p: float) -> float:
        return math.comb(n, k) * p**k * (1 - p) ** (n - k)

    means = [
        sum(
            binomial(e_c, n_c, theta0 * p)
            * binomial(e_s, n_s, p)
            * math.exp(log_ratio(theta0, multiple, believed, Counts.of(n_c, e_c, n_s, e_s)))
            for e_c in range(n_c + 1)
            for e_s in range(n_s + 1)
        )
        for p in (0.001, 0.02, 0.1, 0.3, 0.6, 0.99 / theta0, believed)
        if theta0 * p <= 1
    ]
    assert max(means) <= 1 + 1e-9
    if believed and theta0 * believed < 0.9:
        assert means[-1] == pytest.approx(1, abs=1e-9)  # and nothing is wasted where the belief is right


@pytest.mark.parametrize("odds", WORSE_ODDS)
def test_a_bounds_e_value_is_the_bernoulli_likelihood_ratio(odds: float) -> None:
    bound = Fraction(1, 50)
    other = Fraction(odds) * bound / (1 - bound + Fraction(odds) * bound)
    expected = (other / bound) ** 3 * ((1 - other) / (1 - bound)) ** 97
    assert log_bound(0.02, odds, 100, 3) == pytest.approx(math.log(expected), rel=1e-9)


def test_the_breach_evidence_mixes_over_alternatives_and_starts() -> None:
    """Against the definition: a sum over every start, not the recursion."""
    intervals = [(100, 1, 900, 18), (120, 6, 880, 15), (110, 9, 890, 20)]
    starts = [0.8, 0.2 * (1 - 2**-0.5), 0.2 * (2**-0.5 - 3**-0.5)]
    believed = [0.0, 18 / 900, (0.95 * 18 + 15) / (0.95 * 900 + 880)]  # stable's fading rate over the intervals before
    expected = 1 - sum(starts)
    for multiple, weight in WORSE.items():
        pairs = zip(believed, intervals, strict=True)
        values = [worse_or_negligible(multiple, rate, *interval) for rate, interval in pairs]
        expected += weight * sum(w * math.prod(values[k:]) for k, w in enumerate(starts))
    state = after(VERSUS_STABLE, *intervals)
    assert state.relative.log_evidence(tuple(WORSE.values())) == pytest.approx(math.log(expected), abs=1e-12)


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(("negligible", "requests"), [(0.005, 797), (0.01, 398)])
def test_a_spotless_canary_passes_after_the_known_number_of_requests(negligible: float, requests: int) -> None:
    test = RateTest(ERRORS, "d", margin_percent=50, rollback_percent=10, negligible=negligible)
    assert looks_until(test, (1, 0, 19, 0), "non_inferior") == pytest.approx(requests, abs=2)


def test_a_total_failure_at_half_a_request_a_minute_crosses_after_four_requests() -> None:
    assert looks_until(VERSUS_STABLE, (1, 1, 19, 0), "breach") <= 4
    quiet = [(0.0, 0.0, 10.0, 0.0), (1.0, 1.0, 9.0, 0.0)]
    assert judged(VERSUS_STABLE, *quiet, times=4).breach


def test_three_times_the_errors_breach_and_half_again_as_many_take_longer() -> None:
    triple = looks_until(VERSUS_STABLE, (50, 3, 950, 19), "breach")
    more = looks_until(VERSUS_STABLE, (100, 3, 900, 18), "breach")
    assert 3 <= triple <= 10
    assert triple < more <= 80


@pytest.mark.parametrize(("before", "most"), [(96, 4), (100, 5), (103, 5), (1000, 5)])
def test_a_late_regression_is_seen_although_much_was_well_before(before: int, most: int) -> None:
    """Bets begin at every eighth interval: between two of them a few good ones must be outweighed."""
    state = after(VERSUS_STABLE, (500, 10, 500, 10), times=before)
    looks = 0
    while not VERSUS_STABLE.judge(state, LEVELS).breach:
        state = VERSUS_STABLE.observe(state, (Counts.of(500, 30, 500, 10),), promotable=True)
        looks += 1
    assert looks <= most


def test_a_shared_spike_decides_nothing() -> None:
    test = BOTH
    state = after(test, (50, 0.5, 450, 4.5), times=30)
    for _ in range(30):
        state = test.observe(state, (Counts.of(250, 25, 250, 25),), promotable=True)
        judgement = test.judge(state, LEVELS)
        assert not judgement.breach
    assert judgement.common_cause
    assert "stable was above 5 % lately" in judgement.message
    # and when both recover, the spike is not held against the canary afterwards
    for _ in range(60):
        state = test.observe(state, (Counts.of(250, 2.5, 250, 2.5),), promotable=True)
        judgement = test.judge(state, LEVELS)
        assert not judgement.breach
    assert not judgement.common_cause


def test_a_shared_spike_at_high_weight_and_little_stable_traffic_decides_nothing() -> None:
    state = after(BOTH, (18, 0.2, 2, 0.02), times=30)
    for k in range(30):
        state = BOTH.observe(state, (Counts.of(18, 6, 2 * (k % 3 > 0), k % 3 > 0),), promotable=True)
        assert not BOTH.judge(state, LEVELS).breach


@pytest.mark.parametrize("above", [1.02, 1.05, 1.1, 1.25, 2.0])
def test_both_arms_a_little_above_the_maximum_are_a_common_cause(above: float) -> None:
    state = MAXIMUM.start()
    for _ in range(400):
        state = MAXIMUM.observe(state, (Counts.of(200, 4 * above, 200, 4 * above),), promotable=True)
        assert not MAXIMUM.judge(state, LEVELS).breach


def test_an_absolute_bound_is_never_crossed_within_two_intervals() -> None:
    judgement = judged(MAXIMUM, (1000, 1000, 0, 0), times=2)
    assert not judgement.breach
    assert judged(MAXIMUM, (1000, 1000, 0, 0), times=4).breach


def test_a_canary_above_max_breaches_by_that_alone_when_no_margin_is_crossed() -> None:
    test = RateTest(ERRORS, "d", margin_percent=10_000, rollback_percent=10_000, maximum=0.05)
    judgement = judged(test, (100, 10, 900, 9), times=20)
    assert judgement.breach
    assert "above its maximum of 5 % with 99.17 % confidence" in judgement.message


def test_after_full_promotion_only_the_absolute_bound_still_breaches() -> None:
    judgement = judged(BOTH, (1000, 200, 0, 0), times=5)
    assert judgement.breach
    assert not judged(VERSUS_STABLE, (1000, 200, 0, 0), times=5).breach


# ---------------------------------------------------------------- promotion


def test_promotion_needs_every_bound() -> None:
    within_margin = (500.0, 10.0, 500.0, 10.0)
    assert judged(RateTest(ERRORS, "d", margin_percent=50, rollback_percent=10), within_margin, times=40).non_inferior
    test = RateTest(ERRORS, "d", margin_percent=50, rollback_percent=10, maximum=0.019)
    judgement = judged(test, within_margin, times=40)
    assert not judgement.non_inferior
    assert "not shown to be below its maximum of 1.9 %" in judgement.message


def test_only_promotable_intervals_promote() -> None:
    state = after(VERSUS_STABLE, (500, 10, 500, 10), times=40, promotable=False)
    assert not VERSUS_STABLE.judge(state, LEVELS).non_inferior
    state = after(VERSUS_STABLE, (500, 30, 500, 10), times=5, promotable=False)
    assert VERSUS_STABLE.judge(state, LEVELS).breach


def test_a_margin_of_zero_passes_only_a_better_canary_or_one_below_the_negligible_rate() -> None:
    test = RateTest(ERRORS, "d", margin_percent=0, rollback_percent=0)
    assert not judged(test, (500, 10, 500, 10), times=100).non_inferior
    assert judged(test, (500, 4, 500, 10), times=100).non_inferior
    assert judged(test, (500, 0.5, 500, 0.5), times=100).non_inferior


def test_a_difference_below_the_negligible_rate_never_breaches() -> None:
    assert not judged(VERSUS_STABLE, (1000, 0.4, 19_000, 0.0), times=50).breach


# ---------------------------------------------------------------- no evidence


@pytest.mark.parametrize(
    "interval", [(0, 0, 0, 0), (0, 0, 1000, 0), (math.nan, 0, 10, 0), (10, 0, math.inf, 0), (-5, 0, 10, 0)]
)
def test_no_evidence_is_no_verdict(interval: tuple[float, float, float, float]) -> None:
    for test in (VERSUS_STABLE, MAXIMUM, BOTH):
        judgement = judged(test, interval, times=2000)
        assert not judgement.breach
        assert not judgement.non_inferior
        assert judgement.canary == ""
        assert judgement.difference == ""
        assert judgement.message == "error rate: no canary requests measured yet"


def test_what_cannot_be_a_count_changes_nothing() -> None:
    state = after(BOTH, (100, 5, 900, 18))
    assert BOTH.observe(state, (Counts.of(100, math.nan, 900, 0),), promotable=True) == state


def test_more_bad_requests_than_requests_count_as_all_bad() -> None:
    assert after(BOTH, (10, 11, 90, 2)) == after(BOTH, (10, 10, 90, 2))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({}, "set max, versusStable"), ({"maximum": 2.0}, "max of a rate"), ({"margin_percent": 5.0}, "rollbackAbove")],
)
def test_senseless_bounds_are_refused_by_name(parameters: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RateTest(ERRORS, "d", **parameters)


# ---------------------------------------------------------------- numbers at their limits


@pytest.mark.parametrize("n", [1e12, 1e9])
def test_huge_counts_stay_finite(n: float) -> None:
    for interval in [(n, n, n, 0.0), (n, 0.0, n, n), (n, 0.02 * n, n, 0.02 * n), (1.0, 1.0, n, n)]:
        state = after(BOTH, interval, times=5)
        assert all(not math.isnan(x) for x in state.numbers())
        assert BOTH.decode(BOTH.encode(state)) == state
        assert BOTH.judge(state, LEVELS).message


def test_after_a_hundred_thousand_intervals_a_regression_still_shows() -> None:
    state = after(BOTH, (10, 0, 90, 2), times=10)
    aged = StartMixture(100_000, tuple(-1e4 for _ in state.relative.logs))
    state = replace(state, relative=aged, canary=1e6, stable=9e6)
    assert len(BOTH.encode(state)) <= 1280
    assert BOTH.decode(BOTH.encode(state)) == state
    for _ in range(30):
        state = BOTH.observe(state, (Counts.of(100, 30, 900, 18),), promotable=True)
    assert BOTH.judge(state, LEVELS).breach


# ---------------------------------------------------------------- words


def test_the_breach_reads_as_a_person_would_say_it() -> None:
    judgement = judged(VERSUS_STABLE, (235.3, 7.3, 2112.8, 40.2), times=40)
    assert judgement.message == (
        "error rate 3.1 % against 1.9 % on stable (9,412 and 84,512 requests): "
        "worse by more than 10 % (promotion margin 50 %) with 98.3 % confidence"
    )
    assert (judgement.canary, judgement.stable) == ("3.1 %", "1.9 %")
    assert judgement.difference == "+0.58 to +1.8 points"


def test_a_pass_names_the_smallest_regression_that_could_have_been_seen() -> None:
    judgement = judged(VERSUS_STABLE, (500, 10, 500, 10), times=40)
    assert "worse by less than 50 % (rollback above 10 %) with 95 % confidence" in judgement.message
    assert "a rise to 2.8 % or more would have been detected" in judgement.message


def test_the_detectable_rate_is_the_one_that_breaches() -> None:
    """Replaying the same requests with that rate from the start crosses within a fifth of what was promised."""
    state = after(VERSUS_STABLE, (50, 1, 950, 19), times=60)
    rate = VERSUS_STABLE.detectable(state, LEVELS.breach)
    looks = looks_until(VERSUS_STABLE, (50, 50 * rate, 950, 19), "breach")
    assert 40 <= looks <= 66


def test_few_requests_say_so() -> None:
    assert "too few requests to detect any rise" in judged(VERSUS_STABLE, (1, 0, 19, 0)).message
