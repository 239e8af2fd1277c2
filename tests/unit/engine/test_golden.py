"""Golden numbers: what tests keep and say after intervals that fluctuate, recomputed from the definitions.

Nothing here uses the engine's own sums: every expectation goes through all intervals at once.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from promptrollout.engine.objectives.judgement import Levels
from promptrollout.engine.objectives.mean import MeanTest
from promptrollout.engine.objectives.mean_state import MeanState
from promptrollout.engine.objectives.rate import RateTest
from promptrollout.engine.objectives.rate_state import RateState, StepCounts
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.bernoulli import log_bound, two_arm_bet
from promptrollout.engine.statistics.contrast import Contrast, half_width, log_one_sided
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.engine.statistics.moments import variances
from promptrollout.engine.statistics.pending import Pending

LEVELS = Levels(breach=0.05, promote=0.05)
WORSE = {1.25: 0.05, 1.6: 0.4, 3.0: 0.45, 10.0: 0.1}
BETTER = {0.8: 0.2, 0.67: 0.5, 0.5: 0.2, 0.33: 0.1}
ODDS = (1.25, 2.0, 4.0, 10.0, 100.0)
SPOTLESS = {0.01: 0.65, 0.25: 0.2, 0.5: 0.15}
EFFECTS = (0.03, 0.06, 0.12)

RATE = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10, maximum=0.05)
CLOSE = 1e-5
"""Relative: what is known of fluctuations is kept in single precision."""
FLUCTUATING = [
    Counts.of(100, 2, 900, 9),
    Counts.of(150, 4, 850, 30),
    Counts.of(120, 1, 880, 5),
    Counts.of(90, 6, 910, 33),
    Counts.of(110, 3, 890, 8),
]

COST = MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5, bound=0.004)
SCORE = MeanTest(SIGNALS["JudgeScore"], "d", margin=0.1, rollback=0.02, bound=3.5, more_is_worse=False, gate=50)


def values(n: float, mean: float, deviation: float) -> Arm:
    return Arm(n, n * mean, n * (mean * mean + deviation * deviation))


COSTS = [
    Counts(values(100, 0.0021, 0.002), values(300, 0.002, 0.002)),
    Counts(values(120, 0.0022, 0.002), values(280, 0.003, 0.002)),
    Counts(values(90, 0.0018, 0.002), values(310, 0.0015, 0.002)),
    Counts(values(110, 0.0035, 0.002), values(290, 0.0029, 0.002)),
    Counts(values(105, 0.0024, 0.002), values(295, 0.0019, 0.002)),
]
SCORES = [
    Counts(values(60, 4.0, 0.8), values(200, 4.1, 0.8)),
    Counts(values(50, 3.9, 0.8), values(210, 4.4, 0.8)),
    Counts(values(70, 4.2, 0.8), values(190, 3.8, 0.8)),
    Counts(values(65, 3.6, 0.8), values(195, 4.3, 0.8)),
]


def rates_after(strata: Sequence[Counts], test: RateTest = RATE, *, promotable: bool = True) -> RateState:
    state = test.start()
    for counts in strata:
        state = test.observe(state, (counts,), promotable=promotable)
    return state


def means_after(test: MeanTest, strata: Sequence[Counts]) -> MeanState:
    state = test.start()
    for counts in strata:
        state = test.observe(state, (counts,), promotable=True)
    return state


def correlation(strata: Sequence[Counts], spreads: Sequence[float], kurtoses: Sequence[float]) -> float:
    """Of stable, by von Neumann's differences between the means of neighbouring blocks of 1, 4 and 16 intervals: what
    they show beyond independent requests by more than one standard error, over twice as many changes as were seen and
    as many quiet ones as ten intervals have. A correlation that lasts for a block counts once for each interval of it.
    What is 16 times as much as was expected, and between half and twice was done by the canary, counts as expected.

    Blocks of 16 begin at every eighth interval. What they show must stand out by two standard errors, of 1.4 times the
    variance; where it is more than shorter blocks show, one and a half times the difference is added."""
    found = []
    for length, starts, deviations in ((1, (0,), 1.0), (4, (0,), 1.0), (16, (0, 8), 2.0)):
        sums = [changes_between(strata, spreads, kurtoses, length, start) for start in starts]
        changes, excess, error = (sum(each) for each in zip(*sums, strict=True))
        error *= 1.4 if len(starts) > 1 else 1.0
        quiet = len(starts) * 10 / length
        found.append(length * max(excess - deviations * math.sqrt(error), 0) / (2 * (changes + quiet)))
    short, long = max(found[:2]), found[2]
    return max(short, long + 1.5 * (long - short))


def changes_between(
    strata: Sequence[Counts], spreads: Sequence[float], kurtoses: Sequence[float], length: int, start: int
) -> tuple[int, float, float]:
    """How many, their excess, and its variance if requests are independent. A block before `start` is shorter."""
    stable, canary = [counts.stable for counts in strata], [counts.canary for counts in strata]
    ends = range(start or length, len(stable) + 1, length)
    blocks = [
        (*(pooled(arm[max(end - length, 0) : end]) for arm in (stable, canary)), spreads[end - 1], kurtoses[end - 1])
        for end in ends
    ]
    excess = error = 0.0
    changes = 0
    for (before, canary_before, _, _), (block, canary_block, v, kurtosis) in itertools.pairwise(blocks):
        if v > 0:
            widths = 1 / before.n + 1 / block.n
            expected = widths + max(excess, 0) / (changes + 10)
            step = block.total / block.n - before.total / before.n
            change = step**2 / v
            of_canary = canary_block.total / canary_block.n - canary_before.total / canary_before.n
            if change > 16 * expected and 0.5 <= of_canary / step <= 2:
                change = expected
            # a surprise counts at most eight times what was expected
            excess += min(change, 8 * expected) - widths
            error += widths**2 * (3 + 0.375 * kurtosis * widths)
            changes += 1
    return changes, excess, error


def rate_variance(bad: float, n: float) -> float:
    return (bad + 0.5) / (n + 1) * (1 - (bad + 0.5) / (n + 1))


def rate_correlations(strata: Sequence[Counts]) -> list[float]:
    """As known before each interval."""
    arms = [counts.stable for counts in strata]
    spreads = []
    for k in range(len(arms)):  # by stable's recent rate, the interval itself included
        recent = sum(0.95 ** (k - j) * arms[j].n for j in range(k + 1))
        bad = sum(0.95 ** (k - j) * arms[j].total for j in range(k + 1))
        spreads.append(rate_variance(bad, recent))
    return [correlation(strata[:k], spreads[:k], [1 / v for v in spreads[:k]]) for k in range(len(arms))]


def weight_of_start(after: int) -> float:
    """0.8 on the first interval; of the rest 1/sqrt(b) - 1/sqrt(b+1) on the b-th later start, which are after 1, 2, 4,
    8, 16, 24, ... intervals."""
    if after == 0:
        return 0.8
    if after in (1, 2, 4):
        b = {1: 1, 2: 2, 4: 3}[after]
    elif after % 8 == 0:
        b = 3 + after // 8
    else:
        return 0.0
    return 0.2 * (1 / math.sqrt(b) - 1 / math.sqrt(b + 1))


def over_starts(intervals: Sequence[Sequence[float]], weights: Sequence[float]) -> float:
    """ln of the mixture over starts and alternatives, and what has not started.

    `intervals` holds ln e of each interval per alternative.
    """
    starts = [weight_of_start(t) for t in range(len(intervals))]
    total = 1 - sum(starts)
    for alternative, weight in enumerate(weights):
        total += weight * sum(
            w * math.exp(sum(gains[alternative] for gains in intervals[k:])) for k, w in enumerate(starts)
        )
    return math.log(total)


def log_worse(multiple: float, rate: float, counts: Counts) -> float:
    """ln e of an interval against "at most 1.1 times stable's rate, or at most 0.5 %", from the likelihoods.

    The bet is that of two arms, at a stable rate of no less than 0.5 %/1.1. What stable adds to it is at most what it
    takes for e^C, which is what the canary adds, to have a mean of 1 where its rate is 0.5 %.
    """
    c, s = counts.canary, counts.stable
    null_s = max(rate, 0.005 / 1.1)
    null_c = 1.1 * null_s
    a, b = c.n * 1.1 / (1 - null_c), s.n / (1 - null_s)
    other_s = null_s * (a + b) / (a * multiple + b)
    other_c = 1.1 * multiple * other_s
    bad, good = other_c / null_c, (1 - other_c) / (1 - null_c)
    of_canary = c.total * math.log(bad) + (c.n - c.total) * math.log(good)
    of_stable = s.total * math.log(other_s / null_s) + (s.n - s.total) * math.log((1 - other_s) / (1 - null_s))
    return of_canary + min(of_stable, -c.n * math.log(0.995 * good + 0.005 * bad))


def mean_of(logs: Sequence[float]) -> float:
    """ln of the mean of e^x."""
    return math.log(sum(math.exp(x) for x in logs) / len(logs))


# ---------------------------------------------------------------- rates


LASTING = [counts for counts in FLUCTUATING for _ in range(4)]
"""The same, each for four intervals."""


LONG = [counts for counts in [*FLUCTUATING, *FLUCTUATING] for _ in range(12)]


@pytest.mark.parametrize(
    ("strata", "least"),
    [(FLUCTUATING, 0.0005), (LASTING, 0.001), (LONG, 0.003)],
    ids=["short", "lasting", "long"],
)
def test_where_stable_fluctuates_every_bet_of_a_rate_is_smaller_by_that_much(
    strata: list[Counts], least: float
) -> None:
    correlations = rate_correlations(strata)
    assert correlations[-1] > least, "or this shows nothing"
    recent, recent_bad = 0.0, 0.0
    relative, absolute, effective = [], [], 0.0
    promotion = dict.fromkeys(BETTER, 0.0)
    promotable = promotable_bad = 0.0
    for counts, rho in zip(strata, correlations, strict=True):
        c, s = counts.canary, counts.stable
        both, one = 1 + 3 * rho * c.n * s.n / (c.n + s.n), 1 + 1.5 * rho * c.n
        rate = recent_bad / recent if recent else 0.0
        relative.append([log_worse(g, rate, counts) / both for g in WORSE])
        absolute.append([min(log_bound(0.05, g, c.n, c.total) / one, 2.0) for g in ODDS])
        for g in BETTER:
            promotion[g] += two_arm_bet(1.5, g, rate, c.n, s.n).log_value(counts) / both
        promotable, promotable_bad = promotable + c.n / one, promotable_bad + c.total / one
        effective += c.n / both
        recent, recent_bad = 0.95 * recent + s.n, 0.95 * recent_bad + s.total

    state = rates_after(strata)
    assert RATE.log_breach_relative(state) == pytest.approx(over_starts(relative, list(WORSE.values())), rel=CLOSE)
    assert RATE.log_breach_absolute(state) == pytest.approx(over_starts(absolute, (0.2,) * 5), rel=CLOSE)
    better = sum(weight * math.exp(promotion[g]) for g, weight in BETTER.items())
    spotless = sum(w * math.exp(log_bound(0.005, g, promotable, promotable_bad)) for g, w in SPOTLESS.items())
    assert RATE.log_promote_relative(state) == pytest.approx(math.log((better + spotless) / 2), rel=CLOSE)
    below = sum(0.25 * math.exp(log_bound(0.05, g, promotable, promotable_bad)) for g in (0.1, 0.25, 0.5, 0.8))
    assert RATE.log_promote_absolute(state, 0.05) == pytest.approx(math.log(below), rel=CLOSE)
    assert state.effective == pytest.approx(effective)


def test_intervals_that_do_not_promote_leave_no_trace_in_what_promotes() -> None:
    before = rates_after(FLUCTUATING[:2])
    after = RATE.observe(before, (FLUCTUATING[2],), promotable=False)
    assert RATE.log_promote_relative(after) == RATE.log_promote_relative(before)
    assert RATE.log_promote_absolute(after, 0.05) == RATE.log_promote_absolute(before, 0.05)
    means = means_after(COST, COSTS[:3])
    later = COST.observe(means, (COSTS[3],), promotable=False)
    assert COST.log_promote_relative(later) == COST.log_promote_relative(means)
    assert COST.log_promote_absolute(later) == COST.log_promote_absolute(means)


def test_a_step_is_passed_on_its_own_evidence_and_breached_on_all() -> None:
    before = rates_after(FLUCTUATING)
    fresh = RATE.new_step(before)
    assert replace(fresh, promotion=before.promotion, step=before.step) == before
    # half the mixture of nothing known yet: ln ((1 + 1) / 2)
    assert RATE.log_promote_relative(fresh) == pytest.approx(0, abs=1e-12)
    assert RATE.log_promote_absolute(fresh, 0.05) == pytest.approx(0, abs=1e-12)
    means = means_after(COST, COSTS)
    anew = COST.new_step(means)
    assert COST.log_promote_relative(anew) == pytest.approx(0, abs=1e-12)
    assert COST.log_promote_absolute(anew) == pytest.approx(0, abs=1e-12)
    kept = replace(anew, promotion=means.promotion, promotable=means.promotable)
    kept = replace(kept, promotable_total=means.promotable_total, promotable_spread=means.promotable_spread)
    assert kept == means


def test_what_people_read_of_stable_is_since_the_canarys_first_request() -> None:
    """Its recent rate and its spread are of all intervals."""
    rates = rates_after([Counts.of(0, 0, 500, 100), Counts.of(10, 1, 400, 8), Counts.of(0, 0, 300, 3)])
    assert (rates.stable, rates.stable_bad) == (700, 11)
    assert rates.recent == pytest.approx(0.95**2 * 500 + 0.95 * 400 + 300)
    assert rates.recent_bad == pytest.approx(0.95**2 * 100 + 0.95 * 8 + 3)
    judgement = RATE.judge(rates, LEVELS)
    assert (judgement.stable, judgement.stable_samples) == ("1.6 %", 700)
    nobody = Arm(0, 0)
    strata = [Counts(nobody, values(500, 0.009, 0.002)), Counts(values(10, 0.002, 0.002), values(400, 0.002, 0.002))]
    means = means_after(COST, [*strata, Counts(nobody, values(300, 0.002, 0.002))])
    assert (means.shown.n, means.shown.total) == pytest.approx((700, 1.4))
    assert (means.stable.n, means.stable.total) == pytest.approx((1200, 5.9))
    assert COST.judge(means, LEVELS).stable_samples == 700


def test_strata_of_an_interval_multiply_and_one_without_a_canary_says_nothing() -> None:
    young, old = Counts.of(20, 3, 30, 2), Counts.of(80, 1, 870, 7)
    alone, none = Counts.of(0, 0, 500, 400), Counts.of(0, 0, 0, 0)
    both = RATE.observe(RATE.start(), (young, old, alone, none), promotable=True)
    gains = [sum(log_worse(g, 0.0, c) for c in (young, old)) for g in WORSE]
    expected = over_starts([gains], list(WORSE.values()))
    assert both.relative.log_evidence(list(WORSE.values())) == pytest.approx(expected, abs=1e-12)
    assert (both.canary, both.canary_bad, both.stable, both.stable_bad) == (100, 4, 1400, 409)


def habits(n: float, bad: float, phase: int) -> Arm:
    """Users of unlike habits: a quarter of the groups has most of what is bad."""
    weights = [9.0 if (g + phase) % 4 == 0 else 1.0 for g in range(32)]
    return Arm(n, bad, shards=tuple((n / 32, bad * w / sum(weights)) for w in weights))


def test_users_habits_divide_what_a_rates_evidence_is_worth() -> None:
    """The verdict divides ln e by the variance ratio; so an interval's cap against the maximum is that much higher, and
    what is detectable counts as many requests fewer."""
    strata = [Counts(habits(400, 16, 0), habits(600, 24, 0))] * 3
    state = rates_after(strata)
    users = RATE.user_dispersion(state)
    ratios = [
        sum((x - n / 32 * bad / n) ** 2 for _, x in habits(n, bad, 0).shards) * 9 / (3 * n * 31 / 32) / variance
        for n, bad, variance in ((400, 16, rate_variance(48, 1200)), (600, 24, rate_variance(72, 1800)))
    ]
    assert users == pytest.approx(sum(ratios) / 2 / (1 + math.sqrt(2 / 62) / 2), rel=1e-5)
    assert users > 1.5, "or this shows nothing"
    failing = RATE.observe(state, (Counts(habits(400, 300, 0), habits(600, 24, 0)),), promotable=True)
    # nothing starts after three intervals
    assert failing.absolute.logs == pytest.approx([log + 2 * users for log in state.absolute.logs])

    alone = RateTest(SIGNALS["ErrorRate"], "d", maximum=0.05)
    state = rates_after(strata, alone)
    n = 1200 / alone.user_dispersion(state)
    expected = min((math.log(20 / 0.8 * 5) / n + math.log(1 + 0.05 * (g - 1))) / math.log(g) for g in ODDS)
    assert alone.detectable(state, 0.05) == pytest.approx(expected)


def test_without_stable_only_the_bounds_say_what_is_detectable() -> None:
    state = rates_after([Counts.of(500, 5, 0, 0)] * 4)
    expected = min((math.log(20 / 0.8 * 5) / 2000 + math.log(1 + 0.05 * (g - 1))) / math.log(g) for g in ODDS)
    assert RATE.detectable(state, 0.05) == pytest.approx(expected)


def test_stables_excess_over_a_maximum_is_suspicion_and_fades_without_requests() -> None:
    """The mean of Page's CUSUMs of ln e-values for the odds 1.25, 1.5 and 5, each never below 0 and at most ln 1000."""

    def gains(n: float, bad: float) -> list[float]:
        return [bad * math.log(g) - n * math.log(1 + 0.05 * (g - 1)) for g in (1.25, 1.5, 5.0)]

    state = rates_after([Counts.of(10, 0, 90, 0)])
    assert state.suspicion == 0
    state = RATE.observe(state, (Counts.of(10, 0, 90, 8),), promotable=True)
    first = [max(x, 0) for x in gains(90, 8)]
    assert state.suspicion == pytest.approx(mean_of(first), rel=CLOSE)
    state = RATE.observe(state, (Counts.of(10, 0, 100, 5),), promotable=True)
    second = [max(x + gain, 0) for x, gain in zip(first, gains(100, 5), strict=True)]
    assert 0 in second, "or this does not show the least"
    assert max(second) > 0
    assert state.suspicion == pytest.approx(mean_of(second), rel=CLOSE)
    state = RATE.observe(state, (Counts.of(10, 0, 0, 0),), promotable=True)
    assert state.suspicion == pytest.approx(mean_of([0.8 * x for x in second]), rel=CLOSE)
    few = RATE.observe(RATE.start(), (Counts.of(10, 0, 10, 4),), promotable=True)
    assert few.suspicion == pytest.approx(mean_of([max(x, 0) for x in gains(10, 4)]), rel=CLOSE)
    assert few.suspicion > math.log(3)
    assert RATE.log_breach_absolute(few) == -math.inf, "where stable is suspect the canary is not"
    state = RATE.observe(state, (Counts.of(10, 0, 1000, 400),), promotable=True)
    assert state.suspicion == pytest.approx(math.log(1000))


