"""Signals that come after the answer that they judge: scores and feedback, by the age of the answer."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from promptrollout.api.names import SHARDS
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.simulation.scenario import Feedback, Judge, Scenario
from promptrollout.simulation.split import Buckets

AGES_SECONDS = (60.0, 600.0, 3_600.0, 21_600.0, 86_400.0)
"""Upper ends of the strata; what is older is not counted."""

Floats = NDArray[np.float64]
Counted = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Events:
    """One arm's, in the order of their arrival: single scores or thumbs of single answers."""

    starts: Counted
    """By interval: where its arrivals begin; one more entry closes the last."""
    answered: Counted
    """Interval in which the answer was given."""
    slice: Counted
    shard: Counted
    age: Counted
    """Number of the stratum."""
    value: Floats

    @classmethod
    def of(cls, times: int, width: int, at: Floats, delay: Floats, place: Counted, value: Floats) -> Self:
        """`at`: when the answer was given, in intervals since the first one; `delay` in seconds."""
        arrival = np.floor(at + delay / width).astype(np.int64)
        kept = np.flatnonzero((arrival < times) & (delay <= AGES_SECONDS[-1]))
        kept = kept[np.argsort(arrival[kept], kind="stable")]
        return cls(
            starts=np.searchsorted(arrival[kept], np.arange(times + 1)),
            answered=at[kept].astype(np.int64),
            slice=place[kept] // SHARDS,
            shard=place[kept] % SHARDS,
            age=np.searchsorted(AGES_SECONDS, delay[kept]),
            value=value[kept],
        )

    def arms(self, first: int, last: int, slices: Counted, since: int, *, canary: bool) -> list[Arm]:
        """Per stratum, what arrived in the intervals from `first` to `last`.

        An answer counts for the arm that gave it, and only if that was since the present weight was set.
        """
        window = slice(self.starts[first], self.starts[last + 1])
        answered = self.answered[window]
        mine = ((self.slice[window] < slices[answered]) == canary) & (answered >= since)
        cell = (self.age[window] * SHARDS + self.shard[window])[mine]
        value = self.value[window][mine]
        cells = len(AGES_SECONDS) * SHARDS
        n, total = np.bincount(cell, minlength=cells), np.bincount(cell, value, cells)
        by_shard = np.stack([n, total, np.bincount(cell, value**2, cells)]).reshape(3, len(AGES_SECONDS), SHARDS)
        counted, sums, _ = by_shard.tolist()
        return [
            Arm(n, total, squared, tuple(zip(counted[stratum], sums[stratum], strict=True)))
            for stratum, (n, total, squared) in enumerate(by_shard.sum(axis=2).T.tolist())
        ]


@dataclass(frozen=True, slots=True)
class Delayed:
    """One signal under both arms."""

    canary: Events
    stable: Events

    def counts(self, first: int, last: int, slices: Counted, since: int) -> tuple[Counts, ...]:
        canary = self.canary.arms(first, last, slices, since, canary=True)
        stable = self.stable.arms(first, last, slices, since, canary=False)
        return tuple(Counts(c, s) for c, s in zip(canary, stable, strict=True))


def draw_answers(rng: Generator, rate: Floats) -> tuple[Floats, Counted]:
    """When and where the answers are given that `rate` expects by interval, slice and shard."""
    n = rng.poisson(rate)
    cell = np.repeat(np.arange(n.size), n.ravel())
    places = n.shape[1] * n.shape[2]
    return cell // places + rng.random(len(cell)), cell % places


def draw_scores(
    rng: Generator, judge: Judge, scenario: Scenario, rate: Floats, buckets: Buckets, baseline: int
) -> Delayed:
    """Scores of sampled answers. A user's score is their habitual one with a chance whose square is the intra-user
    correlation: that keeps the distribution of scores, whatever the habit."""
    at, place = draw_answers(rng, rate * judge.sampled_share)
    scores = np.arange(1.0, 6.0)
    usual = np.cumsum(score_shares(judge.mean, judge.standard_deviation))
    changed = np.cumsum(score_shares(judge.mean + judge.canary_difference, judge.standard_deviation))
    rank = rng.random(len(at))
    if (users := scenario.users) is not None:
        habit = rng.random(users.count)[buckets.users_at(rng, place)]
        rank = np.where(rng.random(len(at)) < math.sqrt(users.intra_user_correlation), habit, rank)
    stable = scores[np.minimum(4, np.searchsorted(usual, rank))]
    canary = scores[np.minimum(4, np.searchsorted(changed, rank))]
    canary = np.where(at >= judge.onset + baseline, canary, stable)

    def events(value: Floats, delay: float) -> Events:
        return Events.of(len(rate), scenario.interval_seconds, at, np.full(len(at), delay), place, value)

    return Delayed(events(canary, judge.canary_delay_seconds), events(stable, judge.stable_delay_seconds))


def draw_feedback(
    rng: Generator, feedback: Feedback, scenario: Scenario, rate: Floats, buckets: Buckets, baseline: int
) -> Delayed:
    """Thumbs: bad ones are 1, good ones 0. An answer that is judged alike under both arms waits equally long."""
    at, place = draw_answers(rng, rate * feedback.share)
    chance = buckets.habits(rng, feedback.negative_share, scenario.users).ravel()[place]
    rank, patience = rng.random(len(at)), rng.exponential(size=len(at))

    def events(multiple: Floats | float) -> Events:
        bad = rank < np.minimum(1, chance * multiple)
        delay = patience * np.where(bad, feedback.bad_delay_seconds, feedback.good_delay_seconds)
        return Events.of(len(rate), scenario.interval_seconds, at, delay, place, bad.astype(float))

    return Delayed(events(np.where(at >= feedback.onset + baseline, feedback.canary_multiple, 1.0)), events(1.0))


def score_shares(mean: float, standard_deviation: float) -> Floats:
    """Shares of the scores 1 to 5 with this mean and deviation that are least committal otherwise (largest entropy):
    p(x) proportional to exp(a x + b x^2), by Newton's method. ValueError if there are none."""
    x = np.arange(1.0, 6.0)
    moments = np.stack([x - mean, (x - mean) ** 2 - standard_deviation**2])
    natural = np.array([0.0, -1 / (2 * standard_deviation**2)])
    for _ in range(100):
        logs = natural @ moments
        p: Floats = np.exp(logs - logs.max())
        p = p / p.sum()
        gap = moments @ p
        if np.abs(gap).max() < 1e-12:
            return p
        slope = (moments * p) @ moments.T - np.outer(gap, gap)
        step = np.linalg.solve(slope, gap)
        natural = natural - step * min(1.0, 2.0 / (1e-12 + np.abs(step).max()))
    raise ValueError(
        f"no scores from 1 to 5 have mean {mean:g} and standard deviation {standard_deviation:g}: lower the deviation"
    )
