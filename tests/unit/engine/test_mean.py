"""Means: golden numbers by direct formulas, what breaches, what passes, what is no evidence, and what people read."""

import math

import pytest

from promptrollout.engine.objectives.judgement import Judgement, Levels
from promptrollout.engine.objectives.mean import GATE, MeanTest
from promptrollout.engine.objectives.mean_state import MeanState
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.engine.statistics.contrast import EFFECTS, TUNING, half_width, log_one_sided
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.engine.statistics.moments import variances

COST = SIGNALS["CostPerRequest"]
LEVELS = Levels(breach=0.05 / 3, promote=0.05)
VERSUS_STABLE = MeanTest(COST, "d", margin=10, rollback=5)
MAXIMUM = MeanTest(COST, "d", bound=0.004)
BOTH = MeanTest(COST, "d", margin=10, rollback=5, bound=0.004)
STABLE_COST = 0.002


def arm(n: float, mean: float, cv: float = 0.9) -> Arm:
    return Arm(n, n * mean, n * mean * mean * (1 + cv * cv))


def interval(n_c: float, mean_c: float, n_s: float, mean_s: float = STABLE_COST, cv: float = 0.9) -> Counts:
    return Counts(arm(n_c, mean_c, cv), arm(n_s, mean_s, cv))


def after(test: MeanTest, counts: Counts, times: int = 1, *, promotable: bool = True) -> MeanState:
    state = test.start()
    for _ in range(times):
        state = test.observe(state, (counts,), promotable=promotable)
    return state


def judged(test: MeanTest, counts: Counts, times: int = 1) -> Judgement:
    return test.judge(after(test, counts, times), LEVELS)


# ---------------------------------------------------------------- formulas


def half_normal_mixture(total: float, variance: float, rho: float) -> float:
    """Integral of exp(lambda S - lambda^2 V / 2) over a half-normal lambda of precision rho (trapezoidal rule)."""
    steps, most = 200_000, 12 / math.sqrt(rho)
    width = most / steps
    value = 0.0
    for k in range(steps + 1):
        bet = k * width
        density = 2 * math.sqrt(rho / (2 * math.pi)) * math.exp(-rho * bet * bet / 2)
        value += density * math.exp(bet * total - bet * bet * variance / 2) * (0.5 if k in (0, steps) else 1)
    return value * width


@pytest.mark.parametrize(("total", "variance"), [(0.0, 0.0), (25.0, 100.0), (-40.0, 300.0), (3.0, 1.0)])
def test_the_one_sided_mixture_is_the_integral_it_stands_for(total: float, variance: float) -> None:
    expected = math.log(half_normal_mixture(total, variance, 80.0))
    assert log_one_sided(total, variance, 80.0) == pytest.approx(expected, abs=1e-6)


def test_far_in_the_tail_the_mixture_neither_underflows_nor_jumps() -> None:
    values = [log_one_sided(-z * math.sqrt(180.0), 100.0, 80.0) for z in (29.9, 29.99, 30.01, 30.1, 60.0, 1e6)]
    assert all(math.isfinite(x) for x in values)
    assert values == sorted(values, reverse=True)
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], abs=0.01)


def test_the_confidence_sequence_is_the_two_sided_normal_mixture() -> None:
    """At its edge exp(S^2 / (2 (V + rho))) sqrt(rho / (V + rho)) is 1/level."""
    edge = half_width(100.0, 80.0, 0.05)
    assert math.exp(edge**2 / (2 * 180)) * math.sqrt(80 / 180) == pytest.approx(20)


def test_the_breach_evidence_is_the_mixture_written_out() -> None:
    first, second, third = interval(40, 0.002, 60), interval(50, 0.003, 50), interval(30, 0.004, 70)
    state = VERSUS_STABLE.start()
    for counts in (first, second, third):
        state = VERSUS_STABLE.observe(state, (counts,), promotable=True)

    def factors(counts: Counts, known: tuple[float, float], scale: float) -> list[float]:
        n_c, n_s = counts.canary.n, counts.stable.n
        w = n_c * n_s / (n_c + n_s)
        excess = w * (counts.canary.total / n_c - 1.05 * counts.stable.total / n_s)
        variance = w * w * (known[0] / n_c + 1.05**2 * known[1] / n_s)
        return [math.exp(min(d / scale * excess - (d / scale) ** 2 * variance / 2, 2)) for d in EFFECTS]

    # the first interval only teaches; the second is weighed by the first, the third by both before it
    known = variances(first.canary, first.stable)
    assert known is not None
    scale = math.sqrt(sum(known) / 2)
    two = factors(second, known, scale)
    both = tuple(
        Arm(a.n + b.n, a.total + b.total, a.total_squared + b.total_squared)
        for a, b in ((first.canary, second.canary), (first.stable, second.stable))
    )
    known = variances(*both)
    assert known is not None
    three = factors(third, known, scale)
    later = 0.2 * (1 - 1 / math.sqrt(2))
    started = sum(0.8 * a * b + later * b for a, b in zip(two, three, strict=True)) / len(EFFECTS)
    evidence = state.relative.log_evidence((1 / 3,) * 3)
    assert evidence == pytest.approx(math.log(started + 0.2 / math.sqrt(2)), abs=1e-12)


