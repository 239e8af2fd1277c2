"""Sample-ratio mismatch: what holds, what does not, and what people read."""

import math
import random
import statistics

import pytest

from promptrollout.engine.objectives.sample_ratio import LEAST_OFF, LEAST_OFF_OF_USERS, SampleRatio
from promptrollout.engine.statistics.dispersion import SHARDS
from promptrollout.engine.statistics.evidence import Arm, Counts


def users(rng: random.Random, count: int, weight: float) -> list[tuple[int, bool, float]]:
    """Shard, whether on the canary, and requests per interval, by Zipf's law."""
    shares = [(rank + 1) ** -0.8 for rank in range(count)]
    rng.shuffle(shares)
    return [(rng.randrange(SHARDS), rng.random() < weight, share) for share in shares]


def interval(rng: random.Random, people: list[tuple[int, bool, float]], lost: float = 0.0) -> Counts:
    arms = {True: [0.0] * SHARDS, False: [0.0] * SHARDS}
    for shard, canary, share in people:
        requests = int(8 * share) + (rng.random() < 8 * share % 1)
        arms[canary][shard] += sum(rng.random() >= lost for _ in range(requests)) if canary else requests
    canary, stable = (Arm(sum(n), 0.0, shards=tuple((x, 0.0) for x in n)) for n in (arms[True], arms[False]))
    return Counts(canary, stable)


def observed(seed: int, *, count: int = 2000, weight: float = 0.25, lost: float = 0.0, times: int = 20) -> SampleRatio:
    rng = random.Random(seed)
    people = users(rng, count, weight)
    seen = SampleRatio()
    for _ in range(times):
        seen = seen.observe([interval(rng, people, lost)], weight)
    return seen


@pytest.mark.parametrize("count", [200, 2000])
def test_sticky_users_of_unequal_diligence_are_no_mismatch(count: int) -> None:
    assert sum(observed(seed, count=count).mismatch for seed in range(40)) == 0


def test_lost_requests_of_one_arm_are_one_and_are_said() -> None:
    seen = observed(1, lost=0.8)
    assert seen.mismatch
    judgement = seen.judge()
    assert not judgement.non_inferior
    assert not judgement.breach
    assert "and should get 25 %" in judgement.message
    assert "the arms cannot be compared" in judgement.message


def of_shards(canary: list[float], stable: list[float]) -> Counts:
    return Counts(*(Arm(sum(n), 0.0, shards=tuple((x, 0.0) for x in n)) for n in (canary, stable)))


def test_the_deviation_is_in_standard_errors_of_the_jackknife_over_shards() -> None:
    """Surplus by shard (1 - w) n_c - w n_s; the variance of a sum of 32 is 32 times that of one, with 31 below."""
    canary, stable = [30.0 + 5 * (g % 3) for g in range(SHARDS)], [70.0 + 4 * (g % 5) for g in range(SHARDS)]
    surplus = [0.75 * c - 0.25 * s for c, s in zip(canary, stable, strict=True)]
    error = math.sqrt(SHARDS * statistics.variance(surplus))
    seen = SampleRatio().observe([of_shards(canary, stable)], 0.25)
    assert seen.deviation() == pytest.approx(sum(surplus) / error, rel=1e-5)
    assert (seen.canary, seen.stable) == (sum(canary), sum(stable))
    assert seen.expected == pytest.approx(0.25 * (sum(canary) + sum(stable)))


def test_every_shard_off_by_the_same_is_as_certain_as_can_be() -> None:
    off = SampleRatio().observe([of_shards([2.0] * SHARDS, [18.0] * SHARDS)], 0.25)
    assert off.deviation() == math.inf
    assert off.mismatch
    right = SampleRatio().observe([of_shards([5.0] * SHARDS, [15.0] * SHARDS)], 0.25)
    assert right.deviation() == 0
    assert right.judge().non_inferior


@pytest.mark.parametrize(
    ("least_off", "canary", "harmful"),
    [
        (LEAST_OFF, 24.49, True),
        (LEAST_OFF, 24.51, False),
        (LEAST_OFF, 25.49, False),
        (LEAST_OFF, 25.51, True),
        (LEAST_OFF_OF_USERS, 21.2, True),
        (LEAST_OFF_OF_USERS, 21.4, False),
        (LEAST_OFF_OF_USERS, 28.6, False),
        (LEAST_OFF_OF_USERS, 28.9, True),
    ],
)
def test_two_percent_off_harm_no_comparison_however_certain_and_fifteen_of_users_who_stay(
    least_off: float, canary: float, harmful: bool
) -> None:
    seen = SampleRatio(least_off=least_off).observe([of_shards([canary] * SHARDS, [100 - canary] * SHARDS)], 0.25)
    assert seen.deviation() > 4
    assert seen.mismatch is harmful


@pytest.mark.parametrize(("surplus", "harmful"), [(3.99, False), (4.01, True)])
def test_less_than_four_standard_errors_are_chance(surplus: float, harmful: bool) -> None:
    """Half of the shards have a surplus of 1 + d and half of 1 - d: their total is 32, its standard error given."""
    d = math.sqrt(31) / surplus
    canary = [10.0 + (1 + d if g % 2 else 1 - d) / 0.75 for g in range(SHARDS)]
    seen = SampleRatio(least_off=LEAST_OFF).observe([of_shards(canary, [30.0] * SHARDS)], 0.25)
    assert seen.deviation() == pytest.approx(surplus, rel=1e-4)
    assert seen.mismatch is harmful


def test_an_interval_of_nothing_usable_is_left_out_and_later_ones_are_not() -> None:
    good = of_shards([5.0] * SHARDS, [15.0] * SHARDS)
    broken = Counts(Arm(math.nan, 0.0, shards=good.canary.shards), good.stable)
    unknown = Counts(good.canary, Arm(480.0, 0.0))
    assert SampleRatio().observe([broken, unknown, good], 0.25) == SampleRatio().observe([good], 0.25)


@pytest.mark.parametrize(("shards", "known"), [(9, False), (10, True)])
def test_ten_shards_with_requests_are_needed(shards: int, known: bool) -> None:
    canary = [9.0 + g if g < shards else 0.0 for g in range(SHARDS)]
    seen = SampleRatio().observe([of_shards(canary, [0.0] * SHARDS)], 0.25)
    assert (seen.deviation() > 0) is known


def test_few_shards_say_nothing() -> None:
    shards = [(9.0, 0.0)] * 5 + [(0.0, 0.0)] * (SHARDS - 5)
    none = [(0.0, 0.0)] * SHARDS
    counts = Counts(Arm(45, 0, shards=tuple(shards)), Arm(0, 0, shards=tuple(none)))
    assert not SampleRatio().observe([counts], 0.1).mismatch


def test_without_shards_it_is_not_measured() -> None:
    seen = SampleRatio().observe([Counts.of(100, 0, 100, 0)], 0.01)
    assert seen == SampleRatio()
    assert seen.judge().message == "not measured yet"


def test_it_starts_again_from_its_text_to_the_last_bit() -> None:
    seen = observed(4, times=3)
    text = seen.encode()
    assert SampleRatio.decode(text) == seen
    assert len(text) <= 1280
    with pytest.raises(ValueError, match="its evidence restarts"):
        SampleRatio.decode(text[:-8])