def test_no_failure_at_all_and_nothing_but_failures_are_alternatives_too() -> None:
    """Where the outer ones weigh most: 0.01 times the negligible rate's odds, and 100 times the maximum's."""
    spotless_counts = Counts.of(300, 0, 700, 0)
    spotless = rates_after([spotless_counts])
    better = sum(w * math.exp(two_arm_bet(1.5, g, 0.0, 300, 700).log_value(spotless_counts)) for g, w in BETTER.items())
    below = sum(w * math.exp(log_bound(0.005, g, 300, 0)) for g, w in SPOTLESS.items())
    assert RATE.log_promote_relative(spotless) == pytest.approx(math.log((better + below) / 2), abs=1e-9)
    failing = rates_after([Counts.of(2, 1, 998, 0)])
    gains = [min(log_bound(0.05, g, 2, 1), 2.0) for g in ODDS]
    assert RATE.log_breach_absolute(failing) == pytest.approx(over_starts([gains], (0.2,) * 5), abs=1e-9)


def test_an_outage_is_no_fluctuation_and_no_usual_rate() -> None:
    quiet = [Counts.of(100, 1, 900, 9)] * 3
    state = rates_after(quiet)
    down = RATE.observe(state, (Counts.of(100, 90, 900, 800),), promotable=False, outage=True)
    assert (down.recent, down.recent_bad) == (state.recent, state.recent_bad)
    again = RATE.observe(down, (Counts.of(100, 1, 900, 9),), promotable=True)
    assert again.dispersion.between_intervals() == 0
    assert (again.canary, again.stable_bad) == (500.0, 836.0)


