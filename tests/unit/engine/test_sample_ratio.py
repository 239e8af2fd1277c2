"""Sample-ratio mismatch: what holds, what does not, and what people read."""

import random

import pytest

from promptrollout.engine.dispersion import SHARDS
from promptrollout.engine.evidence import Arm, Counts
from promptrollout.engine.sample_ratio import SampleRatio


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
    assert len(text) <= 1024
    with pytest.raises(ValueError, match="its evidence restarts"):
        SampleRatio.decode(text[:-8])
