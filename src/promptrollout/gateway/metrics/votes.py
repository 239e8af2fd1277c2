"""Counts of feedback and scores by the age of the answer that they are on: of an arm, or of each of its shards."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from promptrollout.api.names import AGES

Rating = Literal["positive", "negative"]
RATINGS: Final[tuple[Rating, ...]] = ("positive", "negative")
_LIMITS: Final = tuple(AGES.values())


def age_of(seconds: float) -> int | None:
    """Where an answer of this age stands in names.AGES; None: it is too old."""
    found = bisect_left(_LIMITS, seconds)
    return found if found < len(_LIMITS) else None


@dataclass(eq=False, slots=True)
class Moments:
    """Of the scores of one name, by age and then by group."""

    count: list[int]
    sum: list[float]
    sumsq: list[float]


@dataclass(eq=False, slots=True)
class Votes:
    """Flat lists, so that a copy is cheap: by age and then by group."""

    groups: int = 1
    feedback: dict[Rating, list[int]] = field(default_factory=dict)
    scores: dict[str, Moments] = field(default_factory=dict)
    """By name; what is here is exported."""

    def __post_init__(self) -> None:
        self.feedback = self.feedback or {rating: [0] * len(AGES) * self.groups for rating in RATINGS}

    def rate(self, rating: Rating, age: int, group: int = 0) -> None:
        self.feedback[rating][age * self.groups + group] += 1

    def score(self, name: str, value: float, age: int, group: int = 0) -> None:
        if name not in self.scores:
            self.expect((name,))
        moments, at = self.scores[name], age * self.groups + group
        moments.count[at] += 1
        moments.sum[at] += value
        moments.sumsq[at] += value * value

    def expect(self, names: Iterable[str]) -> None:
        """Have these scores, at zero where nothing was counted."""
        size = len(AGES) * self.groups
        for name in names:
            if name not in self.scores:
                self.scores[name] = Moments([0] * size, [0.0] * size, [0.0] * size)

    def copy(self) -> Votes:
        return Votes(
            self.groups,
            {rating: counts[:] for rating, counts in self.feedback.items()},
            {name: Moments(each.count[:], each.sum[:], each.sumsq[:]) for name, each in self.scores.items()},
        )