def test_the_difference_of_two_rates_is_the_confidence_sequence_over_the_intervals() -> None:
    """Sums stratified by interval; variances of both arms; Waudby-Smith et al. (arXiv 2103.06476), tuned for 2 %."""
    steady = [Counts.of(100, 4, 900, 18)] * 60
    contrast = Contrast()
    for _ in steady:
        contrast = contrast.add(100, 4, 900, 18)
    v_c, v_s = rate_variance(240, 6000), rate_variance(1080, 54_000)
    weight = 60 * 90.0
    variance = 60 * (90**2 / 100 * v_c + 90**2 / 900 * v_s)
    rho = 0.02 * 500 / (2 * math.log(10) + math.log(1 + 2 * math.log(10)))
    width = half_width(variance, rho, 0.05) / weight
    assert contrast.weight == pytest.approx(weight)
    text = RATE.judge(rates_after(steady), LEVELS).difference
    assert text == f"+{100 * (0.02 - width):.2g} to +{100 * (0.02 + width):.2g} points"


@pytest.mark.parametrize("maximum", [None, 0.022, 0.05])
@pytest.mark.parametrize("strata", [FLUCTUATING * 4, [Counts.of(50, 1, 950, 19)] * 60], ids=["uneven", "steady"])
def test_the_detectable_rate_is_where_the_expected_evidence_crosses(
    strata: list[Counts], maximum: float | None
) -> None:
    """Put back into the e-values of the pooled intervals, it yields what the level asks for, and exactly that."""
    test = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10, maximum=maximum)
    state = rates_after(strata, test)
    share = state.effective / state.canary
    n_c, n_s, e_s = state.canary * share, state.stable * share, state.stable_bad * share

    def relative(rate: float) -> float:
        at = Counts.of(n_c, rate * n_c, n_s, e_s)
        return max(math.log(0.8 * w) + log_worse(g, e_s / n_s, at) for g, w in WORSE.items())

    def above(bound: float, rate: float) -> float:
        return max(math.log(0.8 * 0.2) + log_bound(bound, g, n_c, rate * n_c) for g in ODDS)

    def crosses(rate: float) -> bool:
        versus = relative(rate) >= -math.log(0.05)
        return versus or (maximum is not None and above(maximum, rate) >= -math.log(0.05))

    found = test.detectable(state, 0.05)
    assert 0 < found < 1
    assert crosses(found * (1 + 1e-9))
    assert not crosses(found * (1 - 1e-9))


