"""Test of a mean (cost per request): anytime-valid for sums with estimated variances, stratified by interval."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from promptrollout.engine import encoding, wording
from promptrollout.engine.common_cause import MOST_PER_INTERVAL, SUSPECT, is_common, suspicion_after
from promptrollout.engine.contrast import TUNING, Contrast, half_width, log_one_sided
from promptrollout.engine.evidence import Arm, Counts
from promptrollout.engine.judgement import Judgement, Levels
from promptrollout.engine.logspace import StartMixture, log_threshold
from promptrollout.engine.signals import Signal

GATE = 200
"""Canary requests before a mean is judged at all: estimated variances make its validity asymptotic."""
EFFECTS = (0.03, 0.06, 0.12)
"""Alternatives of the breach test: rise over the bound, in standard deviations of one request.

With 0.12 a large rise crosses well before the gate, so larger alternatives would buy nothing, and they would let single
expensive requests decide."""
SUSPECT_EFFECT = 0.12
"""The one by which stable comes under suspicion of being above `max` itself."""

LEARN = 50
"""Requests of both arms before the first interval is used: they set the scale."""
PRIOR = 20
"""Pseudo-requests that shrink an arm's variance to that of both arms together."""
LEAST_CV = 0.01
"""Standard deviations count as at least this share of the mean, so that constant costs are no infinite certainty."""

NO_VARIANCE = 1e-100
"""Squares of doubles underflow not far below; no price is that small."""

