"""Draw the traffic of one run: what every request would show on the canary, and what on stable.

Users fall into buckets once; the canary gets the buckets below its weight. So bucket space is cut at the weights that a
ramp can choose, and each slice of it is drawn under both arms. Whatever weights a rule chooses, it meets the same
requests as any other rule, and no user flips.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from promptrollout.engine.statistics.evidence import Counts
from promptrollout.simulation.delayed import Delayed, draw_feedback, draw_scores
from promptrollout.simulation.scenario import Cycle, DailyRequests, Errors, Scenario, Users
from promptrollout.simulation.split import Buckets, Split

BASELINE = 60
"""Intervals before the canary's first exposure."""
CARRY_SECONDS = 300
"""How long the operator's reader carries increments that it could not use."""
WEIGHTS = (5, 10, 25, 50)
"""Of the benchmark's ramp; 100 is always possible too."""

Floats = NDArray[np.float64]
Counted = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Exposure:
    """What the canary really did to users in one interval, read or not."""

    requests: int
    bad: int
    bad_on_stable: int
    """What the same users would have met on stable."""


class Draws:
    """One run's `Traffic`. Use it for any number of rules, one after the other.

    Ask for every interval in its order: answers that are judged later count for the arm that gave them. Starting again
    from the beginning is starting anew. Signals name the strata.
    """

    def __init__(
        self,
        scenario: Scenario,
        buckets: Buckets,
        splits: Mapping[str, Split],
        delayed: Mapping[str, Delayed],
        read_from: Mapping[str, Counted],
    ) -> None:
        self.interval_seconds = scenario.interval_seconds
        self.intervals = scenario.intervals
        self._gaps = scenario.gaps
        self._buckets = buckets
        self._splits = splits
        self._delayed = delayed
        self._read_from = read_from
        self._known: dict[tuple[str, int, bytes], tuple[Counts, ...]] = {}  # most rules choose the same weights
        self._slices = np.zeros(BASELINE + scenario.intervals, np.int64)  # slices on the canary, by interval
        self._since = np.zeros(BASELINE + scenario.intervals, np.int64)  # when the weight in force was set

    def counts(self, k: int, weight: int) -> Mapping[str, tuple[Counts, ...]]:
        """What is read at the end of interval k, in which the canary had `weight` percent."""
        t = k + BASELINE
        self._slices[t] = self._buckets.slices(weight)
        self._since[t] = self._since[t - 1] if t > 0 and self._slices[t] == self._slices[t - 1] else t
        found: dict[str, tuple[Counts, ...]] = {}
        for signal, read_from in self._read_from.items():
            first = int(read_from[t])
            if first < 0:
                continue
            if signal in self._splits:
                slices = self._slices[first : t + 1]
                key = signal, t, slices.tobytes()
                if key not in self._known:
                    self._known[key] = (self._splits[signal].counts(first, slices),)
                found[signal] = self._known[key]
            else:
                found[signal] = self._delayed[signal].counts(first, t, self._slices, int(self._since[t]))
        return found

    def available(self, k: int) -> bool:
        """Prometheus answers at the end of interval k."""
        return not any(window.start <= k < window.end for window in self._gaps.prometheus_outages)

    def unreachable(self, k: int) -> bool:
        """Only the canary's provider is down during interval k."""
        outage = self._gaps.canary_provider_outage
        return outage is not None and outage.start <= k < outage.end

    def reads(self, k: int, signals: Collection[str]) -> bool:
        """At least one of these signals can be read at the end of interval k."""
        return any(self._read_from[signal][k + BASELINE] >= 0 for signal in signals)

    def exposure(self, k: int, weight: int) -> Exposure:
        split, t, slices = self._splits["ErrorRate"], k + BASELINE, self._buckets.slices(weight)
        requests, bad, bad_on_stable = split.exposed(t, slices)
        return Exposure(requests, bad, bad_on_stable)


