"""Test of a mean (cost, tokens, scores): anytime-valid for sums with estimated variances, stratified by interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptrollout.engine.objectives import wording
from promptrollout.engine.objectives.judgement import Finding, Judgement, Levels, verdict_text
from promptrollout.engine.objectives.mean_state import LENGTH, SINGLES, SUSPECT_EFFECTS, MeanState
from promptrollout.engine.objectives.signals import Signal
from promptrollout.engine.statistics import encoding
from promptrollout.engine.statistics.common_cause import (
    COMMON,
    MOST_PER_INTERVAL,
    SUSPECT,
    cusums_after,
    is_common,
    suspicion_of,
)
from promptrollout.engine.statistics.contrast import EFFECTS, TUNING, Contrast, half_width, log_bets, log_one_sided
from promptrollout.engine.statistics.dispersion import SKEWED
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.engine.statistics.logspace import log_needed, log_threshold, shrunk
from promptrollout.engine.statistics.moments import total_of, variances, with_squares

GATE = 200
"""Canary samples before a mean is judged at all: estimated variances make its validity asymptotic."""
KURTOSIS = 10.0
"""Presumed of one sample, where only the error of an estimated variance depends on it."""

_WEIGHTS = (1 / len(EFFECTS),) * len(EFFECTS)


@dataclass(frozen=True, slots=True)
class MeanTest:
    """Immutable parameters of one mean's test.

    Margins are in percent of stable's mean where more is worse, else in the signal's unit: by how much less.
    """

    signal: Signal
    definition: str
    """Hash that a checkpoint must carry."""
    margin: float | None = None
    """Promotion versus stable; None without `versusStable`."""
    rollback: float | None = None
    """Breach versus stable; given exactly when the margin is."""
    bound: float | None = None
    """`max` where more is worse, else `min`, in the signal's unit."""
    more_is_worse: bool = True
    gate: int = GATE
    """Canary samples below which nothing is judged."""

    def __post_init__(self) -> None:
        if (self.margin is None) != (self.rollback is None):
            raise ValueError("versusStable needs both a promotion margin and a bound for rollback")
        if self.margin is None and self.bound is None:
            raise ValueError(
                f"an objective needs a bound: set {'max' if self.more_is_worse else 'min'}, versusStable or both"
            )
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"{'max' if self.more_is_worse else 'min'} must be above 0, not {self.bound}")

    @property
    def bounds(self) -> int:
        """How many bounds share the breach level."""
        return (self.margin is not None) + (self.bound is not None)

    def start(self) -> MeanState:
        return MeanState.start()

    # ------------------------------------------------------------ what it learns

    def observe(
        self, state: MeanState, strata: Sequence[Counts], *, promotable: bool, outage: bool = False
    ) -> MeanState:
        usable = [
            Counts(with_squares(counts.canary), with_squares(counts.stable))
            for counts in strata
            if counts.canary.is_usable and counts.stable.is_usable
        ]
        if not usable:
            return state
        canary, stable = total_of(counts.canary for counts in usable), total_of(counts.stable for counts in usable)
        promotable = promotable and not outage
        # the weight of this interval is fixed before its values are read, by variances and dispersion of earlier ones
        known = variances(state.canary, state.stable)
        rho = state.dispersion.between_intervals() if canary.n > 0 else 0.0
        met = state.canary.n + canary.n > 0
        learned = replace(
            state,
            canary=total_of((state.canary, canary)),
            stable=total_of((state.stable, stable)),
            shown=total_of((state.shown, Arm(stable.n, stable.total))) if met else state.shown,
            coverage=state.coverage.observe(usable),
            dispersion=(
                state.dispersion.interrupted()
                if outage
                else state.dispersion.observe(usable, known[1] if known else 0.0, KURTOSIS)
            ),
        )
        if known is None:
            return learned
        v_c, v_s = known
        scale = state.scale or math.sqrt((v_c + v_s) / 2)
        n_c, n_s = canary.n, stable.n
        pairs = n_c * n_s / (n_c + n_s) if n_c > 0 and n_s > 0 else 0.0
        both, one = 1 + SKEWED * rho * pairs, 1 + SKEWED / 2 * rho * n_c
        most = MOST_PER_INTERVAL * self.user_dispersion(state)  # what the verdict will divide by, again

        # an unseen tail makes a mean look low and certain, so a canary needs the wider spread to pass
        wide = max(v_c, v_s)
        here, doubted = Contrast(), Contrast()
        for counts in usable:
            c, s = counts.canary, counts.stable
            if c.n > 0 and s.n > 0:
                here = here.add(c.n, c.total, s.n, s.total, v_c, v_s)
                doubted = doubted.add(c.n, c.total, s.n, s.total, wide, wide)
        relative, contrast, promotion = state.relative, state.contrast, state.promotion
        if here.weight > 0:
            contrast = contrast.plus(here, both)
            if promotable:
                promotion = promotion.plus(doubted, both)
            if self.rollback is not None:
                relative = relative.observe(log_bets(scale, *self._excess(here, self.rollback), both, most))

        absolute, cusums = state.absolute, state.cusums
        if self.bound is not None:
            excess = self._beyond(stable)
            bets = [effect / scale for effect in SUSPECT_EFFECTS]
            cusums = cusums_after(cusums, n_s, (bet * excess - bet * bet * v_s * n_s / 2 for bet in bets))
            if n_c > 0 and not is_common(suspicion_of(cusums), excess):
                absolute = absolute.observe(log_bets(scale, self._beyond(canary), v_c * n_c, one, most))

        return replace(
            learned,
            scale=scale,
            effective=state.effective + n_c / both,
            relative=relative,
            absolute=absolute,
            cusums=cusums,
            contrast=contrast,
            promotion=promotion,
            promotable=state.promotable + (n_c if promotable else 0.0),
            promotable_total=state.promotable_total + (canary.total if promotable else 0.0),
            promotable_spread=state.promotable_spread + (wide * n_c * one if promotable else 0.0),
        )

    def new_step(self, state: MeanState) -> MeanState:
        return replace(state, promotion=Contrast(), promotable=0.0, promotable_total=0.0, promotable_spread=0.0)

    def _excess(self, sums: Contrast, margin: float) -> tuple[float, float]:
        """Sum of w times what the canary is worse than stable by beyond the margin, and its variance."""
        if self.more_is_worse:
            theta = 1 + margin / 100
            return sums.canary - theta * sums.stable, sums.canary_spread + theta * theta * sums.stable_spread
        return sums.stable - sums.canary - margin * sums.weight, sums.canary_spread + sums.stable_spread

    def _beyond(self, arm: Arm) -> float:
        """Sum of what the arm's samples lie beyond the absolute bound."""
        excess = arm.total - (self.bound or 0.0) * arm.n
        return excess if self.more_is_worse else -excess

    # ------------------------------------------------------------ evidence

    def user_dispersion(self, state: MeanState) -> float:
        """Variance of the totals over that of independent samples, for what users' habits add."""
        known = variances(state.canary, state.stable) if state.dispersion.requests else None
        return state.dispersion.between_users(*known) if known else 1.0

    def log_breach_relative(self, state: MeanState) -> float:
        """ln evidence of "worse than stable by more than the bound for rollback"."""
        return state.relative.log_evidence(_WEIGHTS)

    def log_breach_absolute(self, state: MeanState) -> float:
        """ln evidence of "beyond the absolute bound"; none while stable is under suspicion of the same."""
        return -math.inf if state.suspicion >= SUSPECT else state.absolute.log_evidence(_WEIGHTS)

    def log_promote_relative(self, state: MeanState) -> float:
        """ln evidence against "worse than stable by the margin or more"."""
        if state.scale <= 0 or self.margin is None:
            return 0.0
        total, variance = self._excess(state.promotion, self.margin)
        return log_one_sided(-total, variance * self.user_dispersion(state), TUNING * state.scale * state.scale)

    def log_promote_absolute(self, state: MeanState) -> float:
        """ln evidence against "at or beyond the absolute bound"."""
        if state.scale <= 0:
            return 0.0
        within = -self._beyond(Arm(state.promotable, state.promotable_total))
        return log_one_sided(
            within, state.promotable_spread * self.user_dispersion(state), TUNING * state.scale * state.scale
        )

    # ------------------------------------------------------------ verdicts

    def judged(self, state: MeanState) -> bool:
        """Enough samples to be judged at all."""
        return state.canary.n >= self.gate and state.scale > 0

    def breached(self, state: MeanState, levels: Levels) -> bool:
        if not self.judged(state) or state.coverage.differs:
            return False
        crossed = log_threshold(levels.breach / self.bounds)
        evidence = [self.log_breach_relative(state)] if self.margin is not None else []
        evidence += [self.log_breach_absolute(state)] if self.bound is not None else []
        # most looks end here: evidence that is too weak as it stands stays too weak when users are weighed
        return max(evidence) >= crossed and shrunk(max(evidence), self.user_dispersion(state)) >= crossed

    def passed(self, state: MeanState, levels: Levels) -> bool:
        if not self.judged(state) or state.coverage.differs or (self.bound is not None and state.suspicion >= COMMON):
            return False
        evidence = [self.log_promote_relative(state)] if self.margin is not None else []
        evidence += [self.log_promote_absolute(state)] if self.bound is not None else []
        return min(evidence) >= log_threshold(levels.promote) and not self.breached(state, levels)

    def _findings(self, state: MeanState, levels: Levels) -> list[Finding]:
        crossed, passed = log_threshold(levels.breach / self.bounds), log_threshold(levels.promote)
        users = self.user_dispersion(state)
        found: list[Finding] = []
        if self.margin is not None and self.rollback is not None:
            margin, rollback = self._margin_text(self.margin), self._margin_text(self.rollback)
            found.append(
                Finding(
                    breached=shrunk(self.log_breach_relative(state), users) >= crossed,
                    kept=self.log_promote_relative(state) >= passed,
                    breach_text=f"worse by more than {rollback} (promotion margin {margin})",
                    kept_text=f"worse by less than {margin} (rollback above {rollback})",
                    open_text=f"within {margin} of stable (rollback above {rollback})",
                )
            )
        if self.bound is not None:
            name = "maximum" if self.more_is_worse else "minimum"
            above, below = ("above", "below") if self.more_is_worse else ("below", "above")
            text = f"its {name} of {wording.value(self.signal, self.bound)}"
            found.append(
                Finding(
                    breached=shrunk(self.log_breach_absolute(state), users) >= crossed,
                    kept=self.log_promote_absolute(state) >= passed,
                    breach_text=f"{above} {text}",
                    kept_text=f"{below} {text}",
                    open_text=f"{below} {text}",
                )
            )
        return found

    def judge(self, state: MeanState, levels: Levels) -> Judgement:
        judged = self.judged(state)
        findings = self._findings(state, levels) if judged and not state.coverage.differs else []
        breach = any(finding.breached for finding in findings)
        common_cause = self.bound is not None and state.suspicion >= COMMON
        remarks = [state.coverage.text()] if state.coverage.differs else []
        remarks += [] if judged else [self._waiting_text(state)]
        if common_cause:
            side = "above" if self.more_is_worse else "below"
            bound = wording.value(self.signal, self.bound or 0.0)
            remarks.append(f"stable was {side} {bound} lately, so that bound is suspended")
        if judged and not breach:
            remarks.append(self._detectable_text(state, levels.breach / self.bounds))
        if state.effective > 0:
            remarks += wording.dispersion(self.user_dispersion(state), min(1.0, state.effective / state.canary.n))
        canary, stable = (
            wording.value(self.signal, arm.total / arm.n) if arm.n else "" for arm in (state.canary, state.shown)
        )
        said = verdict_text(findings, levels, remarks)
        return Judgement(
            breach=breach,
            non_inferior=bool(findings) and not breach and all(finding.kept for finding in findings),
            canary_samples=int(state.canary.n),
            stable_samples=int(state.shown.n),
            canary=canary,
            stable=stable,
            difference=self._difference_text(state),
            message=wording.fits(f"{self._values_text(state, canary, stable)}: {said}", 512),
            common_cause=common_cause or state.coverage.differs,
            beyond=self._beyond_text(state),
        )

    def _beyond_text(self, state: MeanState) -> str:
        """What the step's own samples say, if it is beyond a bound by more than half a standard error."""
        if state.promotable <= 0:
            return ""
        users, sums = self.user_dispersion(state), state.promotion
        mean = wording.value(self.signal, state.promotable_total / state.promotable)
        said = f"{mean} of {wording.count(state.promotable)} in this step"
        if self.bound is not None:
            excess = self._beyond(Arm(state.promotable, state.promotable_total))
            if excess > math.sqrt(users * state.promotable_spread) / 2:
                name = "maximum" if self.more_is_worse else "minimum"
                return f"{said}, its {name} is {wording.value(self.signal, self.bound)}"
        if self.margin is not None and sums.weight > 0:
            excess, variance = self._excess(sums, self.margin)
            if excess > math.sqrt(users * variance) / 2:
                stable = wording.value(self.signal, sums.stable / sums.weight)
                worse = "above" if self.more_is_worse else "below"
                return f"{said}, more than {self._margin_text(self.margin)} {worse} the {stable} on stable"
        return ""

    def detectable(self, state: MeanState, level: float) -> float:
        """Nearest canary mean, from the start on, whose expected evidence crosses 1/level on the samples seen so far.

        Per effect lambda d W - lambda^2 V / 2 = needed, solved for d: about an even chance to have been seen. Infinity
        without evidence.
        """
        if state.scale <= 0:
            return math.inf
        needed = log_needed(level, 1 / len(EFFECTS))
        users = self.user_dispersion(state)

        def change(weight: float, variance: float) -> float:
            bets = (effect / state.scale for effect in EFFECTS)
            return min((needed * users + bet * bet * variance / 2) / (bet * weight) for bet in bets)

        found: list[float] = []
        sums, enough = state.contrast, needed / MOST_PER_INTERVAL
        if self.rollback is not None and sums.weight > 0 and state.relative.intervals >= enough:
            middle = sums.stable / sums.weight
            bound = middle * (1 + self.rollback / 100) if self.more_is_worse else middle - self.rollback
            rise = change(sums.weight, self._excess(sums, self.rollback)[1])
            found.append(bound + rise if self.more_is_worse else bound - rise)
        known = variances(state.canary, state.stable)
        uncommon = state.suspicion < SUSPECT and state.absolute.intervals >= enough
        if self.bound is not None and uncommon and known and state.canary.n > 0:
            rise = change(state.canary.n, known[0] * state.canary.n)
            found.append(self.bound + rise if self.more_is_worse else self.bound - rise)
        return (min if self.more_is_worse else max)(found, default=math.inf)

    # ------------------------------------------------------------ checkpoints

    def encode(self, state: MeanState) -> str:
        return encoding.encode(self.definition, state.numbers(), state.singles())

    def decode(self, text: str) -> MeanState:
        return MeanState.read(*encoding.decode(self.definition, text, LENGTH, SINGLES))

    # ------------------------------------------------------------ texts

    def _margin_text(self, margin: float) -> str:
        return f"{margin:g} %" if self.more_is_worse else wording.value(self.signal, margin)

    def _values_text(self, state: MeanState, canary: str, stable: str) -> str:
        if not state.canary.n:
            return self.signal.noun
        if not state.shown.n:
            return f"{self.signal.noun} {canary} {wording.samples(state.canary.n, None)}, none on stable"
        return (
            f"{self.signal.noun} {canary} against {stable} on stable {wording.samples(state.canary.n, state.shown.n)}"
        )

    def _waiting_text(self, state: MeanState) -> str:
        if not state.canary.n:
            return "no canary requests measured yet"
        if state.canary.n < self.gate:
            return f"{self.gate} canary requests are needed before it is judged"
        if state.canary.total + state.stable.total <= 0:
            return "both arms are at 0: set prices in the ModelProvider, or remove the objective"
        return "the variance is not known yet"

    def _detectable_text(self, state: MeanState, level: float) -> str:
        mean = self.detectable(state, level)
        direction = "rise" if self.more_is_worse else "fall"
        if math.isinf(mean) or mean < 0:
            return f"too little evidence to detect any {direction}"
        reach = "more" if self.more_is_worse else "less"
        return f"a {direction} to {wording.value(self.signal, mean)} or {reach} would have been detected"

    def difference(self, state: MeanState) -> tuple[float, float] | None:
        """Anytime-valid interval for the difference of the means (asymptotic: AsympCS on the stratified sums)."""
        sums = state.contrast
        if sums.weight <= 0:
            return None
        middle = (sums.canary - sums.stable) / sums.weight
        variance = self.user_dispersion(state) * (sums.canary_spread + sums.stable_spread)
        width = half_width(variance, TUNING * state.scale * state.scale, wording.DISPLAY_LEVEL) / sums.weight
        return middle - width, middle + width

    def _difference_text(self, state: MeanState) -> str:
        ends, sums = self.difference(state), state.contrast
        return (
            "" if ends is None else wording.fits(wording.difference(self.signal, *ends, sums.stable / sums.weight), 96)
        )
