"""The bets of a rate's test, and its sums."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from promptrollout.engine.statistics import dispersion
from promptrollout.engine.statistics.common_cause import Cusums, suspicion_of
from promptrollout.engine.statistics.contrast import Contrast
from promptrollout.engine.statistics.dispersion import Dispersion
from promptrollout.engine.statistics.logspace import StartMixture
from promptrollout.engine.statistics.pending import Pending

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
SUSPECT_ODDS = (1.25, 1.5, 5.0)
"""Alternatives by which stable comes under suspicion of being above `max` itself. The least is the canary's own: else
both arms a little above it would cast no suspicion on stable, and roll the canary back."""
MEANING = 2
"""Of the sums: 2 since one e-process tests "neither worse than stable nor above the negligible rate" interval by
interval."""


class StepCounts(NamedTuple):
    """Requests in the step's promotable intervals, and the bad ones among them; in single precision as in a
    checkpoint."""

    canary: float = 0.0
    canary_bad: float = 0.0
    stable: float = 0.0
    stable_bad: float = 0.0
    weighed: float = 0.0
    """The canary's, each divided by its interval's dispersion, and the bad ones likewise."""
    weighed_bad: float = 0.0

    def add(self, n_c: float, e_c: float, n_s: float, e_s: float, dispersion: float) -> StepCounts:
        added = (n_c, e_c, n_s, e_s, n_c / dispersion, e_c / dispersion)
        return StepCounts(*array("f", [x + y for x, y in zip(self, added, strict=True)]))


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
    """Breach versus stable, and above the negligible rate."""
    absolute: StartMixture
    """Breach of `max`."""
    cusums: Cusums
    """Of stable being above `max` itself; see common_cause."""
    promotion: tuple[float, ...]
    """ln e per alternative in BETTER, over the promotable intervals."""
    step: StepCounts
    contrast: Contrast
    pending: Pending
    """What is not in `effective`, `relative`, `promotion` and `contrast` yet."""
    dispersion: Dispersion

    @property
    def suspicion(self) -> float:
        """ln, at least 0."""
        return suspicion_of(self.cusums)

    def numbers(self) -> Iterator[float]:
        yield from (self.canary, self.canary_bad, self.stable, self.stable_bad)
        yield from (self.recent, self.recent_bad, self.effective)
        for mixture in (self.relative, self.absolute):
            yield from mixture.numbers()
        yield from self.promotion
        yield from self.contrast.numbers()

    def singles(self) -> Iterator[float]:
        yield from (*self.cusums, *self.step, *self.pending)
        yield from self.dispersion.singles()

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
            absolute=StartMixture.start(len(WORSE_ODDS)),
            cusums=(0.0,) * len(SUSPECT_ODDS),
            promotion=(0.0,) * len(BETTER),
            step=StepCounts(),
            contrast=Contrast(),
            pending=Pending(),
            dispersion=Dispersion(),
        )

    @classmethod
    def read(cls, numbers: Iterator[float], singles: Iterator[float]) -> RateState:
        """The inverse of `numbers` and `singles`; ValueError if they are not such sums."""
        totals = [next(numbers) for _ in range(7)]
        relative = StartMixture.read(numbers, len(WORSE))
        absolute = StartMixture.read(numbers, len(WORSE_ODDS))
        promotion = tuple(next(numbers) for _ in BETTER)
        contrast = Contrast.read(numbers)
        cusums = tuple(islice(singles, len(SUSPECT_ODDS)))
        step = StepCounts(*islice(singles, len(StepCounts._fields)))
        finite = (*totals, *cusums, *step)
        if any(not (math.isfinite(x) and x >= 0) for x in finite) or not all(math.isfinite(x) for x in promotion):
            raise ValueError("damaged checkpoint (a sum is negative or not a number): its evidence restarts")
        return cls(
            canary=totals[0],
            canary_bad=totals[1],
            stable=totals[2],
            stable_bad=totals[3],
            recent=totals[4],
            recent_bad=totals[5],
            effective=totals[6],
            relative=relative,
            absolute=absolute,
            cusums=cusums,
            promotion=promotion,
            step=step,
            contrast=contrast,
            pending=Pending.read(singles),
            dispersion=Dispersion.read(singles),
        )


LENGTH = 7 + (1 + len(WORSE)) + (1 + len(WORSE_ODDS)) + len(BETTER) + 5
"""Of `numbers`."""
SINGLES = tuple(n + len(SUSPECT_ODDS) + len(StepCounts._fields) + len(Pending._fields) for n in dispersion.SINGLES)
"""Of `singles`: without shards and with them."""
