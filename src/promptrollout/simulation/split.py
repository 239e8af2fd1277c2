"""Bucket space: who is in which slice and shard, and what a weight makes of what was drawn there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from promptrollout.api.names import SHARDS
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.simulation.scenario import Users

Floats = NDArray[np.float64]
Counted = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Buckets:
    """Slices of bucket space, each cut into shards. Places are numbered slice by slice."""

    weights: tuple[int, ...]
    """Percent; the i-th slice ends where the i-th weight does."""
    share: Floats
    """Of all requests, by slice and shard; sums to 1."""
    place: Counted
    """Of each user; empty without users."""
    activity: Floats
    """Share of all requests of each user; empty without users."""

    @classmethod
    def draw(cls, rng: Generator, weights: Sequence[int], sample_ratio: float, users: Users | None) -> Self:
        """Users fall into buckets and shards at random. `sample_ratio` moves the cuts between arms."""
        named = tuple(sorted({*weights, 100} - {0}))
        if named[0] < 0 or named[-1] > 100:
            raise ValueError(f"weights are percent between 0 and 100, not {list(weights)}")
        edges = np.array([1.0 if w == 100 else min(1.0, w / 100 * sample_ratio) for w in named])
        if users is None:
            share = np.tile(np.diff(edges, prepend=0)[:, None] / SHARDS, SHARDS)
            return cls(named, share, np.empty(0, np.int64), np.empty(0))
        activity: Floats = np.arange(1.0, users.count + 1) ** -users.zipf_exponent
        activity = activity / activity.sum()
        slices = np.searchsorted(edges, rng.random(users.count), side="right")
        place = slices * SHARDS + rng.integers(SHARDS, size=users.count)
        places = len(named) * SHARDS
        size = np.bincount(place, activity, places).astype(np.float64)
        return cls(named, size.reshape(len(named), SHARDS), place, activity)

    def slices(self, weight: int) -> int:
        """How many of the slices a weight gives to the canary."""
        if weight == 0:
            return 0
        if weight not in self.weights:
            raise ValueError(f"weight {weight} was not drawn for: name it in weights={list(self.weights)}")
        return self.weights.index(weight) + 1

    def habits(self, rng: Generator, mean: float, users: Users | None) -> Floats:
        """Chance of a bad request by slice and shard. Users' own chances are Beta; one place's requests come from its
        users in proportion to their activity, and sums of Poisson counts are Poisson: only the mean matters here."""
        if users is None or users.intra_user_correlation == 0 or not 0 < mean < 1:
            return np.full(self.share.shape, mean)
        strength = 1 / users.intra_user_correlation - 1
        means = np.full(users.count, mean)
        if users.rate_exponent:
            relative = self.activity**users.rate_exponent
            means = np.minimum(_MOST, mean * relative / np.sum(self.activity * relative))
        each = rng.beta(means * strength, (1 - means) * strength)
        total = np.bincount(self.place, self.activity * each, self.share.size).reshape(self.share.shape)
        chance: Floats = np.divide(total, self.share, out=np.full(self.share.shape, mean), where=self.share > 0)
        return np.minimum(1, chance)

    def mean_of(self, values: Floats) -> Floats:
        """Mean over the requests of each slice and shard of what each user has; 1 where there are no users."""
        total = np.bincount(self.place, self.activity * values, self.share.size).reshape(self.share.shape)
        mean: Floats = np.divide(total, self.share, out=np.ones(self.share.shape), where=self.share > 0)
        return mean

    def users_at(self, rng: Generator, place: Counted) -> Counted:
        """A user for each request, given where it fell."""
        order = np.argsort(self.place, kind="stable")
        reached = np.cumsum(self.activity[order])
        size = np.bincount(self.place, self.activity, self.share.size)
        first = np.cumsum(size) - size
        at = np.searchsorted(reached, first[place] + rng.random(len(place)) * size[place], side="right")
        return order[np.minimum(at, len(order) - 1)]


_MOST = 0.95
"""Mean chance of a bad request of a user, however active."""
COLUMNS = 5
"""n, total, squares, input and saved, on the first axis of a Split."""


@dataclass(frozen=True, slots=True)
class Split:
    """One signal's sums, by column, interval, slices on the canary, and shard: `canary[:, t, i]` are the first i
    slices under canary, `stable[:, t, i]` all others under stable."""

    canary: Floats
    stable: Floats
    canary_sums: Floats
    stable_sums: Floats
    """Over all shards."""
    kept: Floats
    """The first i slices under stable: what the canary's users would have met. By interval and slices."""

    @classmethod
    def of(cls, n_c: Counted, n_s: Counted, total_c: NDArray, total_s: NDArray, *, squares: bool = True) -> Self:  # type: ignore[type-arg]
        """Totals by interval, slice and shard, or with all columns but n before that."""
        arms = []
        for n, total in ((n_c, total_c), (n_s, total_s)):
            columns = total[None] if total.ndim == 3 else total
            whole = np.zeros((COLUMNS, n.shape[0], n.shape[1] + 1, n.shape[2]))
            np.cumsum(n, axis=1, out=whole[0, :, 1:])
            np.cumsum(columns, axis=2, out=whole[1 : 1 + len(columns), :, 1:])
            arms.append(whole)
        canary, below = arms
        stable = below[:, :, -1:] - below
        return cls(canary, stable, canary.sum(axis=3), stable.sum(axis=3), below[1].sum(axis=2))

    def counts(self, first: int, slices: Counted) -> Counts:
        """Of the intervals from `first` on, each with its own weight."""
        return Counts(
            _arm(self.canary, self.canary_sums, first, slices), _arm(self.stable, self.stable_sums, first, slices)
        )

    def exposed(self, t: int, slices: int) -> tuple[int, int, int]:
        """Canary's requests, bad ones, and bad ones if stable had answered."""
        requests, bad = self.canary_sums[:2, t, slices]
        return int(requests), int(bad), int(self.kept[t, slices])


def _arm(by_shard: Floats, sums: Floats, first: int, slices: Counted) -> Arm:
    shards, found = by_shard[:2, first, slices[0]], sums[:, first, slices[0]]
    for later, i in enumerate(slices[1:].tolist(), start=first + 1):
        shards, found = shards + by_shard[:2, later, i], found + sums[:, later, i]
    n, total, squared, whole, saved = found.tolist()
    return Arm(n, total, squared, tuple(zip(*shards.tolist(), strict=True)), whole, saved)
