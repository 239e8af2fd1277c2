"""A run's evidence as numbers over time, computed by the engine's tests."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from promptrollout.api.rollout import ObjectiveStatus, Snapshot
from promptrollout.engine.lifecycle.analysis import levels
from promptrollout.engine.objectives.definitions import make_test
from promptrollout.engine.objectives.judgement import Levels, ObjectiveTest
from promptrollout.engine.objectives.signals import signal_of
from promptrollout.simulation.world import Look

MOST = 4.0
"""Stronger evidence than ten thousand to one is shown as that."""
HALVINGS = 12
_UNITS = {"share": ("points", 100.0), "usd": ("USD", 1.0)}
"""As people read them: the name of the unit, and how many of it the signal's is. Others are as they are."""


@dataclass(frozen=True, slots=True)
class Point:
    """One objective after one interval. Evidence is the common logarithm of the odds at which it would decide: log10 of
    1 over the strictest level."""

    seconds: int
    breach: float
    promotion: float
    low: float | None
    """Of the interval for canary minus stable, as people read it; None while it is unknown."""
    high: float | None


@dataclass(frozen=True, slots=True)
class Trace:
    objective: str
    unit: str
    """Of the difference: `points`, `USD`, or the signal's own."""
    breach_threshold: float
    promotion_threshold: float
    points: tuple[Point, ...]


def traces(rules: Snapshot, looks: tuple[Look, ...], attempt: int = 1) -> list[Trace]:
    """One for each objective. `looks`: of `simulate(..., looks=True)`."""
    at = levels(rules, attempt)
    found = []
    for objective in rules.objectives:
        test = make_test(objective)
        own = signal_of(objective).unit
        unit, scale = _UNITS.get(own, (own, 1.0))
        rows = [(look.seconds, row) for look in looks for row in look.rows if row.name == objective.name]
        points = tuple(_point(test, at, scale, seconds, row) for seconds, row in rows)
        found.append(Trace(objective.name, unit, -math.log10(at.breach), -math.log10(at.promote), points))
    return found


def _point(test: ObjectiveTest, at: Levels, scale: float, seconds: int, row: ObjectiveStatus) -> Point:
    state = test.decode(row.checkpoint) if row.checkpoint else test.start()

    low, high = (None, None) if (ends := test.difference(state)) is None else (end * scale for end in ends)
    breach = strictest(lambda level: test.breached(state, Levels(breach=level, promote=at.promote)))
    proof = strictest(lambda level: test.passed(state, Levels(breach=10**-MOST, promote=level)))
    return Point(seconds, breach, proof, low, high)


def strictest(decides: Callable[[float], bool]) -> float:
    """log10 of 1 over the smallest level at which it decides, from 0 to MOST: an anytime-valid p-value, upside down."""
    low, high = 0.0, MOST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if decides(10**-middle) else (low, middle)
    return low