def test_nothing_is_detectable_without_requests_nor_by_a_bound_alone_in_few_intervals() -> None:
    assert RATE.detectable(RATE.start(), 0.05) == math.inf
    alone = RateTest(SIGNALS["ErrorRate"], "d", maximum=0.05)
    # at most ln e = 2 an interval: ln 20 + ln(1/0.8) = 3.22 takes two
    assert alone.detectable(rates_after([Counts.of(500, 2, 500, 2)], alone), 0.05) == math.inf
    assert alone.detectable(rates_after([Counts.of(500, 2, 500, 2)] * 2, alone), 0.05) < 1
    suspended = rates_after([Counts.of(500, 100, 500, 100)] * 3, alone)
    assert alone.detectable(suspended, 0.05) == math.inf


# ---------------------------------------------------------------- means


def pooled(arms: Sequence[Arm]) -> Arm:
    return Arm(sum(a.n for a in arms), sum(a.total for a in arms), sum(a.total_squared for a in arms))


def known_before(strata: Sequence[Counts]) -> list[tuple[float, float] | None]:
    return [
        variances(pooled([c.canary for c in strata[:k]]), pooled([c.stable for c in strata[:k]]))
        for k in range(len(strata))
    ]


def mean_correlations(strata: Sequence[Counts]) -> list[float]:
    spreads = [v[1] if v else 0.0 for v in known_before(strata)]
    return [correlation(strata[:k], spreads[:k], [10.0] * k) for k in range(len(strata))]


