"""Draws: the same requests whatever the weights, with the rates, correlations and gaps that the scenario asks for."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from promptrollout.api.names import SHARDS
from promptrollout.engine.statistics.evidence import Arm
from promptrollout.simulation.delayed import AGES_SECONDS, score_shares
from promptrollout.simulation.draws import BASELINE, Draws, draw, shocks
from promptrollout.simulation.scenario import Errors, Scenario, load

INTERVALS = 60


def drawn(seed: int = 1, **fields: object) -> Draws:
    scenario = Scenario.model_validate({"name": "test", "intervals": INTERVALS, **fields})
    return draw(scenario, np.random.default_rng(seed))


def read(traffic: Draws, weight: int, signal: str, stratum: int = 0) -> list[tuple[Arm, Arm]]:
    found = []
    for k in range(-BASELINE, INTERVALS):
        counts = traffic.counts(k, weight if k >= 0 else 0).get(signal)
        if counts is not None and k >= 0:
            found.append((counts[stratum].canary, counts[stratum].stable))
    return found


def ratio(arms: list[Arm]) -> float:
    return sum(arm.total for arm in arms) / sum(arm.n for arm in arms)


def test_arms_and_weights_share_out_the_same_requests() -> None:
    traffic = drawn()
    by_weight = [[c.n + s.n for c, s in read(traffic, weight, "ErrorRate")] for weight in (5, 50, 100)]
    assert by_weight[0] == by_weight[1] == by_weight[2]
    bad = [sum(c.total + s.total for c, s in read(traffic, weight, "ErrorRate")) for weight in (5, 50)]
    assert bad[0] == bad[1]


def test_growing_weight_takes_nobody_off_the_canary() -> None:
    traffic = drawn(users={"count": 50})
    small, large = (traffic.counts(0, weight)["ErrorRate"][0].canary for weight in (10, 25))
    assert all(few <= many for (few, _), (many, _) in zip(small.shards, large.shards, strict=True))


def test_shards_add_up() -> None:
    canary, stable = read(drawn(cost={}), 25, "CostPerRequest")[3]
    for arm in (canary, stable):
        assert len(arm.shards) == SHARDS
        assert arm.n == sum(n for n, _ in arm.shards)
        assert arm.total == pytest.approx(sum(total for _, total in arm.shards))
        assert arm.total_squared >= arm.total**2 / arm.n


def test_rates_and_multiples() -> None:
    arms = read(drawn(errors={"rate": "0.02", "canaryMultiple": 3, "onset": 30}), 50, "ErrorRate")
    se = math.sqrt(0.02 / 9_000)  # 30 intervals of 300 requests
    assert ratio([c for c, _ in arms[:30]]) == pytest.approx(0.02, abs=4 * se)
    assert ratio([s for _, s in arms]) == pytest.approx(0.02, abs=4 * se)
    assert ratio([c for c, _ in arms[30:]]) == pytest.approx(0.06, abs=4 * 1.8 * se)


def test_common_spike_hits_both_arms_and_only_then() -> None:
    arms = read(drawn(errors={"commonSpike": {"start": 10, "end": 40, "multiple": 4}}), 50, "ErrorRate")
    for side in (0, 1):
        assert ratio([arm[side] for arm in arms[10:40]]) > 0.06
        assert ratio([arm[side] for arm in arms[:10] + arms[40:]]) < 0.03


def test_shocks_spread_intervals_and_users_spread_shards() -> None:
    """Variance of the rate over intervals, or over shards, compared with independent requests' own."""

    def over_intervals(traffic: Draws) -> float:
        arms = [s for _, s in read(traffic, 50, "ErrorRate")]
        p = ratio(arms)
        return float(np.mean([(a.total - p * a.n) ** 2 / (p * (1 - p) * a.n) for a in arms]))

    def over_shards(traffic: Draws) -> float:
        arms = [s for _, s in read(traffic, 50, "ErrorRate")]
        n, total = np.array([a.shards for a in arms]).sum(axis=0).T
        p = total.sum() / n.sum()
        return float(np.mean((total - p * n) ** 2 / (p * (1 - p) * n)))

    plain, shocks, users = drawn(), drawn(errors={"shocks": 0.05}), drawn(users={"count": 2_000})
    assert over_intervals(plain) < 1.6 < 5 < over_intervals(shocks)  # 1 and about 1 + 299 * .05, of 60 intervals
    assert over_shards(plain) < 1.9 < 3 < over_shards(users)  # 1 and far above, of 32 shards


