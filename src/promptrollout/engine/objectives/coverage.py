"""Were both arms' answers judged alike? Where judging fails for one of them more often, the scores that are left are
no fair sample: nothing is concluded from them.

Each stratum of an interval is a bet that a judgement is missing more, or less, often in the canary than in stable; a
mixture of both (the e-value of Turner, Ly and Gruenwald, see `bernoulli`). It may differ by chance at most once in a
thousand rollouts, however often one looks.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from promptrollout.engine.objectives import wording
from promptrollout.engine.statistics.bernoulli import two_arm_bet
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.engine.statistics.logspace import log_mix

MULTIPLES = (2.0, 0.5)
"""Of stable's share of missing judgements, by which the canary's is bet to differ."""
DIFFERS = math.log(1000)
LEAST_OFF = 0.02
"""Smaller differences harm no comparison, however certain they are."""


class Coverage(NamedTuple):
    """Sums of fixed size, in single precision as in a checkpoint."""

    canary: float = 0.0
    """Answers that were to be judged, and those among them whose judgement is missing."""
    canary_missing: float = 0.0
    stable: float = 0.0
    stable_missing: float = 0.0
    more: float = 0.0
    """ln e of the bet that the canary's are missing more often."""
    less: float = 0.0

    def observe(self, strata: Sequence[Counts]) -> Coverage:
        """After one interval."""
        asked = [(_asked(counts.canary), _asked(counts.stable)) for counts in strata]
        if not any(c.total or s.total for c, s in asked) and not (self.canary_missing or self.stable_missing):
            return self
        rate = self.stable_missing / self.stable if self.stable else 0.0
        bets = [self.more, self.less]
        for c, s in asked:
            if c.n > 0 and s.n > 0:
                counts = Counts(c, s)
                for i, multiple in enumerate(MULTIPLES):
                    bets[i] += two_arm_bet(1.0, multiple, rate, c.n, s.n).log_value(counts)
        canary, canary_missing = sum(c.n for c, _ in asked), sum(c.total for c, _ in asked)
        stable, stable_missing = sum(s.n for _, s in asked), sum(s.total for _, s in asked)
        of_canary = (self.canary + canary, self.canary_missing + canary_missing)
        of_stable = (self.stable + stable, self.stable_missing + stable_missing)
        return Coverage(*array("f", (*of_canary, *of_stable, *bets)))

    @property
    def differs(self) -> bool:
        if not (self.canary and self.stable):
            return False
        off = abs(self.canary_missing / self.canary - self.stable_missing / self.stable)
        return off > LEAST_OFF and log_mix((self.more, self.less), [0.5, 0.5]) >= DIFFERS

    def text(self) -> str:
        canary, stable = self.canary_missing / self.canary, self.stable_missing / self.stable
        shares = f"{wording.share(canary)} of the canary's answers and {wording.share(stable)} of stable's"
        return f"{shares} could not be judged, so the scores cannot be compared"

    @classmethod
    def read(cls, singles: Iterator[float]) -> Coverage:
        """ValueError if they are not the sums of a coverage."""
        found = cls(*islice(singles, len(cls._fields)))
        if not all(map(math.isfinite, found)) or min(found[:4]) < 0:
            raise ValueError("damaged checkpoint (these are no shares of judged answers): its evidence restarts")
        return found


def _asked(arm: Arm) -> Arm:
    return Arm(arm.n + arm.missing, arm.missing)