def draw(scenario: Scenario, rng: Generator, weights: Sequence[int] = WEIGHTS) -> Draws:
    """One run. `weights`: all that a rule may choose, in percent; 0 and 100 need not be named."""
    times = BASELINE + scenario.intervals
    seconds = np.arange(-BASELINE, scenario.intervals, dtype=np.float64) * scenario.interval_seconds
    buckets = Buckets.draw(rng, weights, scenario.sample_ratio, scenario.users)
    rate = requests(scenario, seconds, rng)[:, None, None] * buckets.share

    splits: dict[str, Split] = {}
    n_c, n_s, actions = calls(rng, scenario, rate)
    if scenario.actions is not None:
        splits["CallsPerAction"] = Split.of(actions, actions, n_c, n_s, squares=False)
    p_c, p_s = error_rates(rng, scenario, buckets, seconds)
    bad_c, bad_s = paired(rng, n_c, n_s, p_c, p_s)
    splits["ErrorRate"] = Split.of(n_c, n_s, bad_c, bad_s)
    if (latency := scenario.latency) is not None:
        slow = buckets.habits(rng, latency.slow_share, scenario.users)
        multiple = since(times, latency.onset, latency.canary_multiple)
        slow_c, slow_s = paired(rng, n_c, n_s, np.minimum(1, slow * multiple), np.broadcast_to(slow, n_s.shape))
        splits["Latency"] = Split.of(n_c, n_s, slow_c, slow_s)
    if scenario.cost is not None:
        spent_c, spent_s = draw_costs(rng, scenario, buckets, n_c, n_s)
        splits["CostPerRequest"] = Split.of(n_c, n_s, spent_c, spent_s)
        if scenario.actions is not None:
            splits["CostPerAction"] = Split.of(actions, actions, spent_c[0], spent_s[0], squares=False)

    delayed: dict[str, Delayed] = {}
    if scenario.judge is not None:
        delayed["JudgeScore"] = draw_scores(rng, scenario.judge, scenario, rate, buckets, BASELINE)
    if scenario.feedback is not None:
        delayed["NegativeFeedbackRate"] = draw_feedback(rng, scenario.feedback, scenario, rate, buckets, BASELINE)
    read_from = {signal: readable(rng, scenario) for signal in (*splits, *delayed)}
    return Draws(scenario, buckets, splits, delayed, read_from)


# ---------------------------------------------------------------- how much, and how bad


def wave(cycle: Cycle, seconds: Floats) -> Floats:
    turns = (seconds - cycle.peak_second) / cycle.period_seconds
    return 1 + cycle.amplitude * np.cos(2 * math.pi * turns)


def since(times: int, onset: int, multiple: float | Floats) -> Floats:
    """1 before the onset, `multiple` (one, or by slice and shard) from it on; shaped to multiply (times, slices,
    shards)."""
    return np.where((np.arange(times) >= onset + BASELINE)[:, None, None], multiple, 1.0)


def requests(scenario: Scenario, seconds: Floats, rng: Generator) -> Floats:
    """Expected requests of each interval, without those that a pod's restart forgot."""
    given = scenario.requests_per_minute
    a_minute = given.mean * wave(given, seconds) if isinstance(given, DailyRequests) else np.full(len(seconds), given)
    expected = a_minute * scenario.interval_seconds / 60
    restarts = scenario.gaps.pod_restarts
    if restarts is not None:
        every = max(1, round(restarts.every_seconds / scenario.interval_seconds))
        at = np.arange(rng.integers(every), len(seconds), every)
        expected[at] *= 1 - rng.random(len(at)) / restarts.pods
    return expected


def calls(rng: Generator, scenario: Scenario, rate: Floats) -> tuple[Counted, Counted, Counted]:
    """Requests under canary and under stable, and actions (the same under both). Without actions, a request is one."""
    actions = scenario.actions
    if actions is None:
        n = rng.poisson(rate)
        return n, n, n
    begun = rng.poisson(rate / actions.calls_per_action)
    stable = repeated(rng, begun, np.full((1, 1, 1), actions.calls_per_action))
    if actions.canary_multiple == 1:
        return stable, stable, begun
    mean = np.maximum(1, actions.calls_per_action * since(len(rate), actions.onset, actions.canary_multiple))
    return repeated(rng, begun, mean), stable, begun