def test_costs_have_the_mean_and_spread_asked_for() -> None:
    arms = read(drawn(cost={"meanUsd": 0.01, "coefficientOfVariation": 0.5, "canaryMultiple": 2}), 50, "CostPerRequest")
    canary, stable = ([a[i] for a in arms] for i in (0, 1))
    assert ratio(stable) == pytest.approx(0.01, rel=0.02)
    assert ratio(canary) == pytest.approx(0.02, rel=0.02)
    square = sum(a.total_squared for a in stable) / sum(a.n for a in stable)
    assert square / ratio(stable) ** 2 - 1 == pytest.approx(0.25, rel=0.15)


def test_a_cold_cache_costs_only_the_canary() -> None:
    cache = {"inputUsd": 0.006, "discount": 0.75, "stableHitShare": 0.9, "canaryHitShare": 0.2}
    cost = {"meanUsd": 0.002, "coefficientOfVariation": 0, "cache": cache}
    arms = read(drawn(cost=cost), 50, "CostPerRequest")
    assert ratio([s for _, s in arms]) == pytest.approx(0.002 + 0.006 * (1 - 0.75 * 0.9), rel=0.01)
    assert ratio([c for c, _ in arms]) == pytest.approx(0.002 + 0.006 * (1 - 0.75 * 0.2), rel=0.01)


def test_agents_that_loop_twice_as_often_at_half_the_price() -> None:
    traffic = drawn(actions={"callsPerAction": 3, "canaryMultiple": 2}, cost={"canaryMultiple": 0.5})
    means = {
        signal: [ratio([a[i] for a in read(traffic, 50, signal)]) for i in (0, 1)]
        for signal in ("CallsPerAction", "CostPerRequest", "CostPerAction")
    }
    assert means["CallsPerAction"] == pytest.approx([6, 3], rel=0.05)
    assert means["CostPerRequest"] == pytest.approx([0.002, 0.004], rel=0.05)
    assert means["CostPerAction"] == pytest.approx([0.012, 0.012], rel=0.08)


def test_scores_have_the_moments_asked_for_and_arrive_late() -> None:
    judge = {"mean": 4, "canaryDifference": -0.3, "stableDelaySeconds": 600, "canaryDelaySeconds": 600}
    traffic = drawn(judge=judge)
    arms = read(traffic, 50, "JudgeScore", stratum=AGES_SECONDS.index(600))
    assert sum(c.n + s.n for c, s in arms[:10]) == 0  # older answers are of the time before the step
    assert ratio([c for c, _ in arms]) == pytest.approx(3.7, abs=4 * 0.8 / math.sqrt(3_000))
    assert ratio([s for _, s in arms]) == pytest.approx(4.0, abs=4 * 0.8 / math.sqrt(3_000))
    assert not any(c.n + s.n for c, s in read(traffic, 50, "JudgeScore", stratum=0))
    shares = score_shares(3.7, 0.8)
    x = np.arange(1, 6)
    assert shares @ x == pytest.approx(3.7)
    assert shares @ (x - 3.7) ** 2 == pytest.approx(0.64)


def test_bad_news_that_comes_faster_looks_bad_only_while_answers_are_young() -> None:
    traffic = drawn(feedback={"share": 0.5, "negativeShare": 0.3, "badDelaySeconds": 30, "goodDelaySeconds": 600})
    young, older = (read(traffic, 50, "NegativeFeedbackRate", stratum=i) for i in (0, 1))
    assert ratio([s for _, s in young]) > 0.5
    assert ratio([s for _, s in older]) < 0.2
    assert ratio([c for c, _ in young]) == pytest.approx(ratio([s for _, s in young]), abs=0.05)


def test_an_answer_counts_for_the_arm_that_gave_it() -> None:
    traffic = drawn(judge={"stableDelaySeconds": 300, "canaryDelaySeconds": 300})
    stratum = AGES_SECONDS.index(600)
    for k in range(-BASELINE, 20):
        traffic.counts(k, 0 if k < 0 else 5)
    at_change = traffic.counts(20, 50)["JudgeScore"][stratum]
    assert at_change.canary.n == at_change.stable.n == 0  # scores of answers from before the step are dropped
    later = [traffic.counts(k, 50)["JudgeScore"][stratum] for k in range(21, 40)]
    assert sum(c.canary.n for c in later) == pytest.approx(sum(c.stable.n for c in later), rel=0.15)


def test_missing_readings_are_carried_for_both_arms_and_outages_are_lost() -> None:
    whole, holes = drawn(seed=5), drawn(seed=5, gaps={"nanShare": 0.2})
    everything, carried = read(whole, 10, "ErrorRate"), read(holes, 10, "ErrorRate")
    assert 0.6 * INTERVALS < len(carried) < INTERVALS
    for side in (0, 1):
        total = sum(a[side].n for a in everything)
        assert sum(a[side].n for a in carried) == pytest.approx(total, rel=0.1)  # but for the ends
    away = drawn(seed=5, gaps={"prometheusOutages": [{"start": 20, "end": 35}]})
    assert [k for k in range(INTERVALS) if not away.available(k)] == list(range(20, 35))
    assert len(read(away, 10, "ErrorRate")) == INTERVALS - 15
    assert sum(c.n + s.n for c, s in read(away, 10, "ErrorRate")) == pytest.approx(600 * 45, rel=0.03)


