"""Heavy hitters among units: bounded, never too large, and what the operator is told of them over real HTTP."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from promptrollout.gateway.assignment.bucketing import unit_hash
from promptrollout.gateway.metrics.heavy_hitters import SLICE_SECONDS, SLICES, HeavyUnits
from promptrollout.gateway.process import Gateway
from tests.unit.gateway.kit import CANARY, Caller, Provider, arm, delivery, request


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_of_the_requests_is_found_and_no_count_is_too_large(seed: int) -> None:
    draw = random.Random(seed)
    units = [7 if draw.random() < 0.25 else draw.randrange(10, 5000) for _ in range(20_000)]
    heavy = HeavyUnits("salt", Clock())
    for unit in units:
        heavy.record(unit)
    true = Counter(units)
    found = heavy.heaviest(4)
    assert heavy.total() == len(units)
    assert found[0][0] == 7
    assert true[7] - len(units) / 16 <= found[0][1] <= true[7]
    assert all(count <= true[unit] for unit, count in found)


def test_even_traffic_has_no_heavy_unit() -> None:
    heavy = HeavyUnits("salt", Clock())
    for n in range(20_000):
        heavy.record(n % 1000)
    assert heavy.heaviest(1)[0][1] < 0.02 * heavy.total()


def test_memory_is_bounded_and_what_is_ten_minutes_old_is_forgotten() -> None:
    clock = Clock()
    heavy = HeavyUnits("salt", clock)
    for minute in range(30):
        for n in range(500):
            heavy.record(minute * 1000 + n)
        clock.now += SLICE_SECONDS
    assert len(heavy.heaviest(10_000)) <= 16 * SLICES
    assert heavy.total() == 500 * (SLICES - 1)
    clock.now += SLICES * SLICE_SECONDS
    assert (heavy.total(), heavy.heaviest(1)) == (0, [])
    clock.now += 1e6
    heavy.record(1)
    assert (heavy.total(), heavy.heaviest(1)) == (1, [(1, 1)])


async def test_the_admin_answer_names_heavy_units_by_their_hash(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    canary = arm(CANARY, provider.url)
    raw = delivery(weight=50, stable=arm(url=provider.url), canary=canary)
    await gateway.registry.apply("support", raw)
    for n in range(12):
        await caller.post(request(user="the-proxy" if n % 2 else f"user-{n}"))
    await caller.post(request(user=""))
    (said,) = (await Caller(gateway.admin_app).get("/rollouts")).json["rollouts"]
    assert said["assignedRequests"] == 12
    assert said["heavyUnits"][0] == {"unit": unit_hash("salt", b"the-proxy"), "requests": 6}
    assert len(said["heavyUnits"]) == 4
    await gateway.registry.apply("support", {**raw, "sequence": 2, "weight": 60})
    (said,) = (await Caller(gateway.admin_app).get("/rollouts")).json["rollouts"]
    assert said["assignedRequests"] == 12, "a step does not forget"
    await gateway.registry.apply("support", {**raw, "sequence": 3, "salt": "another"})
    (said,) = (await Caller(gateway.admin_app).get("/rollouts")).json["rollouts"]
    assert (said["assignedRequests"], said["heavyUnits"]) == (0, []), "other hashes"


async def test_requests_that_are_units_of_their_own_have_no_key(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    raw = delivery(stable=arm(url=provider.url), stickiness={"by": "Request"})
    await gateway.registry.apply("support", raw)
    await caller.post(request())
    (said,) = (await Caller(gateway.admin_app).get("/rollouts")).json["rollouts"]
    assert (said["assignedRequests"], said["heavyUnits"]) == (0, [])