def repeated(rng: Generator, begun: Counted, mean: Floats) -> Counted:
    """Calls of `begun` actions, each geometric with this mean (at least one)."""
    chance = np.broadcast_to(1 / mean, begun.shape)
    further = np.zeros_like(begun)
    some = begun > 0
    further[some] = rng.negative_binomial(begun[some], chance[some])
    return begun + further


def error_rates(rng: Generator, scenario: Scenario, buckets: Buckets, seconds: Floats) -> tuple[Floats, Floats]:
    """Chance of a bad request by interval, slice and shard, under canary and under stable."""
    errors, times = scenario.errors, len(seconds)
    both = wave(errors.cycle, seconds) if errors.cycle is not None else np.ones(times)
    added = np.zeros(times)
    if (spike := errors.common_spike) is not None:
        during = slice(max(0, spike.start + BASELINE), max(0, spike.end + BASELINE))
        both[during] *= spike.multiple
        added[during] = spike.added
    habits = buckets.habits(rng, errors.rate, scenario.users)
    worse = since(times, errors.onset, errors.canary_multiple)
    if (some := errors.some_users) is not None:
        hit = rng.random(len(buckets.activity)) < some.share
        worse = worse * since(times, errors.onset, buckets.mean_of(np.where(hit, some.multiple, 1.0)))
    fails = np.zeros(buckets.share.shape)
    if errors.failing_user is not None:
        fails = buckets.mean_of((np.arange(len(buckets.activity)) == errors.failing_user - 1).astype(np.float64))
    arms = []
    for multiple in (worse, np.ones((1, 1, 1))):
        shock: Floats = np.ones(times)
        if errors.shocks > 0 and 0 < errors.rate < 1:
            shock = shocks(rng, errors, times)
        own = np.minimum(1, habits * multiple * (both * shock)[:, None, None])
        own = own + (1 - own) * fails
        arms.append(own + (1 - own) * added[:, None, None])
    canary, stable = arms
    if (outage := scenario.gaps.canary_provider_outage) is not None:
        start, end = (max(0, at + BASELINE) for at in (outage.start, outage.end))
        canary[start:end] = stable[start:end]  # stable answers, as soon as the outage is noticed
        unnoticed = min(1.0, scenario.gaps.noticed_after_seconds / scenario.interval_seconds)
        canary[start : start + 1] += unnoticed * (1 - canary[start : start + 1])
    return canary, stable