def test_an_outage_of_the_canarys_provider_shows_until_it_is_noticed() -> None:
    traffic = drawn(gaps={"canaryProviderOutage": {"start": 20, "end": 30}, "noticedAfterSeconds": 15})
    arms = read(traffic, 50, "ErrorRate")
    assert arms[20][0].total / arms[20][0].n == pytest.approx(0.25, abs=0.11)
    assert ratio([c for c, _ in arms[21:30]]) < 0.04
    assert [k for k in range(INTERVALS) if traffic.unreachable(k)] == list(range(20, 30))


def test_sample_ratio_mismatch_moves_units_to_stable() -> None:
    arms = read(drawn(sampleRatio=0.8), 50, "ErrorRate")
    canary = sum(c.n for c, _ in arms)
    assert canary / (canary + sum(s.n for _, s in arms)) == pytest.approx(0.4, abs=0.02)


def test_exposure_tells_what_stable_would_have_done() -> None:
    traffic = drawn(errors={"canaryMultiple": 3})
    total = [traffic.exposure(k, 50) for k in range(INTERVALS)]
    assert sum(e.bad for e in total) == pytest.approx(0.06 * 18_000, rel=0.15)
    assert sum(e.bad_on_stable for e in total) == pytest.approx(0.02 * 18_000, rel=0.2)


def test_a_shock_lasts_as_long_as_it_is_said_to() -> None:
    errors = Errors(rate=0.02, shocks=0.01, shock_intervals=5)
    rates = shocks(np.random.default_rng(3), errors, 50_000)
    assert rates.mean() == pytest.approx(1, abs=0.05)
    assert rates.var() * 0.02**2 == pytest.approx(0.01 * 0.02 * 0.98, rel=0.1)
    changes = np.flatnonzero(np.diff(rates))
    assert (np.diff(changes) == 5).all()
    firsts = {int(np.flatnonzero(np.diff(shocks(np.random.default_rng(seed), errors, 20)))[0]) for seed in range(40)}
    assert firsts == {0, 1, 2, 3, 4}


def test_a_weight_that_was_not_drawn_for_says_so() -> None:
    with pytest.raises(ValueError, match="weight 7 was not drawn for"):
        drawn().counts(0, 7)


def test_a_scenario_is_read_strictly(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "scenario.yaml"
    path.write_text('name: slow\nrequestsPerMinute: "5"\nerrors: {rate: "0.01", canaryMultiple: "1.5"}\n')
    assert load(path).errors.canary_multiple == 1.5
    path.write_text("name: slow\nerrors: {canaryMultipel: 2}\n")
    with pytest.raises(ValueError, match="canaryMultipel"):
        load(path)


def bad_share(**fields: object) -> tuple[float, float]:
    """Canary's and stable's, at 50 %."""
    draws = draw(Scenario.model_validate({"name": "x", "intervals": 60} | fields), np.random.default_rng(5), [50])
    counts = [draws.counts(k, 50)["ErrorRate"][0] for k in range(60)]
    canary = sum(c.canary.total for c in counts) / sum(c.canary.n for c in counts)
    return canary, sum(c.stable.total for c in counts) / sum(c.stable.n for c in counts)


def test_a_providers_trouble_adds_the_same_to_both_arms() -> None:
    spike = {"start": 0, "end": 60, "added": 0.05}
    canary, stable = bad_share(errors={"rate": 0.001, "canaryMultiple": 4, "commonSpike": spike})
    assert (canary, stable) == (pytest.approx(0.054, abs=0.005), pytest.approx(0.051, abs=0.005))


def test_some_users_are_served_worse_by_the_canary_alone() -> None:
    canary, stable = bad_share(
        users={"count": 20_000, "intraUserCorrelation": 0}, errors={"someUsers": {"share": 0.1, "multiple": 10}}
    )
    assert 0.033 < canary < 0.043
    assert 0.015 < stable < 0.025


def test_a_user_whose_requests_all_fail_is_in_one_arm() -> None:
    shares = bad_share(users={"count": 50, "intraUserCorrelation": 0}, errors={"rate": 0, "failingUser": 1})
    assert min(shares) == 0 < max(shares)


def test_users_are_needed_where_users_are_named() -> None:
    with pytest.raises(ValidationError, match=r"set users\.count"):
        Scenario.model_validate({"name": "x", "errors": {"failingUser": 1}})