LASTING_COSTS = [counts for counts in COSTS for _ in range(4)]


@pytest.mark.parametrize(
    ("test", "strata"),
    [(COST, COSTS), (COST, LASTING_COSTS), (SCORE, SCORES)],
    ids=["more is worse", "lasting", "less is worse"],
)
def test_where_stable_fluctuates_every_bet_of_a_mean_is_smaller_by_that_much(
    test: MeanTest, strata: list[Counts]
) -> None:
    correlations, known = mean_correlations(strata), known_before(strata)
    assert correlations[-1] > 0.001, "or this shows nothing"
    first = known[1]
    assert first is not None
    scale = math.sqrt((first[0] + first[1]) / 2)
    assert test.margin is not None
    assert test.rollback is not None
    assert test.bound is not None
    sign, theta = (1, 1.05) if test.more_is_worse else (-1, 1.0)
    shift = 0.0 if test.more_is_worse else test.rollback
    least_theta = 1.1 if test.more_is_worse else 1.0
    least_shift = 0.0 if test.more_is_worse else test.margin
    relative, absolute, effective = [], [], 0.0
    total = spread = within = within_spread = 0.0
    for counts, rho, v in zip(strata, correlations, known, strict=True):
        if v is None:
            continue
        c, s = counts.canary, counts.stable
        w = c.n * s.n / (c.n + s.n)
        both, one = 1 + 3 * rho * w, 1 + 1.5 * rho * c.n
        mean_c, mean_s = c.total / c.n, s.total / s.n
        excess = w * (sign * (mean_c - theta * mean_s) - shift)
        variance = w * w * (v[0] / c.n + theta**2 * v[1] / s.n)
        bets = [d / scale for d in EFFECTS]
        relative.append([min((bet * excess - bet**2 * variance / 2) / both, 2.0) for bet in bets])
        beyond = sign * (c.total - test.bound * c.n)
        absolute.append([min((bet * beyond - bet**2 * v[0] * c.n / 2) / one, 2.0) for bet in bets])
        total += w * (sign * (mean_c - least_theta * mean_s) - least_shift)
        wide = max(v)  # a tail that has not shown yet makes a mean look low and certain
        spread += both * w * w * wide * (1 / c.n + least_theta**2 / s.n)
        within, within_spread = within - beyond, within_spread + one * wide * c.n
        effective += c.n / both

    state = means_after(test, strata)
    rho = 500 / (2 * math.log(10) + math.log(1 + 2 * math.log(10))) * scale**2
    assert state.scale == pytest.approx(scale)
    assert state.relative.log_evidence((1 / 3,) * 3) == pytest.approx(over_starts(relative, (1 / 3,) * 3), rel=CLOSE)
    assert state.absolute.log_evidence((1 / 3,) * 3) == pytest.approx(over_starts(absolute, (1 / 3,) * 3), rel=CLOSE)
    assert test.log_promote_relative(state) == pytest.approx(log_one_sided(-total, spread, rho), rel=CLOSE)
    assert test.log_promote_absolute(state) == pytest.approx(log_one_sided(within, within_spread, rho), rel=CLOSE)
    assert state.effective == pytest.approx(effective)


