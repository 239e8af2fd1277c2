"""The sums of a mean's test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from promptrollout.engine.objectives.coverage import Coverage
from promptrollout.engine.statistics import dispersion
from promptrollout.engine.statistics.common_cause import Cusums, suspicion_of
from promptrollout.engine.statistics.contrast import EFFECTS, Contrast
from promptrollout.engine.statistics.dispersion import Dispersion
from promptrollout.engine.statistics.evidence import Arm
from promptrollout.engine.statistics.logspace import StartMixture

SUSPECT_EFFECTS = (0.03, 0.12)
"""Those by which stable comes under suspicion of being beyond the absolute bound itself. The least is the canary's own:
else both arms a little beyond it would cast no suspicion on stable, and roll the canary back."""

_NOTHING = Arm(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class MeanState:
    """Sums of one mean, of fixed size."""

    canary: Arm
    """Of all intervals, as `stable`: they estimate variances, for later intervals only."""
    stable: Arm
    shown: Arm
    """Of stable, since the canary met its first user: what people read beside the canary's."""
    scale: float
    """Standard deviation of one sample, fixed when the first interval is used; 0 until then."""
    effective: float
    """Canary samples of the intervals used, each divided by its interval's dispersion."""
    relative: StartMixture
    absolute: StartMixture
    cusums: Cusums
    """Of stable being beyond the absolute bound itself; see common_cause."""
    contrast: Contrast
    """Of all intervals used, for the interval of the difference."""
    promotion: Contrast
    """Of the promotable ones."""
    promotable: float
    """Canary samples in the promotable intervals used, their sum, and the variance of that sum."""
    promotable_total: float
    promotable_spread: float
    coverage: Coverage
    dispersion: Dispersion

    @property
    def suspicion(self) -> float:
        """ln, at least 0."""
        return suspicion_of(self.cusums)

    def numbers(self) -> Iterator[float]:
        for arm in (self.canary, self.stable):
            yield from (arm.n, arm.total, arm.total_squared)
        yield from (self.shown.n, self.shown.total)
        yield from (self.scale, self.effective)
        yield from self.relative.numbers()
        yield from self.absolute.numbers()
        yield from self.contrast.numbers()
        yield from self.promotion.numbers()
        yield from (self.promotable, self.promotable_total, self.promotable_spread)

    def singles(self) -> Iterator[float]:
        yield from self.cusums
        yield from self.coverage
        yield from self.dispersion.singles()

    @classmethod
    def start(cls) -> MeanState:
        return cls(
            canary=_NOTHING,
            stable=_NOTHING,
            shown=_NOTHING,
            scale=0.0,
            effective=0.0,
            relative=StartMixture.start(len(EFFECTS)),
            absolute=StartMixture.start(len(EFFECTS)),
            cusums=(0.0,) * len(SUSPECT_EFFECTS),
            contrast=Contrast(),
            promotion=Contrast(),
            promotable=0.0,
            promotable_total=0.0,
            promotable_spread=0.0,
            coverage=Coverage(),
            dispersion=Dispersion(),
        )

    @classmethod
    def read(cls, numbers: Iterator[float], singles: Iterator[float]) -> MeanState:
        """The inverse of `numbers` and `singles`; ValueError if they are not such sums."""
        canary, stable = (Arm(next(numbers), next(numbers), next(numbers)) for _ in range(2))
        shown = Arm(next(numbers), next(numbers))
        scale, effective = next(numbers), next(numbers)
        relative, absolute = (StartMixture.read(numbers, len(EFFECTS)) for _ in range(2))
        contrast, promotion = (Contrast.read(numbers) for _ in range(2))
        promotable = [next(numbers) for _ in range(3)]
        cusums = tuple(islice(singles, len(SUSPECT_EFFECTS)))
        finite = (scale, effective, *cusums, *promotable)
        if not (canary.is_usable and stable.is_usable and shown.is_usable) or any(
            not (math.isfinite(x) and x >= 0) for x in finite
        ):
            raise ValueError("damaged checkpoint (a sum is negative or not a number): its evidence restarts")
        return cls(
            canary=canary,
            stable=stable,
            shown=shown,
            scale=scale,
            effective=effective,
            relative=relative,
            absolute=absolute,
            cusums=cusums,
            contrast=contrast,
            promotion=promotion,
            promotable=promotable[0],
            promotable_total=promotable[1],
            promotable_spread=promotable[2],
            coverage=Coverage.read(singles),
            dispersion=Dispersion.read(singles),
        )


SINGLES = tuple(n + len(SUSPECT_EFFECTS) + len(Coverage._fields) for n in dispersion.SINGLES)
"""Of `singles`: without shards and with them."""
LENGTH = 6 + 2 + 2 + 2 * (1 + len(EFFECTS)) + 2 * 5 + 3
"""Of `numbers`."""
