"""Test of a rate (bad requests of all requests): exact e-processes for two arms, stratified by interval."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from promptrollout.engine import encoding, wording
from promptrollout.engine.common_cause import MOST_PER_INTERVAL, SUSPECT, is_common, suspicion_after
from promptrollout.engine.contrast import TUNING, Contrast, half_width
from promptrollout.engine.evidence import Counts
from promptrollout.engine.judgement import Judgement, Levels
from promptrollout.engine.logspace import StartMixture, log_add, log_mean, log_threshold
from promptrollout.engine.signals import Signal

WORSE = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Alternatives of the breach test, as multiples of theta0."""
BETTER = (0.9, 0.8, 0.67, 0.5, 0.33)
"""Alternatives of the promotion test, as multiples of theta0."""
WORSE_ODDS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0)
"""Alternatives of a fixed bound's breach test, as multiples of the bound's odds (up to a total failure)."""
BETTER_ODDS = (0.1, 0.25, 0.5, 0.8)
"""Alternatives of a fixed bound's promotion test."""
SPOTLESS_ODDS = (0.1, 0.25, 0.5)
"""The same for the negligible rate, where only arms (nearly) without failures need it."""

SUSPECT_ODDS = (1.5, 5.0)
"""Alternatives by which stable comes under suspicion of being above `max` itself."""

_RHO = 0.02 * TUNING
"""Of the displayed interval: tuned for a rate of 2 %. Any fixed value is valid."""


@dataclass(frozen=True, slots=True)
class RateState:
    """Sums of one rate, of fixed size."""

    canary: float
    canary_bad: float
    stable: float
    stable_bad: float
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
    """Canary requests in the promotable intervals, and the bad ones among them."""
    promotable_bad: float
    contrast: Contrast

    def numbers(self) -> Iterator[float]:
        yield from (self.canary, self.canary_bad, self.stable, self.stable_bad)
        for mixture in (self.relative, self.floor, self.absolute):
            yield from mixture.numbers()
        yield from (self.suspicion, *self.promotion, self.promotable, self.promotable_bad)
        yield from self.contrast.numbers()


_LENGTH = 4 + (1 + len(WORSE)) + 2 * (1 + len(WORSE_ODDS)) + 1 + len(BETTER) + 2 + 5


def log_ratio(theta0: float, multiple: float, counts: Counts) -> float:
    """ln of one interval's e-value for p_c = multiple * theta0 * p_s against p_c = theta0 * p_s.

    e_c ln(multiple) + (e_c + e_s) ln r, r = (n_c theta0 + n_s) / (n_c theta + n_s), theta = multiple * theta0. Its
    mean is at most 1 under p_c <= theta0 p_s (multiple > 1) or p_c >= theta0 p_s (multiple < 1), whatever p_s is:
    with a = multiple * r and b = r it is at most exp(n_c p_c (a - 1) + n_s p_s (b - 1)), and that is 1 at
    p_c = theta0 p_s. The rare-event limit of Turner, Ly, Gruenwald (arXiv 2106.02693).
    """
    expected = counts.canary.n * theta0
    log_r = math.log1p(-expected * (multiple - 1) / (expected * multiple + counts.stable.n))
    return counts.canary.total * (math.log(multiple) + log_r) + counts.stable.total * log_r


def log_bound(bound: float, odds: float, requests: float, bad: float) -> float:
    """ln of the e-value of `bad` out of `requests` for `odds` times the bound's odds against the bound.

    The Bernoulli likelihood ratio, written so that it needs no rate: e ln g - n ln(1 + b (g - 1)). Its mean is at most
    1 for every rate on the bound's near side.
    """
    return bad * math.log(odds) - requests * math.log1p(bound * (odds - 1))