def test_a_variance_is_shrunk_to_both_arms_by_twenty_samples_and_never_below_a_hundredth_of_the_mean() -> None:
    """Sums of squares about each arm's mean: 10 * 2^2 and 90 * 1^2; one sample of freedom lost in each arm."""
    own = (10 * 4.0, 90 * 1.0)
    both = sum(own) / 98
    found = variances(values(10, 5.0, 2.0), values(90, 6.0, 1.0))
    assert found == pytest.approx(((own[0] + 20 * both) / 29, (own[1] + 20 * both) / 109))
    assert variances(values(20, 5.0, 2.0), values(29, 6.0, 1.0)) is None
    assert variances(values(20, 5.0, 2.0), values(30, 6.0, 1.0)) is not None
    least = (0.01 * (50 * 3.0 + 150 * 7.0) / 200) ** 2
    assert variances(values(50, 3.0, 0.0), values(150, 7.0, 0.0)) == pytest.approx((least, least))
    assert variances(Arm(50, 10.0), values(50, 1.0, 1.0)) is None, "a sum whose squares nobody exports has no spread"


@pytest.mark.parametrize(
    ("test", "strata"),
    [
        (COST, COSTS * 3),
        (MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5), COSTS * 3),
        (MeanTest(SIGNALS["CostPerRequest"], "d", bound=0.004), COSTS * 3),
        (SCORE, SCORES * 3),
        (MeanTest(SIGNALS["JudgeScore"], "d", margin=0.1, rollback=0.02, more_is_worse=False, gate=50), SCORES * 3),
        (MeanTest(SIGNALS["JudgeScore"], "d", bound=3.5, more_is_worse=False, gate=50), SCORES * 3),
    ],
    ids=["both", "versus stable", "a maximum", "both falling", "falling versus stable", "a minimum"],
)
def test_the_detectable_mean_is_where_the_expected_evidence_crosses(test: MeanTest, strata: list[Counts]) -> None:
    state = means_after(test, strata)
    known = variances(state.canary, state.stable)
    assert known is not None
    sums, sign = state.contrast, 1 if test.more_is_worse else -1
    theta = 1 + (test.rollback or 0) / 100 if test.more_is_worse else 1.0
    shift = 0.0 if test.more_is_worse else test.rollback or 0.0

    def evidence(excess: float, variance: float) -> float:
        bets = [d / state.scale for d in EFFECTS]
        return max(math.log(0.8 / 3) + bet * excess - bet**2 * variance / 2 for bet in bets)

    def crosses(mean: float) -> bool:
        needed, found = -math.log(0.05), []
        if test.rollback is not None:
            excess = sign * (mean * sums.weight - theta * sums.stable) - shift * sums.weight
            found.append(evidence(excess, sums.canary_spread + theta**2 * sums.stable_spread))
        if test.bound is not None:
            n = state.canary.n
            found.append(evidence(sign * (mean - test.bound) * n, known[0] * n))
        return max(found) >= needed

    found = test.detectable(state, 0.05)
    assert math.isfinite(found)
    assert crosses(found * (1 + sign * 1e-9))
    assert not crosses(found * (1 - sign * 1e-9))


