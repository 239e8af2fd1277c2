"""Traffic of a version as good as stable whose users stay on their version, each with habits of their own."""

from bisect import bisect_right

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from promptrollout.api.rollout import Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.signals import Signal, signal_of
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.simulation.assumed import Assumed, Baseline, drawn, mean_sums
from promptrollout.simulation.scenario import Users
from promptrollout.simulation.split import Buckets
from promptrollout.simulation.traffic import Strata
from promptrollout.simulation.undecidable import weight_steps

Floats = NDArray[np.float64]

SECONDS_BETWEEN_REQUESTS = 200
"""Of one user, on average, where the number of users is not given: 600 requests a minute come from 2,000 users."""
LEAST_USERS = 50


def assumed_users(given: Assumed) -> int:
    """How many users send these requests, where nobody said it."""
    return max(LEAST_USERS, round(given.requests_per_minute / 60 * SECONDS_BETWEEN_REQUESTS))


class StickyVersion:
    """`GoodVersion` with users: which of them are on the canary, and how each of them fares, is drawn once."""

    def __init__(self, rng: Generator, rules: Snapshot, given: Assumed, users: Users, intervals: int) -> None:
        self.interval_seconds, self.intervals = rules.interval_seconds, intervals
        self._rng, self._given, self._users = rng, given, users
        self._objectives = rules.objectives
        self._buckets = Buckets.draw(rng, [step.weight for step in weight_steps(rules)], 1.0, users)
        self._habits = {o.name: self._habit(signal_of(o), given.baselines[o.name]) for o in rules.objectives}

    def counts(self, k: int, weight: int) -> Strata:
        return {objective.name: (self._counts(objective, weight),) for objective in self._objectives}

    def available(self, k: int) -> bool:
        return True

    def unreachable(self, k: int) -> bool:
        return False

    def _habit(self, signal: Signal, baseline: Baseline) -> Floats:
        """By slice and shard: the chance of a bad request, or a mean over that of all requests."""
        users = self._users
        if signal.kind == "rate":
            return self._buckets.habits(self._rng, baseline.value, users)
        between = users.intra_user_correlation * baseline.spread**2
        if between <= 0:
            return np.ones(self._buckets.share.shape)
        each = self._rng.gamma(1 / between, between, users.count)
        share = self._buckets.share
        total = np.bincount(self._buckets.place, self._buckets.activity * each, share.size).reshape(share.shape)
        mean: Floats = np.divide(total, share, out=np.ones(share.shape), where=share > 0)
        return mean

    def _counts(self, objective: Objective, weight: int) -> Counts:
        signal, baseline = signal_of(objective), self._given.baselines[objective.name]
        n_c, n_s = self._given.samples(objective, self.interval_seconds, weight)
        if objective.custom is not None and objective.custom.form == "value":
            return next(drawn(self._rng, signal, baseline, [n_c], [n_s], 1.0))  # one number an interval has no users
        # a weight between those of the steps, such as that of a holdback, gets the slices below it
        habit, slices = self._habits[objective.name], bisect_right(self._buckets.weights, weight)
        n = self._rng.poisson((n_c + n_s) * self._buckets.share)
        if signal.kind == "rate":
            total = self._rng.binomial(n, habit).astype(np.float64)
            squares = np.zeros(n.shape)
        else:
            within = baseline.spread * (1 - self._users.intra_user_correlation) ** 0.5
            total, squares = (
                found.reshape(n.shape) for found in mean_sums(self._rng, n.ravel(), baseline.value, within)
            )
            total, squares = total * habit, squares * habit**2
        counted = n.astype(np.float64)
        return Counts(*(_arm(counted, total, squares, part) for part in (slice(0, slices), slice(slices, None))))


def _arm(n: Floats, total: Floats, squares: Floats, part: slice) -> Arm:
    by_shard, totals = n[part].sum(axis=0), total[part].sum(axis=0)
    shards = tuple(zip(by_shard.tolist(), totals.tolist(), strict=True))
    return Arm(float(by_shard.sum()), float(totals.sum()), float(squares[part].sum()), shards)