def shocks(rng: Generator, errors: Errors, times: int) -> Floats:
    """By interval: one arm's rate over its mean. Each shock lasts `shock_intervals`, from a random beginning on."""
    strength, lasts = 1 / errors.shocks - 1, errors.shock_intervals
    first = int(rng.integers(lasts)) if lasts > 1 else 0
    count = -(-(first + times) // lasts)
    rates = rng.beta(errors.rate * strength, (1 - errors.rate) * strength, count)
    return np.repeat(rates, lasts)[first : first + times] / errors.rate


def paired(rng: Generator, n_c: Counted, n_s: Counted, p_c: Floats, p_s: Floats) -> tuple[Counted, Counted]:
    """Bad ones of `n` under both arms. Where nothing differs the same request does the same under both."""
    bad_s = rng.binomial(n_s, p_s)
    if n_c is n_s and np.array_equal(p_c, p_s):
        return bad_s, bad_s
    bad_c = rng.binomial(n_c, p_c)
    if n_c is n_s:
        alike = np.broadcast_to(p_c == p_s, bad_c.shape)
        bad_c[alike] = bad_s[alike]
    return bad_c, bad_s


# ---------------------------------------------------------------- what it costs


def draw_costs(
    rng: Generator, scenario: Scenario, buckets: Buckets, n_c: Counted, n_s: Counted
) -> tuple[Floats, Floats]:
    """Under canary and under stable: USD, its squares, input without a cache and what the cache saved, in this order on
    the first axis, then by interval, slice and shard."""
    cost, times = scenario.cost, len(n_s)
    assert cost is not None
    stable = spent(rng, scenario, buckets, n_s, np.ones(times), np.zeros(times))
    factor = since(times, cost.onset, cost.canary_multiple)[:, 0, 0]
    cold = np.zeros(times)
    if cost.cache is not None:
        exposed = np.maximum(0, np.arange(times) - BASELINE) * scenario.interval_seconds
        warm_up = cost.cache.warm_up_seconds
        cold = np.exp(-exposed / warm_up) if warm_up is not None else np.ones(times)
    if n_c is n_s and cost.canary_multiple == 1 and cost.cache is None:
        return stable, stable
    return spent(rng, scenario, buckets, n_c, factor, cold), stable


def spent(rng: Generator, scenario: Scenario, buckets: Buckets, n: Counted, factor: Floats, cold: Floats) -> Floats:
    """One arm's. `factor` on the price and `cold` (1: canary's first hit share, 0: stable's) by interval."""
    cost = scenario.cost
    assert cost is not None
    cell = np.repeat(np.arange(n.size), n.ravel())
    time = cell // (n.shape[1] * n.shape[2])
    values = cost.mean_usd * factor[time] * amounts(rng, scenario, buckets, cell % (n.shape[1] * n.shape[2]))
    whole, saved = np.zeros(len(cell)), np.zeros(len(cell))
    if (cache := cost.cache) is not None:
        hit_share = cache.stable_hit_share + cold[time] * (cache.canary_hit_share - cache.stable_hit_share)
        whole = cache.input_usd * factor[time]
        saved = whole * cache.discount * (rng.random(len(cell)) < hit_share)
        values = values + whole - saved
    columns = (values, values**2, whole, saved)
    return np.stack([np.bincount(cell, column, n.size).reshape(n.shape) for column in columns])


def amounts(rng: Generator, scenario: Scenario, buckets: Buckets, place: Counted) -> Floats:
    """Costs of single requests around mean 1; a user's habit is a factor of their own. `place`: slice and shard."""
    cost, users = scenario.cost, scenario.users
    assert cost is not None
    if cost.tail_index is not None:
        values = (1 + rng.pareto(cost.tail_index, len(place))) * (cost.tail_index - 1) / cost.tail_index
        relative = 1.0
    else:
        relative = cost.coefficient_of_variation**2
        habit = users.intra_user_correlation * relative if users is not None else 0.0
        sigma = math.sqrt(math.log((1 + relative) / (1 + habit)))
        values = rng.lognormal(-(sigma**2) / 2, sigma, len(place))
    return values * factors(rng, users, relative, buckets, place)


def factors(rng: Generator, users: Users | None, relative: float, buckets: Buckets, place: Counted) -> Floats | float:
    """Of mean 1, one per user, with the share of the relative variance that makes users differ."""
    if users is None or users.intra_user_correlation * relative <= 0:
        return 1.0
    shape = 1 / (users.intra_user_correlation * relative)
    each: Floats = rng.gamma(shape, 1 / shape, users.count)
    return each[buckets.users_at(rng, place)]


# ---------------------------------------------------------------- what is read of it


def readable(rng: Generator, scenario: Scenario) -> Counted:
    """By interval: the first interval whose increments are read at its end; -1 if nothing is.

    NaN: carried to the next reading, for both arms. A carry that is too old is dropped, as is what was never scraped.
    """
    gaps, times = scenario.gaps, BASELINE + scenario.intervals
    missing = rng.random(times) < gaps.nan_share
    for window in gaps.prometheus_outages:
        missing[max(0, window.start + BASELINE) : max(0, window.end + BASELINE)] = True
    most = max(1, CARRY_SECONDS // scenario.interval_seconds)
    found = np.full(times, -1)
    waiting = 0
    for t in range(times):
        if missing[t]:
            waiting = waiting + 1
        else:
            found[t] = t - waiting if waiting <= most else t
            waiting = 0
    return found