def test_no_mean_is_detectable_before_there_is_a_scale_or_where_the_bound_is_suspended() -> None:
    assert COST.detectable(COST.start(), 0.05) == math.inf
    alone = MeanTest(SIGNALS["CostPerRequest"], "d", bound=0.004)
    above = [Counts(values(500, 0.006, 0.002), values(500, 0.006, 0.002))] * 5
    state = means_after(alone, above)
    assert state.suspicion > math.log(3)
    assert alone.detectable(state, 0.05) == math.inf
    # at most ln e = 2 an interval: ln 20 + ln(3/0.8) = 4.3 takes three, after the one that only teaches
    below = [Counts(values(500, 0.002, 0.002), values(500, 0.002, 0.002))]
    for test in (alone, MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5)):
        assert test.detectable(means_after(test, below * 3), 0.05) == math.inf
        assert test.detectable(means_after(test, below * 4), 0.05) < 0.01


def test_an_outage_is_no_fluctuation_of_a_mean() -> None:
    quiet = [Counts(values(100, 0.002, 0.002), values(300, 0.002, 0.002))]
    state = means_after(COST, quiet * 3)
    down = COST.observe(state, (Counts(values(10, 0.2, 0.01), values(30, 0.2, 0.01)),), promotable=False, outage=True)
    for _ in range(3):
        down = COST.observe(down, quiet, promotable=True)
    assert down.dispersion.between_intervals() == 0


