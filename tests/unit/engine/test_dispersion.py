"""What is learned of how much requests are alike: against variances computed by hand, and against drawn traffic."""

import math
import random
import statistics

import pytest

from promptrollout.engine.statistics.dispersion import BASELINE, LEAST_SHARDS, SHARDS, Dispersion, shard_squares
from promptrollout.engine.statistics.evidence import Arm, Counts, Shard

VARIANCE = 0.02 * 0.98


def stable_alone(n: float, bad: float) -> Counts:
    return Counts(Arm(0, 0), Arm(n, bad))


def beside_a_canary(bad: list[float], n: float = 500.0) -> Dispersion:
    """Intervals of n requests on stable, of which so many are bad, while the canary has a few."""
    seen = Dispersion()
    for each in bad:
        seen = seen.observe([Counts.of(5, 0, n, each)], VARIANCE, 50.0)
    return seen


def sharded(canary: list[Shard], stable: list[Shard]) -> Counts:
    arms = (Arm(sum(n for n, _ in arm), sum(x for _, x in arm), shards=tuple(arm)) for arm in (canary, stable))
    return Counts(*arms)


def drawn(rng: random.Random, n: int, rates: list[float]) -> list[Shard]:
    """Shards of n requests each, with rates of their own."""
    return [(n, sum(rng.random() < p for _ in range(n))) for p in rates]


# ---------------------------------------------------------------- intervals


def test_what_independent_requests_show_is_no_correlation() -> None:
    rng = random.Random(3)
    seen = Dispersion()
    for _ in range(200):
        seen = seen.observe([stable_alone(600, sum(rng.random() < 0.02 for _ in range(600)))], VARIANCE, 1 / VARIANCE)
    assert seen.between_intervals() < 0.001


@pytest.mark.parametrize("correlation", [0.01, 0.05])
def test_shocks_show_as_the_correlation_within_an_interval(correlation: float) -> None:
    rng = random.Random(5)
    size = 1 / correlation - 1
    seen = Dispersion()
    for _ in range(400):
        p = rng.betavariate(0.02 * size, 0.98 * size)
        seen = seen.observe([stable_alone(600, sum(rng.random() < p for _ in range(600)))], VARIANCE, 1 / VARIANCE)
    assert 0.6 * correlation < seen.between_intervals() < 2 * correlation


def test_it_is_the_excess_of_the_squared_change_written_out() -> None:
    """Over twice the two changes that were seen and ten that are presumed, less one standard error."""
    seen = beside_a_canary([10.0, 14.0, 5.0])
    alone = 1 / 500 + 1 / 500
    excess = ((4 / 500) ** 2 + (9 / 500) ** 2) / VARIANCE - 2 * alone
    error = 2 * alone**2 * (3 + 0.375 * 50 * alone)
    (single, *_) = seen.blocks
    assert single.changes == 2
    assert single.excess == pytest.approx(excess, rel=1e-5)
    assert seen.between_intervals() == pytest.approx(max(0, excess - math.sqrt(error)) / (2 * (2 + 10)), rel=1e-5)


@pytest.mark.parametrize(("has_users", "most"), [(False, 25), (True, 8)])
def test_a_blip_counts_at_most_so_many_times_what_was_expected(has_users: bool, most: int) -> None:
    """Before it one change was seen, whose excess is spread over that one and ten quiet ones. While the canary has
    users stable's own incident must not blind the test."""
    baseline = [10.0] * (BASELINE - 2)
    seen = Dispersion()
    for bad in (*baseline, 30.0, 400.0):  # the last two are no incident: they are too few to be out of the ordinary
        seen = seen.observe([Counts.of(5 if has_users else 0, 0, 500, bad)], 1.0, 50.0)
    alone, before = 1 / 500 + 1 / 500, -(BASELINE - 3) * 2 / 500
    first = before + (20 / 500) ** 2 - alone
    assert first < 0, "or what was expected is more than independent requests show"
    counted = min((370 / 500) ** 2, most * alone)
    assert seen.blocks[0].excess == pytest.approx(first + counted - alone, rel=1e-4)