_NOTHING = Arm(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class MeanState:
    """Sums of one mean, of fixed size."""

    canary: Arm
    """Of all intervals, as `stable`: they estimate variances, for later intervals only."""
    stable: Arm
    scale: float
    """Standard deviation of one request, fixed when the first interval is used; 0 until then."""
    relative: StartMixture
    absolute: StartMixture
    suspicion: float
    """Of stable being above `max` itself; see common_cause."""
    contrast: Contrast
    """Of all intervals used, for the interval of the difference."""
    promotion: Contrast
    """Of the promotable ones."""
    promotable: float
    """Canary requests in the promotable intervals used, their sum, and the variance of that sum."""
    promotable_total: float
    promotable_spread: float

    def numbers(self) -> Iterator[float]:
        for arm in (self.canary, self.stable):
            yield from (arm.n, arm.total, arm.total_squared)
        yield self.scale
        yield from self.relative.numbers()
        yield from self.absolute.numbers()
        yield self.suspicion
        yield from self.contrast.numbers()
        yield from self.promotion.numbers()
        yield from (self.promotable, self.promotable_total, self.promotable_spread)


_LENGTH = 6 + 1 + 2 * (1 + len(EFFECTS)) + 1 + 2 * 5 + 3


def variances(canary: Arm, stable: Arm) -> tuple[float, float] | None:
    """Variance of one request in each arm, shrunk to both arms' together; None before LEARN requests or without scale.

    Taken around each arm's mean over all its intervals: shared drift widens it, which only makes the test slower.
    """
    n = canary.n + stable.n
    if n < LEARN:
        return None
    squares = [_squares(arm) for arm in (canary, stable)]
    least = (LEAST_CV * (canary.total + stable.total) / n) ** 2
    pooled = max(sum(squares) / (n - 2), least)
    if pooled < NO_VARIANCE:
        return None
    v_c, v_s = (
        max((own + PRIOR * pooled) / (max(arm.n - 1, 0.0) + PRIOR), least)
        for own, arm in zip(squares, (canary, stable), strict=True)
    )
    return v_c, v_s


def _squares(arm: Arm) -> float:
    """Sum of squared deviations from the arm's mean; rounding never makes it negative."""
    return max(arm.total_squared - arm.total / arm.n * arm.total, 0.0) if arm.n > 0 else 0.0


def log_bets(scale: float, total: float, variance: float) -> Iterator[float]:
    """ln e-value of one interval per effect d: lambda S - lambda^2 V / 2 with lambda = d / scale.

    `total` is the interval's sum of excess over the bound, `variance` its variance as earlier intervals know it. Capped
    at MOST_PER_INTERVAL, versus stable too: it keeps a heavy tail's single requests from deciding. With a coefficient
    of variation of 2.9, no rise and level 5 %, false breaches were 0 of 200 instead of 20; a late doubling takes seven
    intervals instead of three.
    """
    for effect in EFFECTS:
        bet = effect / scale
        yield min(bet * total - bet * bet * variance / 2, MOST_PER_INTERVAL)


@dataclass(frozen=True, slots=True)
class MeanTest:
    """Immutable parameters of one mean's test: `maximum` in the signal's unit, margins in percent of stable's mean."""

    signal: Signal
    definition: str
    """Hash that a checkpoint must carry."""
    margin_percent: float | None = None
    """Promotion versus stable; None without `versusStable`."""
    rollback_percent: float | None = None
    """Breach versus stable; given exactly when the margin is."""
    maximum: float | None = None
    min_samples: int = GATE
    """Below max(this, GATE) canary requests nothing is judged."""

    def __post_init__(self) -> None:
        if (self.margin_percent is None) != (self.rollback_percent is None):
            raise ValueError("versusStable needs both maxIncreasePercent and rollbackAbovePercent")
        if self.margin_percent is None and self.maximum is None:
            raise ValueError("an objective needs a bound: set max, versusStable or both")
        if self.maximum is not None and not self.maximum > 0:
            raise ValueError(f"max must be above 0, not {self.maximum}")

    @property
    def bounds(self) -> int:
        """How many bounds share the breach level."""
        return (self.margin_percent is not None) + (self.maximum is not None)

    @property
    def gate(self) -> int:
        return max(self.min_samples, GATE)

    def start(self) -> MeanState:
        return MeanState(
            canary=_NOTHING,
            stable=_NOTHING,
            scale=0.0,
            relative=StartMixture.start(len(EFFECTS)),
            absolute=StartMixture.start(len(EFFECTS)),
            suspicion=0.0,
            contrast=Contrast(),
            promotion=Contrast(),
            promotable=0.0,
            promotable_total=0.0,
            promotable_spread=0.0,
        )

    def observe(self, state: MeanState, counts: Counts, *, promotable: bool) -> MeanState:
        if not (counts.canary.is_usable and counts.stable.is_usable):
            return state
        canary, stable = counts.canary, counts.stable
        # what this interval weighs is fixed before it is looked at: variances of the earlier ones
        known = variances(state.canary, state.stable)
        learned = _add(state.canary, canary), _add(state.stable, stable)
        if known is None:
            return replace(state, canary=learned[0], stable=learned[1])
        v_c, v_s = known
        scale = state.scale or math.sqrt((v_c + v_s) / 2)
        n_c, n_s = canary.n, stable.n

        relative, contrast, promotion = state.relative, state.contrast, state.promotion
        if n_c > 0 and n_s > 0:
            contrast = contrast.add(n_c, canary.total, n_s, stable.total, v_c, v_s)
            if promotable:
                promotion = promotion.add(n_c, canary.total, n_s, stable.total, v_c, v_s)
            if self.rollback_percent is not None:
                one = Contrast().add(n_c, canary.total, n_s, stable.total, v_c, v_s)
                relative = relative.observe(log_bets(scale, *_excess(one, 1 + self.rollback_percent / 100)))

        absolute, suspicion = state.absolute, state.suspicion
        if self.maximum is not None:
            bet = SUSPECT_EFFECT / scale
            gain = bet * (stable.total - self.maximum * n_s) - bet * bet * v_s * n_s / 2
            suspicion = suspicion_after(suspicion, n_s, gain)
            if n_c > 0 and not is_common(suspicion, stable.total, n_s, self.maximum):
                absolute = absolute.observe(log_bets(scale, canary.total - self.maximum * n_c, v_c * n_c))

        return MeanState(
            canary=learned[0],
            stable=learned[1],
            scale=scale,
            relative=relative,
            absolute=absolute,
            suspicion=suspicion,
            contrast=contrast,
            promotion=promotion,
            promotable=state.promotable + (n_c if promotable else 0.0),
            promotable_total=state.promotable_total + (canary.total if promotable else 0.0),
            promotable_spread=state.promotable_spread + (v_c * n_c if promotable else 0.0),
        )

    def log_promote_relative(self, state: MeanState, margin_percent: float) -> float:
        """ln evidence against "costlier than stable by the margin or more"."""
        if state.scale <= 0:
            return 0.0
        total, variance = _excess(state.promotion, 1 + margin_percent / 100)
        return log_one_sided(-total, variance, TUNING * state.scale**2)

    def log_promote_absolute(self, state: MeanState, maximum: float) -> float:
        """ln evidence against "at or above max"."""
        if state.scale <= 0:
            return 0.0
        below = maximum * state.promotable - state.promotable_total
        return log_one_sided(below, state.promotable_spread, TUNING * state.scale**2)

    def judge(self, state: MeanState, levels: Levels) -> Judgement:
        level = levels.breach / self.bounds
        crossed, passed = log_threshold(level), log_threshold(levels.promote)
        common_cause = self.maximum is not None and state.suspicion >= SUSPECT
        breach_relative = breach_absolute = False
        inferior_still: list[str] = []
        judged = state.canary.n >= self.gate and state.scale > 0
        if judged and self.margin_percent is not None:
            breach_relative = state.relative.log_evidence() >= crossed
            if self.log_promote_relative(state, self.margin_percent) < passed:
                inferior_still.append(f"within {self.margin_percent:g} % of stable")
        if judged and self.maximum is not None:
            breach_absolute = not common_cause and state.absolute.log_evidence() >= crossed
            if self.log_promote_absolute(state, self.maximum) < passed:
                inferior_still.append(f"below its maximum of {self._maximum_text()}")
        breach = breach_relative or breach_absolute
        non_inferior = judged and not breach and not inferior_still

        findings: list[str] = []
        if not judged:
            findings.append(self._waiting_text(state))
        if breach_relative:
            findings.append(f"worse by more than {self.rollback_percent:g} % with {wording.confidence(level)}")
        if breach_absolute:
            findings.append(f"above its maximum of {self._maximum_text()} with {wording.confidence(level)}")
        if non_inferior:
            findings.append(f"{self._passed_text()} with {wording.confidence(levels.promote)}")
        if not findings:
            findings.append("no breach, not shown to be " + " and ".join(inferior_still))
        if common_cause:
            findings.append(f"stable is above {self._maximum_text()} too, so that bound is suspended")
        if judged and not breach:
            findings.append(self._detectable_text(state, level))
        canary, stable = (
            wording.value(self.signal, arm.total / arm.n) if arm.n else "" for arm in (state.canary, state.stable)
        )
        return Judgement(
            breach=breach,
            non_inferior=non_inferior,
            canary_samples=int(state.canary.n),
            stable_samples=int(state.stable.n),
            canary=canary,
            stable=stable,
            difference=self._difference_text(state),
            message=wording.fits(f"{self._values_text(state, canary, stable)}: {'; '.join(findings)}", 512),
            absolute_only=breach_absolute and not breach_relative,
            common_cause=common_cause,
        )

    def detectable(self, state: MeanState, level: float) -> float:
        """Smallest canary mean, from the start on, whose expected evidence crosses 1/level on the requests seen so far.

        Per effect lambda d W - lambda^2 V / 2 = ln(1/level) + ln(2 effects), solved for d: about an even chance to have
        been seen. Infinity without evidence.
        """
        if state.scale <= 0:
            return math.inf
        needed = log_threshold(level) + math.log(2 * len(EFFECTS))

        def rise(weight: float, variance: float) -> float:
            bets = (effect / state.scale for effect in EFFECTS)
            return min((needed + bet * bet * variance / 2) / (bet * weight) for bet in bets)

        means: list[float] = []
        sums = state.contrast
        enough = needed / MOST_PER_INTERVAL
        if self.rollback_percent is not None and sums.weight > 0 and state.relative.intervals >= enough:
            theta = 1 + self.rollback_percent / 100
            means.append(theta * sums.stable / sums.weight + rise(sums.weight, _excess(sums, theta)[1]))
        known = variances(state.canary, state.stable)
        uncommon = state.suspicion < SUSPECT and state.absolute.intervals >= enough
        if self.maximum is not None and uncommon and known and state.canary.n > 0:
            means.append(self.maximum + rise(state.canary.n, known[0] * state.canary.n))
        return min(means, default=math.inf)

    def encode(self, state: MeanState) -> str:
        return encoding.encode(self.definition, state.numbers())

    def decode(self, text: str) -> MeanState:
        numbers = encoding.decode(self.definition, text, _LENGTH)
        canary, stable = (Arm(next(numbers), next(numbers), next(numbers)) for _ in range(2))
        scale = next(numbers)
        relative, absolute = (StartMixture.take(numbers, len(EFFECTS)) for _ in range(2))
        suspicion = next(numbers)
        contrast, promotion = (Contrast.take(numbers) for _ in range(2))
        promotable = [next(numbers) for _ in range(3)]
        singles = (scale, suspicion, *promotable)
        if not (canary.is_usable and stable.is_usable) or any(not (math.isfinite(x) and x >= 0) for x in singles):
            raise ValueError("damaged checkpoint (a sum is negative or not a number): its evidence restarts")
        return MeanState(canary, stable, scale, relative, absolute, suspicion, contrast, promotion, *promotable)

    def _maximum_text(self) -> str:
        return wording.value(self.signal, self.maximum or 0.0)

    def _values_text(self, state: MeanState, canary: str, stable: str) -> str:
        if not state.canary.n:
            return self.signal.noun
        if not state.stable.n:
            return f"{self.signal.noun} {canary} {wording.samples(state.canary.n, None)}, none on stable"
        requests = wording.samples(state.canary.n, state.stable.n)
        return f"{self.signal.noun} {canary} against {stable} on stable {requests}"

    def _waiting_text(self, state: MeanState) -> str:
        if not state.canary.n:
            return "no canary requests measured yet"
        if state.canary.n < self.gate:
            return f"{self.gate} canary requests are needed before it is judged"
        if state.canary.total + state.stable.total <= 0:
            return "it is 0 in both arms, so nothing can be compared; set prices in the ModelProvider or drop it"
        return "the spread of single requests is not known yet"

    def _passed_text(self) -> str:
        parts: list[str] = []
        if self.margin_percent is not None:
            parts.append(f"worse by less than {self.margin_percent:g} %")
        if self.maximum is not None:
            parts.append(f"below its maximum of {self._maximum_text()}")
        return " and ".join(parts)

    def _detectable_text(self, state: MeanState, level: float) -> str:
        mean = self.detectable(state, level)
        if math.isinf(mean):
            return "too little evidence to have seen any rise"
        return f"a rise to {wording.value(self.signal, mean)} or more would have been seen"

    @staticmethod
    def _difference_text(state: MeanState) -> str:
        """Anytime-valid interval for the difference of the means (asymptotic: AsympCS on the stratified sums)."""
        sums = state.contrast
        if sums.weight <= 0:
            return ""
        middle = (sums.canary - sums.stable) / sums.weight
        variance = sums.canary_spread + sums.stable_spread
        width = half_width(variance, TUNING * state.scale**2, wording.DISPLAY_LEVEL) / sums.weight
        text = wording.usd_difference(middle - width, middle + width, sums.stable / sums.weight)
        return wording.fits(text, 96)


def _excess(sums: Contrast, theta: float) -> tuple[float, float]:
    """Sum of w (canary - theta stable), and its variance."""
    return sums.canary - theta * sums.stable, sums.canary_spread + theta * theta * sums.stable_spread


def _add(a: Arm, b: Arm) -> Arm:
    return Arm(a.n + b.n, a.total + b.total, a.total_squared + b.total_squared)