def test_stables_mean_above_the_bound_is_suspicion() -> None:
    """The mean over the effects 0.03 and 0.12 of e to lambda S - lambda^2 V / 2, each at least 1."""
    state = means_after(COST, COSTS[:1])
    known = variances(state.canary, state.stable)
    assert known is not None
    bets = [d / math.sqrt(sum(known) / 2) for d in (0.03, 0.12)]
    found = []
    for mean in (0.0045, 0.00405, 0.0039):
        after = COST.observe(state, (Counts(values(10, 0.002, 0.002), values(100, mean, 0.002)),), promotable=True)
        logs = [max(bet * 100 * (mean - 0.004) - bet**2 * known[1] * 100 / 2, 0) for bet in bets]
        assert after.suspicion == pytest.approx(mean_of(logs), rel=CLOSE)
        found.append(after.suspicion)
    assert found == sorted(found, reverse=True)
    assert found[1] > 0
    assert found[2] == 0


def test_the_difference_of_two_means_is_the_confidence_sequence_over_the_intervals() -> None:
    test = MeanTest(SIGNALS["JudgeScore"], "d", margin=0.1, rollback=0.02, more_is_worse=False, gate=50)
    steady = [Counts(values(100, 4.5, 0.8), values(300, 4.0, 0.8))] * 40
    state = means_after(test, steady)
    known = known_before(steady)
    variance = sum(75**2 * (v[0] / 100 + v[1] / 300) for v in known if v)
    rho = 500 / (2 * math.log(10) + math.log(1 + 2 * math.log(10))) * state.scale**2
    width = half_width(variance, rho, 0.05) / (39 * 75)
    low, high = 0.5 - width, 0.5 + width
    assert test.judge(state, LEVELS).difference == (
        f"+{low:.3f} to +{high:.3f} (+{100 * low / 4:.2g} % to +{100 * high / 4:.2g} % of stable)"
    )


# ---------------------------------------------------------------- verdicts


def test_a_breach_is_where_the_mean_of_the_alternatives_crosses_the_share_of_the_level() -> None:
    """One bound has the whole level, each of two has half of it; passing has its own level."""
    worse = [Counts.of(100, 6, 900, 12)] * 4
    rate = RateTest(SIGNALS["ErrorRate"], "d", margin_percent=50, rollback_percent=10)
    rates = rates_after(worse, rate)
    dear = [Counts(values(100, 0.0032, 0.002), values(300, 0.002, 0.002))] * 4
    mean = MeanTest(SIGNALS["CostPerRequest"], "d", margin=10, rollback=5)
    means = means_after(mean, dear)
    assert rate.user_dispersion(rates) == mean.user_dispersion(means) == 1
    ratio = rates.relative.log_evidence(list(WORSE.values()))
    third = means.relative.log_evidence((1 / 3,) * 3)
    cases = [(rate, rates, ratio, 1), (mean, means, third, 1)]
    both_rates, both_means = rates_after(worse, RATE), means_after(COST, dear)
    cases += [(RATE, both_rates, ratio, 2), (COST, both_means, third, 2)]
    for test, state, evidence, bounds in cases:
        edge = bounds * math.exp(-evidence)
        assert edge < 0.5, "or this shows nothing"
        assert test.breached(state, Levels(edge * 1.000001, 0.05))
        assert test.judge(state, Levels(edge * 1.000001, 0.05)).breach
        assert not test.breached(state, Levels(edge * 0.999999, 0.05))


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "field",
    ["canary", "recent_bad", "effective", "cusums", *StepCounts._fields, *(f"pending.{f}" for f in Pending._fields)],
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_rates_checkpoint_that_is_none_is_refused(field: str, value: float) -> None:
    state = rates_after(FLUCTUATING)
    changes: dict[str, object] = {field: value}
    if field == "cusums":
        changes = {"cusums": (0.0, value, 0.0)}
    elif field.startswith("pending."):
        changes = {"pending": state.pending._replace(**{field.removeprefix("pending."): value})}
    elif field in StepCounts._fields and field != "canary":
        changes = {"step": state.step._replace(**{field: value})}
    text = RATE.encode(replace(state, **changes))
    with pytest.raises(ValueError, match=r"damaged checkpoint .*: its evidence restarts"):
        RATE.decode(text)


@pytest.mark.parametrize("field", ["scale", "effective", "cusums", "promotable", "promotable_spread"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_means_checkpoint_that_is_none_is_refused(field: str, value: float) -> None:
    change = (value, 0.0) if field == "cusums" else value
    text = COST.encode(replace(means_after(COST, COSTS), **{field: change}))
    with pytest.raises(ValueError, match=r"damaged checkpoint .*: its evidence restarts"):
        COST.decode(text)


def test_evidence_against_passing_may_be_negative_but_not_infinite() -> None:
    state = replace(rates_after(FLUCTUATING), promotion=(-3.0, -2.0, 1.0, -math.inf))
    with pytest.raises(ValueError, match="damaged checkpoint"):
        RATE.decode(RATE.encode(state))
    assert RATE.decode(RATE.encode(replace(state, promotion=(-3.0, -2.0, 1.0, -9.0)))).promotion[3] == -9.0
