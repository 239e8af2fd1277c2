"""Counts of feedback and scores by the age of the answer: of an arm, or of each of its shards."""

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
    """The index in names.AGES of an answer of this age; None: it is too old."""
    index = bisect_left(_LIMITS, seconds)
    return index if index < len(_LIMITS) else None


@dataclass(eq=False, slots=True)
class Moments:
    """The moments of one score, by age and then by group."""

    count: list[int]
    sum: list[float]
    sumsq: list[float]


@dataclass(eq=False, slots=True)
class Votes:
    """Flat lists, by age and then by group, so that a copy is cheap."""

    groups: int = 1
    feedback: dict[Rating, list[int]] = field(default_factory=dict)
    scores: dict[str, Moments] = field(default_factory=dict)
    """By name; all of these are exported."""

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
        """Add these scores, from zero."""
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
