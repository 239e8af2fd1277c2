"""The bets of a rate's test, and its sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from promptrollout.engine.statistics.contrast import Contrast
from promptrollout.engine.statistics.dispersion import Dispersion
from promptrollout.engine.statistics.logspace import StartMixture

Grid = dict[float, float]
"""Alternatives and their weights, which sum to 1."""

WORSE: Grid = {1.25: 0.05, 1.6: 0.4, 3.0: 0.45, 10.0: 0.1}
"""Of the breach test, as multiples of theta0. Few and far apart: each costs ln(1/weight) of evidence, and one catches
whatever lies within a factor of 1.5."""
BETTER: Grid = {0.8: 0.2, 0.67: 0.5, 0.5: 0.2, 0.33: 0.1}
"""Of the promotion test, as multiples of theta0; 0.67 is a canary like stable at a margin of 50 %."""
WORSE_ODDS: Grid = {1.25: 0.2, 2.0: 0.2, 4.0: 0.2, 10.0: 0.2, 100.0: 0.2}
"""Of a fixed bound's breach test, as multiples of the bound's odds (up to a total failure)."""
BETTER_ODDS: Grid = {0.1: 0.25, 0.25: 0.25, 0.5: 0.25, 0.8: 0.25}
"""Of a fixed bound's promotion test."""
SPOTLESS_ODDS: Grid = {0.01: 0.65, 0.25: 0.2, 0.5: 0.15}
"""The same for the negligible rate, where only arms (nearly) without failures need it."""


@dataclass(frozen=True, slots=True)
class RateState:
    """Sums of one rate, of fixed size."""

    canary: float
    canary_bad: float
    stable: float
    stable_bad: float
    recent: float
    """Requests on stable and bad ones among them, fading: its rate as the next interval is expected to show it."""
    recent_bad: float
    effective: float
    """Canary requests, each divided by its interval's dispersion."""
    relative: StartMixture
    """Breach versus stable."""
    floor: StartMixture
    """Breach above the negligible rate."""
    absolute: StartMixture
    """Breach of `max`."""
    suspicion: float
    """Of stable being above `max` itself; see common_cause."""
    promotion: tuple[float, ...]
    """ln e per alternative in BETTER, over the promotable intervals."""
    promotable: float
    """Canary requests in the promotable intervals, and the bad ones among them, divided by the interval's
    dispersion."""
    promotable_bad: float
    contrast: Contrast
    dispersion: Dispersion

    def numbers(self) -> Iterator[float]:
        yield from (self.canary, self.canary_bad, self.stable, self.stable_bad)
        yield from (self.recent, self.recent_bad, self.effective)
        for mixture in (self.relative, self.floor, self.absolute):
            yield from mixture.numbers()
        yield from (self.suspicion, *self.promotion, self.promotable, self.promotable_bad)
        yield from self.contrast.numbers()

    @classmethod
    def start(cls) -> RateState:
        return cls(
            canary=0.0,
            canary_bad=0.0,
            stable=0.0,
            stable_bad=0.0,
            recent=0.0,
            recent_bad=0.0,
            effective=0.0,
            relative=StartMixture.start(len(WORSE)),
            floor=StartMixture.start(len(WORSE_ODDS)),
            absolute=StartMixture.start(len(WORSE_ODDS)),
            suspicion=0.0,
            promotion=(0.0,) * len(BETTER),
            promotable=0.0,
            promotable_bad=0.0,
            contrast=Contrast(),
            dispersion=Dispersion(),
        )

    @classmethod
    def read(cls, numbers: Iterator[float], singles: Iterator[float]) -> RateState:
        """The inverse of `numbers` and the dispersion's `singles`; ValueError if they are not such sums."""
        totals = [next(numbers) for _ in range(7)]
        relative = StartMixture.read(numbers, len(WORSE))
        floor, absolute = (StartMixture.read(numbers, len(WORSE_ODDS)) for _ in range(2))
        suspicion = next(numbers)
        promotion = tuple(next(numbers) for _ in BETTER)
        promotable, promotable_bad = next(numbers), next(numbers)
        finite = (*totals, suspicion, promotable, promotable_bad)
        if any(not (math.isfinite(x) and x >= 0) for x in finite) or not all(math.isfinite(x) for x in promotion):
            raise ValueError("damaged checkpoint (a sum is negative or not a number): its evidence restarts")
        contrast = Contrast.read(numbers)
        return cls(
            canary=totals[0],
            canary_bad=totals[1],
            stable=totals[2],
            stable_bad=totals[3],
            recent=totals[4],
            recent_bad=totals[5],
            effective=totals[6],
            relative=relative,
            floor=floor,
            absolute=absolute,
            suspicion=suspicion,
            promotion=promotion,
            promotable=promotable,
            promotable_bad=promotable_bad,
            contrast=contrast,
            dispersion=Dispersion.read(singles),
        )


LENGTH = 7 + (1 + len(WORSE)) + 2 * (1 + len(WORSE_ODDS)) + 1 + len(BETTER) + 2 + 5
"""Of `numbers`."""