def test_variances_are_the_sample_variances_once_there_are_many_requests() -> None:
    known = variances(arm(1e6, 0.004, 0.5), arm(1e6, 0.002, 1.5))
    assert known == pytest.approx((0.002**2, 0.003**2), rel=1e-3)


def test_a_canary_without_requests_is_given_the_variance_of_both_arms() -> None:
    known = variances(Arm(0, 0, 0), arm(1000, 0.002, 1.0))
    assert known is not None
    assert known[0] == pytest.approx(known[1], rel=0.01)


# ---------------------------------------------------------------- verdicts


def test_double_the_cost_breaches_as_soon_as_it_is_judged() -> None:
    state = VERSUS_STABLE.start()
    looks = 0
    while not (judgement := VERSUS_STABLE.judge(state, LEVELS)).breach:
        state = VERSUS_STABLE.observe(state, (interval(20, 0.004, 180),), promotable=True)
        looks += 1
    assert judgement.canary_samples <= GATE + 20
    assert judgement.message == (
        "cost per request $0.00400 against $0.00200 on stable (200 and 1,800 requests): "
        "worse by more than 5 % (promotion margin 10 %) with 98.3 % confidence"
    )


def test_an_equal_cost_passes_and_says_what_it_could_have_seen() -> None:
    judgement = judged(VERSUS_STABLE, interval(50, STABLE_COST, 50), 100)
    assert judgement.non_inferior
    assert "worse by less than 10 % (rollback above 5 %) with 95 % confidence" in judgement.message
    assert "a rise to $0.00" in judgement.message
    assert judgement.difference.startswith("-$0.000")
    assert judgement.difference.endswith("% of stable)")


def test_a_cost_at_the_margin_neither_passes_nor_breaches_when_rollback_is_above_it() -> None:
    test = MeanTest(COST, "d", margin=10, rollback=10)
    judgement = judged(test, interval(50, 1.1 * STABLE_COST, 50), 400)
    assert not judgement.breach
    assert not judgement.non_inferior
    assert "not shown to be within 10 % of stable (rollback above 10 %)" in judgement.message


def test_a_late_doubling_is_seen_although_much_was_well_before() -> None:
    state = after(VERSUS_STABLE, interval(500, STABLE_COST, 500), 100)
    looks = 0
    while not VERSUS_STABLE.judge(state, LEVELS).breach:
        state = VERSUS_STABLE.observe(state, (interval(500, 2 * STABLE_COST, 500),), promotable=True)
        looks += 1
    assert looks <= 8


def test_one_request_of_each_arm_a_minute_is_evidence_too() -> None:
    assert judged(VERSUS_STABLE, interval(1, 3 * STABLE_COST, 1), 400).breach


def test_one_interval_alone_never_breaches() -> None:
    state = after(VERSUS_STABLE, interval(500, STABLE_COST, 500), 2)
    for _ in range(2):
        state = VERSUS_STABLE.observe(state, (interval(500, 1000 * STABLE_COST, 500),), promotable=True)
        assert not VERSUS_STABLE.judge(state, LEVELS).breach


def test_the_absolute_bound_breaches_alone_and_is_suspended_while_stable_is_above_it_too() -> None:
    judgement = judged(BOTH, Counts(arm(1000, 0.005), Arm(0, 0, 0)), 5)
    assert judgement.breach
    assert "above its maximum of $0.00400" in judgement.message
    judgement = judged(BOTH, interval(500, 0.005, 500, 0.005), 20)
    assert not judgement.breach
    assert judgement.common_cause
    assert "stable was above $0.00400 lately" in judgement.message


def test_only_promotable_intervals_promote() -> None:
    state = after(VERSUS_STABLE, interval(50, STABLE_COST, 50), 100, promotable=False)
    assert not VERSUS_STABLE.judge(state, LEVELS).non_inferior


def test_constant_costs_are_judged_too() -> None:
    assert judged(VERSUS_STABLE, interval(50, STABLE_COST, 50, cv=0.0), 40).non_inferior
    assert judged(VERSUS_STABLE, interval(50, 1.2 * STABLE_COST, 50, cv=0.0), 40).breach


