"""Counts of both arms: what can be used, and costs as if the provider's cache were as warm for both."""

import math

import pytest

from promptrollout.engine.statistics.evidence import Arm, Counts


@pytest.mark.parametrize("arm", [Arm(math.nan, 0), Arm(1, math.inf), Arm(-1, 0), Arm(0, 1), Arm(1, 1, -1)])
def test_what_cannot_be_a_count_is_not_usable(arm: Arm) -> None:
    assert not arm.is_usable
    assert Arm(1, 1, 1).is_usable
    assert Arm(0, 0).is_usable


def cost(requests: int, hits: float) -> Arm:
    """3,000 tokens in at $1 a million, a tenth of it from the cache, and 300 out at $4 a million."""
    input_usd, output_usd = 3_000e-6, 300 * 4e-6
    one = input_usd * (1 - 0.9 * hits) + output_usd
    total_input = requests * input_usd
    return Arm(requests, requests * one, requests * one**2, input_usd=total_input, saved_usd=total_input * 0.9 * hits)


def test_a_cold_cache_is_not_the_prompts_fault() -> None:
    counts = Counts(cost(100, hits=0.2), cost(900, hits=0.9))
    assert counts.canary.total / 100 > 1.5 * counts.stable.total / 900
    fair = counts.at_shared_cache()
    assert fair.canary.total / 100 == pytest.approx(fair.stable.total / 900)
    assert fair.canary.total_squared / fair.canary.total**2 == pytest.approx(0.01)
    assert fair.stable == counts.stable


def test_a_dearer_prompt_is_dearer_at_any_cache() -> None:
    longer = Arm(100, 0.9, 0.0081, input_usd=0.6, saved_usd=0.1)
    fair = Counts(longer, cost(900, hits=0.9)).at_shared_cache()
    assert fair.canary.total == pytest.approx(0.9 + 0.1 - 0.6 * 0.81)


def test_without_the_parts_costs_stay_as_billed() -> None:
    counts = Counts(Arm(100, 1, 1), Arm(900, 9, 9))
    assert counts.at_shared_cache() == counts
    spotless = Counts(Arm(0, 0), cost(900, hits=0.9))
    assert spotless.at_shared_cache() == spotless


def test_every_number_of_the_canary_is_seen_at_stables_cache() -> None:
    """Squares follow the sum in proportion, and the shards stay parts of it."""
    cold = Arm(100, 0.9, 0.0162, shards=((60.0, 0.6), (40.0, 0.3)), input_usd=0.6, saved_usd=0.1)
    fair = Counts(cold, cost(900, hits=0.9)).at_shared_cache().canary
    factor = (0.9 + 0.1 - 0.6 * 0.81) / 0.9
    assert (fair.n, fair.total) == pytest.approx((100, 0.9 * factor))
    assert fair.total_squared == pytest.approx(0.0162 * factor**2)
    assert fair.shards == ((60.0, pytest.approx(0.6 * factor)), (40.0, pytest.approx(0.3 * factor)))
    assert Counts(Arm(10, 0.1, input_usd=5.0), cost(900, hits=0.9)).at_shared_cache().canary.total == 0.0


def test_without_a_canary_stable_stays_as_it_is() -> None:
    counts = Counts(cost(100, hits=0.2), cost(900, hits=0.9))
    assert counts.stable_alone() == Counts(Arm(0.0, 0.0), counts.stable)