@dataclass(frozen=True, slots=True)
class RateTest:
    """Immutable parameters of one rate's test. Rates are shares of requests, margins are percent of stable's rate."""

    signal: Signal
    definition: str
    """Hash that a checkpoint must carry."""
    margin_percent: float | None = None
    """Promotion versus stable; None without `versusStable`."""
    rollback_percent: float | None = None
    """Breach versus stable; given exactly when the margin is."""
    maximum: float | None = None
    negligible: float = 0.005

    def __post_init__(self) -> None:
        if (self.margin_percent is None) != (self.rollback_percent is None):
            raise ValueError("versusStable needs both maxIncreasePercent and rollbackAbovePercent")
        if self.margin_percent is None and self.maximum is None:
            raise ValueError("an objective needs a bound: set max, versusStable or both")
        if self.maximum is not None and not 0 < self.maximum < 1:
            raise ValueError(
                f'max of a rate is a share between 0 and 1, for example "0.02" for 2 %, not {self.maximum}'
            )
        if not 0 < self.negligible < 0.5:
            raise ValueError(f"negligibleRate is a share above 0 and below 0.5, not {self.negligible}")

    @property
    def bounds(self) -> int:
        """How many bounds share the breach level."""
        return (self.margin_percent is not None) + (self.maximum is not None)

    def start(self) -> RateState:
        return RateState(
            canary=0.0,
            canary_bad=0.0,
            stable=0.0,
            stable_bad=0.0,
            relative=StartMixture.start(len(WORSE)),
            floor=StartMixture.start(len(WORSE_ODDS)),
            absolute=StartMixture.start(len(WORSE_ODDS)),
            suspicion=0.0,
            promotion=(0.0,) * len(BETTER),
            promotable=0.0,
            promotable_bad=0.0,
            contrast=Contrast(),
        )

    def observe(self, state: RateState, counts: Counts, *, promotable: bool) -> RateState:
        if not (counts.canary.is_usable and counts.stable.is_usable):
            return state
        # a scrape may fall between the two counters' increments: never more bad requests than requests
        n_c, e_c = counts.canary.n, min(counts.canary.total, counts.canary.n)
        n_s, e_s = counts.stable.n, min(counts.stable.total, counts.stable.n)
        counts = Counts.of(n_c, e_c, n_s, e_s)

        relative, floor, promotion = state.relative, state.floor, state.promotion
        if self.margin_percent is not None and self.rollback_percent is not None and n_c > 0:
            breach = 1 + self.rollback_percent / 100
            relative = relative.observe(log_ratio(breach, g, counts) for g in WORSE)
            floor = floor.observe(log_bound(self.negligible, g, n_c, e_c) for g in WORSE_ODDS)
            if promotable:
                margin = 1 + self.margin_percent / 100
                promotion = tuple(x + log_ratio(margin, g, counts) for x, g in zip(promotion, BETTER, strict=True))

        absolute, suspicion = state.absolute, state.suspicion
        if self.maximum is not None:
            gain = max(log_bound(self.maximum, g, n_s, e_s) for g in SUSPECT_ODDS)
            suspicion = suspicion_after(suspicion, n_s, gain)
            if n_c > 0 and not is_common(suspicion, e_s, n_s, self.maximum):
                gains = (log_bound(self.maximum, g, n_c, e_c) for g in WORSE_ODDS)
                absolute = absolute.observe(min(x, MOST_PER_INTERVAL) for x in gains)

        return RateState(
            canary=state.canary + n_c,
            canary_bad=state.canary_bad + e_c,
            stable=state.stable + n_s,
            stable_bad=state.stable_bad + e_s,
            relative=relative,
            floor=floor,
            absolute=absolute,
            suspicion=suspicion,
            promotion=promotion,
            promotable=state.promotable + (n_c if promotable else 0.0),
            promotable_bad=state.promotable_bad + (e_c if promotable else 0.0),
            contrast=state.contrast.add(n_c, e_c, n_s, e_s) if n_c > 0 and n_s > 0 else state.contrast,
        )

    def log_breach_relative(self, state: RateState) -> float:
        """ln evidence of "worse than stable by more than rollbackAbovePercent, and above the negligible rate"."""
        return min(state.relative.log_evidence(), state.floor.log_evidence())

    def log_promote_relative(self, state: RateState) -> float:
        """ln evidence against "worse than stable by the margin or more, and above the negligible rate"."""
        spotless = log_mean(
            [log_bound(self.negligible, g, state.promotable, state.promotable_bad) for g in SPOTLESS_ODDS]
        )
        return log_add(log_mean(state.promotion), spotless) - math.log(2)

    def log_promote_absolute(self, state: RateState, maximum: float) -> float:
        """ln evidence against "at or above max"."""
        return log_mean([log_bound(maximum, g, state.promotable, state.promotable_bad) for g in BETTER_ODDS])

    def judge(self, state: RateState, levels: Levels) -> Judgement:
        level = levels.breach / self.bounds
        crossed, passed = log_threshold(level), log_threshold(levels.promote)
        breach_relative = breach_absolute = common_cause = False
        inferior_still: list[str] = []
        if self.margin_percent is not None:
            breach_relative = self.log_breach_relative(state) >= crossed
            if self.log_promote_relative(state) < passed:
                inferior_still.append(f"within {self.margin_percent:g} % of stable")
        if self.maximum is not None:
            common_cause = state.suspicion >= SUSPECT
            breach_absolute = not common_cause and state.absolute.log_evidence() >= crossed
            if self.log_promote_absolute(state, self.maximum) < passed:
                inferior_still.append(f"below its maximum of {wording.share(self.maximum)}")
        breach = breach_relative or breach_absolute
        non_inferior = not breach and not inferior_still

        findings: list[str] = []
        if breach_relative:
            findings.append(f"worse by more than {self.rollback_percent:g} % with {wording.confidence(level)}")
        if breach_absolute:
            findings.append(f"above its maximum of {self._maximum_text()} with {wording.confidence(level)}")
        if non_inferior:
            findings.append(f"{self._passed_text(state, passed)} with {wording.confidence(levels.promote)}")
        if not state.canary:
            findings.append("no canary requests measured yet")
        elif not findings:
            findings.append("no breach, not shown to be " + " and ".join(inferior_still))
        if common_cause:
            findings.append(f"stable is above {self._maximum_text()} too, so that bound is suspended")
        if state.canary and not breach:
            findings.append(self._detectable_text(state, level))
        return Judgement(
            breach=breach,
            non_inferior=non_inferior,
            canary_samples=int(state.canary),
            stable_samples=int(state.stable),
            canary=wording.share(state.canary_bad / state.canary) if state.canary else "",
            stable=wording.share(state.stable_bad / state.stable) if state.stable else "",
            difference=self._difference_text(state),
            message=wording.fits(f"{self._values_text(state)}: {'; '.join(findings)}", 512),
            absolute_only=breach_absolute and not breach_relative,
            common_cause=common_cause,
        )

    def detectable(self, state: RateState, level: float) -> float:
        """Smallest canary rate, from the start on, whose expected evidence crosses 1/level on the requests seen so far.

        Solved per alternative with the intervals pooled into one, so about an even chance to have been seen. Above 1 if
        not even a total failure would have been. Infinity without requests.
        """
        if state.canary <= 0:
            return math.inf
        needed = log_threshold(level) + math.log(2 * len(WORSE))
        rates: list[float] = []
        if self.rollback_percent is not None:
            expected = state.canary * (1 + self.rollback_percent / 100)
            ratio = math.inf
            for g in WORSE:
                log_r = math.log1p(-expected * (g - 1) / (expected * g + state.stable))
                gain = math.log(g) + log_r
                if gain > 0:
                    ratio = min(ratio, (needed - state.stable_bad * log_r) / gain / state.canary)
            rates.append(max(ratio, self._detectable_bound(self.negligible, state.canary, needed)))
        enough = state.absolute.intervals >= needed / MOST_PER_INTERVAL
        if self.maximum is not None and state.suspicion < SUSPECT and enough:
            rates.append(self._detectable_bound(self.maximum, state.canary, needed))
        return min(rates, default=math.inf)

    @staticmethod
    def _detectable_bound(bound: float, requests: float, needed: float) -> float:
        return min((needed / requests + math.log1p(bound * (g - 1))) / math.log(g) for g in WORSE_ODDS)

    def encode(self, state: RateState) -> str:
        return encoding.encode(self.definition, state.numbers())

    def decode(self, text: str) -> RateState:
        numbers = encoding.decode(self.definition, text, _LENGTH)
        totals = [next(numbers) for _ in range(4)]
        relative = StartMixture.take(numbers, len(WORSE))
        floor, absolute = (StartMixture.take(numbers, len(WORSE_ODDS)) for _ in range(2))
        suspicion = next(numbers)
        promotion = tuple(next(numbers) for _ in BETTER)
        promotable, promotable_bad = next(numbers), next(numbers)
        finite = (*totals, suspicion, promotable, promotable_bad)
        if any(not (math.isfinite(x) and x >= 0) for x in finite) or not all(math.isfinite(x) for x in promotion):
            raise ValueError("damaged checkpoint (a sum is negative or not a number): its evidence restarts")
        return RateState(
            canary=totals[0],
            canary_bad=totals[1],
            stable=totals[2],
            stable_bad=totals[3],
            relative=relative,
            floor=floor,
            absolute=absolute,
            suspicion=suspicion,
            promotion=promotion,
            promotable=promotable,
            promotable_bad=promotable_bad,
            contrast=Contrast.take(numbers),
        )

    def _maximum_text(self) -> str:
        return wording.share(self.maximum or 0.0)

    def _values_text(self, state: RateState) -> str:
        if not state.canary:
            return self.signal.noun
        canary = wording.share(state.canary_bad / state.canary)
        if not state.stable:
            return f"{self.signal.noun} {canary} {wording.samples(state.canary, None)}, none on stable"
        stable = wording.share(state.stable_bad / state.stable)
        return f"{self.signal.noun} {canary} against {stable} on stable {wording.samples(state.canary, state.stable)}"

    def _passed_text(self, state: RateState, passed: float) -> str:
        parts: list[str] = []
        if self.margin_percent is not None:
            alone = log_mean(state.promotion) - math.log(2) >= passed
            negligible = "" if alone else f" or below the negligible {wording.share(self.negligible)}"
            parts.append(f"worse by less than {self.margin_percent:g} %{negligible}")
        if self.maximum is not None:
            parts.append(f"below its maximum of {self._maximum_text()}")
        return " and ".join(parts)

    def _detectable_text(self, state: RateState, level: float) -> str:
        rate = self.detectable(state, level)
        if rate > 1:
            return "too few requests to have seen even a total failure"
        return f"a rise to {wording.share(rate)} or more would have been seen"

    @staticmethod
    def _difference_text(state: RateState) -> str:
        """Anytime-valid interval for the difference in share (asymptotic: AsympCS on the stratified sums)."""
        sums = state.contrast
        if sums.weight <= 0:
            return ""
        v_c, v_s = (
            p * (1 - p)
            for p in (
                (state.canary_bad + 0.5) / (state.canary + 1),
                (state.stable_bad + 0.5) / (state.stable + 1),
            )
        )
        middle = (sums.canary - sums.stable) / sums.weight
        variance = v_c * sums.canary_spread + v_s * sums.stable_spread
        width = half_width(variance, _RHO, wording.DISPLAY_LEVEL) / sums.weight
        return wording.fits(wording.share_difference(middle - width, middle + width), 96)