def test_blocks_compare_the_means_of_all_their_intervals() -> None:
    """Two blocks of four: 40 and 80 bad ones of 2,000; the squared change less 1/n + 1/n', less one standard error."""
    seen = beside_a_canary([4.0, 16.0, 12.0, 8.0, 20.0, 25.0, 15.0, 20.0])
    alone = 2 / 2000
    excess = min((40 / 2000) ** 2 / VARIANCE, 8 * alone) - alone
    error = alone**2 * (3 + 0.375 * 50 * alone)
    four, sixteen, later = seen.blocks[1:]
    assert (four.intervals, four.changes, sixteen.intervals, sixteen.changes) == (0, 1, 8, 0)
    assert (later.intervals, later.changes) == (0, 0), "it begins in the middle of the other's first block"
    expected = 4 * (excess - math.sqrt(error)) / (2 * (1 + 10 / 4))
    assert seen.between_intervals() == pytest.approx(expected, rel=1e-5)


def test_long_blocks_are_compared_from_every_eighth_interval_on() -> None:
    """Five times eight intervals alike: blocks of 16 show three changes, after a first one of eight."""
    levels = [10.0, 16.0, 9.0, 14.0, 10.0]
    seen = beside_a_canary([bad for bad in levels for _ in range(8)])
    first, second = seen.blocks[2:]
    assert (first.changes, second.changes) == (1, 2)
    n = 16 * 500
    alone, short = 2 / n, 1 / n + 2 / n
    of_first = ((13 - 11.5) / 500) ** 2 / VARIANCE - alone
    of_second = (((12.5 - 10) / 500) ** 2 + ((12 - 12.5) / 500) ** 2) / VARIANCE - alone - short
    assert first.excess == pytest.approx(of_first, rel=1e-3)
    assert second.excess == pytest.approx(of_second, rel=1e-3)


@pytest.mark.parametrize("lasting", [4, 16])
def test_what_lasts_for_several_intervals_adds_more_to_sums_over_time(lasting: int) -> None:
    rng = random.Random(6)
    size = 1 / 0.01 - 1
    found = []
    for duration in (1, lasting):
        seen = Dispersion()
        for k in range(480):
            if k % duration == 0:
                p = rng.betavariate(0.02 * size, 0.98 * size)
            seen = seen.observe([stable_alone(600, sum(rng.random() < p for _ in range(600)))], VARIANCE, 1 / VARIANCE)
        found.append(seen.between_intervals())
    assert 0.005 < found[0] < 0.02
    assert found[1] > 0.3 * lasting * 0.01


def test_one_blip_is_no_habit() -> None:
    rng = random.Random(2)
    seen = Dispersion()
    for k in range(60):
        p = 0.4 if k == 30 else 0.02
        seen = seen.observe([stable_alone(600, sum(rng.random() < p for _ in range(600)))], VARIANCE, 1 / VARIANCE)
    assert 1 + 3 * seen.between_intervals() * 28.5 < 2.5


def test_slow_drift_and_an_outage_are_no_fluctuation() -> None:
    drift = Dispersion()
    for k in range(200):
        drift = drift.observe([stable_alone(600, 12 + 6 * math.sin(k / 600))], VARIANCE, 50.0)
    assert drift.between_intervals() == 0
    steady = beside_a_canary([12.0], 600)
    over = steady.interrupted().observe([Counts.of(5, 0, 600, 300)], VARIANCE, 50.0)
    assert over.between_intervals() == 0
    assert steady.observe([Counts.of(5, 0, 600, 300)], VARIANCE, 50.0).between_intervals() > 0


# ---------------------------------------------------------------- the baseline, and its incident


def after_baseline(rates: list[float], n: float = 300.0) -> Dispersion:
    """Stable alone with these rates, then one interval in which the canary has users."""
    seen = Dispersion()
    for rate in rates:
        seen = seen.observe([stable_alone(n, round(n * rate))], VARIANCE, 50.0)
    return seen.observe([Counts.of(15, 0, n, round(n * 0.02))], VARIANCE, 50.0)


@pytest.mark.parametrize("first", [0, 9, 20, 40])
def test_an_incident_of_the_baseline_says_nothing_about_the_time_after_it(first: int) -> None:
    """Twenty intervals at 30 %, wherever they are among the sixty."""
    rates = [0.3 if first <= k < first + 20 else 0.02 for k in range(BASELINE)]
    assert after_baseline(rates).between_intervals() == 0


def test_what_comes_again_and_again_is_a_habit() -> None:
    """Two incidents are not one: what is left without the longer of them still fluctuates."""
    rates = [0.3 if k in range(8, 16) or k in range(40, 52) else 0.02 for k in range(BASELINE)]
    assert after_baseline(rates).between_intervals() > 0.05