# ---------------------------------------------------------------- no evidence


def test_below_the_gate_nothing_is_judged() -> None:
    judgement = judged(VERSUS_STABLE, interval(10, 0.02, 90), 19)
    assert not judgement.breach
    assert "200 canary requests are needed before it is judged" in judgement.message
    higher = MeanTest(COST, "d", margin=10, rollback=5, gate=500)
    assert not judged(higher, interval(10, 0.02, 90), 49).breach
    assert judged(higher, interval(10, 0.02, 90), 50).breach


@pytest.mark.parametrize(
    "counts",
    [
        Counts(Arm(0, 0, 0), Arm(0, 0, 0)),
        Counts(Arm(0, 0, 0), arm(1000, 0.002)),
        Counts(Arm(10, math.nan, 0), arm(10, 0.002)),
        Counts(arm(10, 0.002), Arm(-1, 0, 0)),
        Counts(arm(10, 0.002), Arm(0, 5, 5)),
    ],
)
def test_no_evidence_is_no_verdict(counts: Counts) -> None:
    for test in (VERSUS_STABLE, MAXIMUM, BOTH):
        judgement = judged(test, counts, 300)
        assert not judgement.breach
        assert not judgement.non_inferior
        assert judgement.message == "cost per request: no canary requests measured yet"


