"""Does the canary get the share of requests that its weight says? If not, the arms cannot be compared: nothing
advances."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from promptrollout.engine.objectives import wording
from promptrollout.engine.objectives.judgement import Judgement
from promptrollout.engine.statistics import encoding
from promptrollout.engine.statistics.dispersion import LEAST_SHARDS, SHARDS
from promptrollout.engine.statistics.evidence import Counts

NAME = "sample-ratio"
"""Of its row in the analysis table."""
SIGNAL = "SampleRatio"
MISMATCH = 4.0
"""Standard errors, by the jackknife over shards. Counting requests as independent raised 70 to 90 % false alarms with
sticky users."""
LEAST_OFF = 0.02
"""Of the requests that the canary should get: smaller deviations harm no comparison, however certain they are."""
LEAST_OFF_OF_USERS = 0.15
"""The same where users stay on their arm: they ask more or less often as they like the answers, which is no
mismatch."""
_ZEROS = (0.0,) * SHARDS


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Sums of fixed size over the intervals in which every pod had confirmed the weight."""

    canary: float = 0.0
    """Requests."""
    stable: float = 0.0
    expected: float = 0.0
    """Requests that the canary should have had by its weights."""
    least_off: float = LEAST_OFF_OF_USERS
    surplus: tuple[float, ...] = ()
    """By shard: (1 - w) n_c - w n_s. In single precision, as in a checkpoint; empty until shards are known."""

    def observe(self, strata: Sequence[Counts], weight: float) -> SampleRatio:
        """After one interval at `weight`, a share between 0 and 1."""
        canary, stable, expected = self.canary, self.stable, self.expected
        surplus = self.surplus or _ZEROS
        for counts in strata:
            c, s = counts.canary, counts.stable
            if not (c.is_usable and s.is_usable and len(c.shards) == len(s.shards) == SHARDS):
                continue
            canary, stable, expected = canary + c.n, stable + s.n, expected + weight * (c.n + s.n)
            pairs = zip(surplus, c.shards, s.shards, strict=True)
            surplus = tuple(array("f", [t + (1 - weight) * a[0] - weight * b[0] for t, a, b in pairs]))
        surplus = surplus if canary + stable > 0 else self.surplus
        return SampleRatio(canary, stable, expected, self.least_off, surplus)

    def deviation(self) -> float:
        """How many standard errors the canary's share is off; 0 while too few shards have any requests."""
        if sum(t != 0 for t in self.surplus) < LEAST_SHARDS:
            return 0.0
        total = math.fsum(self.surplus)
        mean = total / SHARDS
        variance = SHARDS / (SHARDS - 1) * math.fsum((t - mean) ** 2 for t in self.surplus)
        return abs(total) / math.sqrt(variance) if variance > 0 else math.inf if total else 0.0

    @property
    def mismatch(self) -> bool:
        return abs(self.canary - self.expected) > self.least_off * self.expected and self.deviation() > MISMATCH

    def judge(self) -> Judgement:
        n = self.canary + self.stable
        found, wanted = (self.canary / n, self.expected / n) if n else (0.0, 0.0)
        said = f"the canary gets {wording.share(found)} of the requests and should get {wording.share(wanted)}"
        if not n:
            said = "not measured yet"
        elif self.mismatch:
            said += (
                f" ({self.deviation():.1f} standard errors): the arms cannot be compared. Look for requests that skip "
                "the gateway, one-sided retries, or a shared key"
            )
        return Judgement(
            breach=False,
            non_inferior=bool(n) and not self.mismatch,
            canary_samples=int(self.canary),
            stable_samples=int(self.stable),
            canary=wording.share(found) if n else "",
            stable=wording.share(wanted) if n else "",
            difference="",
            message=said,
        )

    def encode(self) -> str:
        return encoding.encode(NAME, (self.canary, self.stable, self.expected, self.least_off), self.surplus)

    @classmethod
    def decode(cls, text: str) -> SampleRatio:
        """ValueError if the text is not the state of a sample ratio."""
        numbers, singles = encoding.decode(NAME, text, 4, (0, SHARDS))
        canary, stable, expected, least_off = numbers
        surplus = tuple(singles)
        if (
            not all(map(math.isfinite, (canary, stable, expected, least_off, *surplus)))
            or min(canary, stable, expected) < 0
        ):
            raise ValueError("damaged checkpoint (a sum is negative or not a number): its evidence restarts")
        return cls(canary, stable, expected, least_off, surplus)