def test_shocks_of_minutes_are_known_before_the_canary_has_users() -> None:
    """Of six levels of ten intervals each none is left out: they are what is usual."""
    levels = [0.01, 0.035, 0.02, 0.005, 0.03, 0.012]
    seen = after_baseline([level for level in levels for _ in range(10)])
    assert seen.between_intervals() > 0.02
    assert sum(blocks.changes for blocks in seen.blocks[2:]) == 5


def test_a_short_baseline_is_judged_when_the_canary_gets_its_first_users() -> None:
    rates = [0.3 if 4 <= k < 8 else 0.02 for k in range(12)]
    waiting = Dispersion()
    for rate in rates:
        waiting = waiting.observe([stable_alone(300, 300 * rate)], VARIANCE, 50.0)
    assert waiting.between_intervals() == 0, "what sizes the first bet has no incident in it"
    assert Dispersion.read(waiting.singles()) == waiting
    assert after_baseline(rates).waiting == ()
    assert after_baseline(rates).between_intervals() == 0


# ---------------------------------------------------------------- users


def test_without_shards_nothing_is_known_of_users() -> None:
    seen = Dispersion().observe([Counts.of(100, 50, 900, 9)], VARIANCE, 50.0)
    assert seen.between_users(0.25, 0.01) == 1
    assert seen.requests == ()


def test_independent_requests_are_not_weighed_down() -> None:
    rng = random.Random(8)
    factors = []
    for _ in range(40):
        seen = Dispersion()
        for _ in range(5):
            counts = sharded(drawn(rng, 20, [0.05] * SHARDS), drawn(rng, 40, [0.05] * SHARDS))
            seen = seen.observe([counts], 0.0475, 20.0)
        factors.append(seen.between_users(0.0475, 0.0475))
    assert statistics.mean(factors) < 1.1


def test_users_with_habits_weigh_as_much_as_their_variance() -> None:
    """Rates of shards with variance t^2 add n t^2 to each request's variance p q, for n requests a shard."""
    rng = random.Random(9)
    found = []
    for _ in range(60):
        seen = Dispersion()
        rates = [[min(max(rng.gauss(0.1, 0.03), 0), 1) for _ in range(SHARDS)] for _ in range(2)]
        for _ in range(8):
            seen = seen.observe([sharded(drawn(rng, 50, rates[0]), drawn(rng, 50, rates[1]))], 0.09, 11.0)
        found.append(seen.between_users(0.09, 0.09))
    expected = 1 + 400 * 0.03**2 / 0.09
    error = 1 + math.sqrt(1 / (2 * (SHARDS - 1)) * 2)
    assert statistics.mean(found) * error == pytest.approx(expected, rel=0.15)


def residuals(arm: list[Shard]) -> tuple[float, float]:
    """Sum of squares about the arm's mean, by shard, and the share of its requests whose variance they hold."""
    n, bad = sum(r for r, _ in arm), sum(b for _, b in arm)
    return sum((b - bad / n * r) ** 2 for r, b in arm), n - sum(r * r for r, _ in arm) / n


def test_users_weigh_as_the_shards_residuals_over_what_independent_requests_would_leave() -> None:
    """Written out for one interval: both arms' ratios averaged, less half a standard error of 62 degrees of freedom."""
    canary: list[Shard] = [(10.0 + g % 5, 8.0 if g % 4 == 0 else 0.0) for g in range(SHARDS)]
    stable: list[Shard] = [(40.0 + g % 3, 20.0 if g % 8 == 1 else 1.0) for g in range(SHARDS)]
    seen = Dispersion().observe([sharded(canary, stable)], VARIANCE, 50.0)
    ratios = [squares / (free * v) for (squares, free), v in ((residuals(canary), 0.09), (residuals(stable), 0.05))]
    assert seen.between_users(0.09, 0.05) == pytest.approx(sum(ratios) / 2 / (1 + math.sqrt(2 / 62) / 2), rel=1e-6)
    # an arm whose variance is not known says nothing, and one estimate alone is less certain
    alone = ratios[1] / (1 + math.sqrt(2 / 31) / 2)
    assert seen.between_users(0.0, 0.05) == pytest.approx(alone, rel=1e-6)
    assert seen.between_users(0.0, 0.0) == 1
    # another interval of the same users doubles the residuals, and so quadruples their squares
    twice = seen.observe([sharded(canary, stable)], VARIANCE, 50.0)
    assert twice.between_users(0.09, 0.05) == pytest.approx(2 * seen.between_users(0.09, 0.05), rel=1e-6)
    # one without requests changes nothing
    none: list[Shard] = [(0.0, 0.0)] * SHARDS
    idle = seen.observe([sharded(none, none)], VARIANCE, 50.0)
    assert idle.between_users(0.09, 0.05) == seen.between_users(0.09, 0.05)