def test_what_costs_nothing_says_what_to_do() -> None:
    judgement = judged(VERSUS_STABLE, interval(50, 0.0, 50, 0.0), 20)
    assert not judgement.breach
    assert not judgement.non_inferior
    assert "set prices in the ModelProvider" in judgement.message


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({}, "set max, versusStable"), ({"bound": 0.0}, "max must"), ({"margin": 5.0}, "a bound for rollback")],
)
def test_senseless_bounds_are_refused_by_name(parameters: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        MeanTest(COST, "d", **parameters)


# ---------------------------------------------------------------- numbers at their limits


@pytest.mark.parametrize("n", [1.0, 1e12])
@pytest.mark.parametrize("mean", [1e-9, 1e6])
def test_extreme_counts_and_costs_stay_finite(n: float, mean: float) -> None:
    for counts in (interval(n, mean, n, mean), interval(n, 3 * mean, 1, mean), interval(1, mean, n, 0.0)):
        state = after(BOTH, counts, 300)
        assert all(not math.isnan(x) for x in state.numbers())
        assert BOTH.decode(BOTH.encode(state)) == state
        assert len(BOTH.judge(state, LEVELS).message) <= 512


def test_a_vanishing_cost_is_no_scale() -> None:
    nearly_nothing = Counts(Arm(1e12, 0, 0), Arm(1e12, 9e-147, 8e-305))
    state = after(BOTH, nearly_nothing, 3)
    assert state.scale == 0
    state = BOTH.observe(state, (interval(1e12, 0.06, 1e12, 0.03),), promotable=True)
    state = BOTH.observe(state, (interval(1e12, 0.06, 1e12, 0.03),), promotable=True)
    assert BOTH.judge(state, LEVELS).message


def test_the_scale_is_set_once_by_earlier_intervals() -> None:
    one = after(VERSUS_STABLE, interval(50, STABLE_COST, 50))
    assert one.scale == 0
    two = after(VERSUS_STABLE, interval(50, STABLE_COST, 50), 2)
    assert two.scale == pytest.approx(0.9 * STABLE_COST, rel=0.02)
    assert VERSUS_STABLE.observe(two, (interval(50, 1.0, 50),), promotable=True).scale == two.scale
    assert round(TUNING) == 79


# ---------------------------------------------------------------- where less is worse

JUDGE = SIGNALS["JudgeScore"]
SCORES = MeanTest(JUDGE, "d", margin=0.1, rollback=0.05, bound=3.5, more_is_worse=False, gate=50)


def scores(n: int, mean: float, deviation: float = 0.8) -> Arm:
    return Arm(n, n * mean, n * (mean * mean + deviation * deviation))


def test_lower_scores_breach_and_equal_ones_pass() -> None:
    worse = judged(SCORES, Counts(scores(20, 3.8), scores(180, 4.1)), 30)
    assert worse.breach
    assert worse.message.startswith(
        "judge score 3.8 against 4.1 on stable (600 and 5,400 requests): "
        "worse by more than 0.05 (promotion margin 0.1) with"
    )
    equal = judged(SCORES, Counts(scores(200, 4.1), scores(800, 4.1)), 60)
    assert equal.non_inferior
    assert "worse by less than 0.1 (rollback above 0.05) and above its minimum of 3.5 with" in equal.message
    assert "a fall to " in equal.message
    assert "or less would have been detected" in equal.message
    better = judged(SCORES, Counts(scores(200, 4.4), scores(800, 4.1)), 60)
    assert not better.breach


def test_scores_that_fall_by_less_than_half_of_the_margin_pass_however_certain_the_fall_is() -> None:
    slightly = judged(SCORES, Counts(scores(1000, 4.06), scores(1000, 4.1)), 100)
    assert slightly.non_inferior
    assert slightly.difference.startswith("-0.")
    assert " to -0.0" in slightly.difference, "the fall itself is certain"


def test_scores_below_the_minimum_breach_alone_and_not_if_stables_are_too() -> None:
    alone = judged(SCORES, Counts(scores(100, 3.0), Arm(0, 0)), 10)
    assert alone.breach
    assert "below its minimum of 3.5" in alone.message
    both = judged(SCORES, Counts(scores(100, 3.0), scores(100, 3.0)), 30)
    assert not both.breach
    assert both.common_cause
    assert "stable was below 3.5 lately" in both.message


def test_up_and_down_mirror_each_other() -> None:
    """A score of 5 - x that must not rise is a score of x that must not fall, with the same margins in units."""
    up = MeanTest(COST, "d", bound=1.5, gate=50)
    down = MeanTest(JUDGE, "d", bound=3.5, more_is_worse=False, gate=50)
    one, other = up.start(), down.start()
    for k in range(12):
        x, y = 1.2 + 0.05 * k, 1.3
        one = up.observe(one, (Counts(scores(30, x), scores(70, y)),), promotable=True)
        other = down.observe(other, (Counts(scores(30, 5 - x), scores(70, 5 - y)),), promotable=True)
    assert other.absolute.logs == pytest.approx(one.absolute.logs, rel=1e-6)
    assert other.suspicion == pytest.approx(one.suspicion, rel=1e-6)
    assert down.log_promote_absolute(other) == pytest.approx(up.log_promote_absolute(one), rel=1e-6)


def test_strata_are_compared_separately() -> None:
    """Young answers score lower than old ones, and the canary has only young ones: no difference within an age."""
    test = MeanTest(JUDGE, "d", margin=0.1, rollback=0.0, more_is_worse=False, gate=50)
    young, old = Counts(scores(20, 3.0), scores(20, 3.0)), Counts(Arm(0, 0), scores(200, 4.5))
    state = test.start()
    for _ in range(60):
        state = test.observe(state, (young, old), promotable=True)
    assert not test.judge(state, LEVELS).breach
    assert judged(test, Counts(scores(20, 3.0), scores(220, 4.36)), 60).breach


# ---------------------------------------------------------------- ratios of sums


def test_without_squares_the_shards_give_the_spread() -> None:
    """Calls per action, from shards that differ a little, each time others: as certain as their spread allows."""
    test = MeanTest(SIGNALS["CallsPerAction"], "d", margin=10, rollback=5, gate=100)

    def actions(k: int, n: float, calls: float) -> Arm:
        shards = tuple((n / 32, n / 32 * calls * (1 + 0.3 * math.sin(7 * g * g + 3 * k))) for g in range(32))
        return Arm(n, sum(x for _, x in shards), shards=shards)

    def after_intervals(canary_calls: float) -> Judgement:
        state = test.start()
        for k in range(40):
            counts = Counts(actions(2 * k, 50, canary_calls), actions(2 * k + 1, 200, 3.0))
            state = test.observe(state, (counts,), promotable=True)
        return test.judge(state, LEVELS)

    assert after_intervals(6.0).breach
    assert after_intervals(3.0).non_inferior
    blind = judged(test, Counts(Arm(50, 300), Arm(200, 600)), 20)
    assert not blind.breach
    assert not blind.non_inferior


def test_what_every_interval_shows_is_soon_seen_though_users_are_alike() -> None:
    """The cap of an interval's evidence grows with what the verdict divides it by."""

    def habits(n: float, cost: float) -> Arm:
        shards = tuple((n / 32, n / 32 * cost * (1 + 0.5 * math.sin(7 * g * g))) for g in range(32))
        return Arm(n, sum(x for _, x in shards), 4 * n * cost * cost, shards)

    state, looks = VERSUS_STABLE.start(), 0
    while not VERSUS_STABLE.judge(state, LEVELS).breach:
        state = VERSUS_STABLE.observe(state, (Counts(habits(500, 0.006), habits(500, 0.002)),), promotable=True)
        looks += 1
        assert looks < 12
    assert VERSUS_STABLE.user_dispersion(state) > 3