def test_while_shards_are_few_none_counts_for_more_than_the_tenth() -> None:
    def factor(requests: list[float]) -> float:
        canary: list[Shard] = [(n, n) for n in requests] + [(0.0, 0.0)] * (SHARDS - len(requests))
        seen = Dispersion().observe([sharded(canary, [(10.0, 0.0)] * SHARDS)], VARIANCE, 50.0)
        return seen.between_users(1e-9, 0.01)

    assert LEAST_SHARDS > 2
    assert factor([30.0, 30.0]) == pytest.approx(30)  # two users are two opinions
    assert factor([1.0] * 4) == 1  # and four requests of four users are four
    # one heavy user among many takes away what is his, and no more
    assert factor([600.0] + [10.0] * 31) == pytest.approx(910 / 320)


def test_shards_stand_for_the_squares_that_nobody_exports() -> None:
    """Of shards of one value each, the plain sample: sum of squares to within the correction for the mean."""
    values = [1.0, 4.0, 2.0, 8.0] * (SHARDS // 4)
    arm = Arm(SHARDS, sum(values), shards=tuple((1.0, x) for x in values))
    variance = (shard_squares(arm) - arm.total**2 / arm.n) / arm.n
    assert variance == pytest.approx(statistics.variance(values), rel=1e-9)
    assert shard_squares(Arm(10, 5)) == 0
    assert shard_squares(Arm(0, 0, shards=((1.0, 2.0), (1.0, 3.0)))) == 0
    # of unequal shards, some of whose requests the shards do not know: residuals over the free share, scaled up
    uneven = Arm(20, 50.0, shards=((6.0, 12.0), (3.0, 9.0), (1.0, 4.0)))
    squares = (12 - 6 * 2.5) ** 2 + (9 - 3 * 2.5) ** 2 + (4 - 2.5) ** 2
    free = 1 - (6**2 + 3**2 + 1) / 10**2
    assert shard_squares(uneven) == pytest.approx(50**2 / 20 + squares / free * 20 / 10)
    assert shard_squares(Arm(5, 10.0, shards=((5.0, 10.0),))) == pytest.approx(20)


# ---------------------------------------------------------------- checkpoints


def test_it_starts_again_from_its_numbers_to_the_last_bit() -> None:
    rng = random.Random(1)
    seen = Dispersion()
    for _ in range(3):
        counts = sharded(drawn(rng, 7, [0.3] * SHARDS), drawn(rng, 11, [0.2] * SHARDS))
        seen = seen.observe([counts], 0.2, 5.0)
    assert Dispersion.read(seen.singles()) == seen
    plain = Dispersion().observe([stable_alone(600, 12)], VARIANCE, 50.0)
    assert Dispersion.read(plain.singles()) == plain
    singles = list(seen.singles())
    for k, wrong in ((0, -1.0), (0, 1.0), (0, 0.5), (1, -1.0)):
        broken = [*singles]
        broken[k] = wrong
        with pytest.raises(ValueError, match="not the sums"):
            Dispersion.read(iter(broken))


def test_what_hits_both_arms_is_no_unrest_of_stable() -> None:
    """Else an hour that is bad for everybody would make every later bet small."""

    def after(canary_spike: float) -> float:
        dispersion = Dispersion()
        for k in range(120):
            bad = 60 <= k < 80
            strata = (Counts.of(200, 200 * (canary_spike if bad else 0.02), 400, 400 * (0.08 if bad else 0.02)),)
            dispersion = dispersion.observe(strata, 0.02, 50.0)
        return dispersion.between_intervals()

    assert after(0.02) > 0.01, "a spike of stable alone is unrest"
    assert after(0.08) < 0.0001
    assert after(0.055) < 0.0001, "the canary goes more than half of the way"
    assert after(0.045) > 0.01, "less than half"
    assert after(0.0) > 0.01, "the other way"
    assert after(0.15) > 0.01, "more than twice"
