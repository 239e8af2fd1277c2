"""Test of a rate (bad requests of all requests): e-processes for two arms, stratified by interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptrollout.engine.objectives import wording
from promptrollout.engine.objectives.judgement import Finding, Judgement, Levels, verdict_text
from promptrollout.engine.objectives.rate_state import (
    BETTER,
    BETTER_ODDS,
    LENGTH,
    SINGLES,
    SPOTLESS_ODDS,
    SUSPECT_ODDS,
    WORSE,
    WORSE_ODDS,
    Grid,
    RateState,
    StepCounts,
)
from promptrollout.engine.objectives.signals import Signal
from promptrollout.engine.statistics import encoding
from promptrollout.engine.statistics.bernoulli import log_bound, two_arm_bet
from promptrollout.engine.statistics.common_cause import (
    COMMON,
    MOST_PER_INTERVAL,
    SUSPECT,
    cusums_after,
    is_common,
    suspicion_of,
)
from promptrollout.engine.statistics.contrast import TUNING, half_width
from promptrollout.engine.statistics.dispersion import SKEWED, both_moments
from promptrollout.engine.statistics.evidence import Arm, Counts
from promptrollout.engine.statistics.logspace import log_add, log_mix, log_needed, log_threshold, shrunk
from promptrollout.engine.statistics.pending import ENOUGH, MOST_SECONDS, Pending

FADING = 0.95
"""Of stable's rate, from interval to interval: half of it is of the last 14."""

_RHO = 0.02 * TUNING
"""Of the displayed interval: tuned for a rate of 2 %. Any fixed value is valid."""


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
    interval_seconds: int = 30

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
        return RateState.start()

    # ------------------------------------------------------------ what it learns

    def observe(
        self, state: RateState, strata: Sequence[Counts], *, promotable: bool, outage: bool = False
    ) -> RateState:
        usable = [counts.clipped() for counts in strata if counts.canary.is_usable and counts.stable.is_usable]
        if not usable:
            return state
        (n_c, e_c), (n_s, e_s) = both_moments(usable)
        # the weight of this interval is fixed before its values are read: by the dispersion of the earlier ones
        rho = state.dispersion.between_intervals() if n_c > 0 or state.canary > 0 else 0.0
        state = self._compare(state, usable, n_c, rho, promotable=promotable, outage=outage)
        one = 1 + SKEWED / 2 * rho * n_c
        absolute, cusums = state.absolute, state.cusums
        if self.maximum is not None:
            cusums = cusums_after(cusums, n_s, (log_bound(self.maximum, g, n_s, e_s) for g in SUSPECT_ODDS))
            if n_c > 0 and not is_common(suspicion_of(cusums), e_s - self.maximum * n_s):
                most = MOST_PER_INTERVAL * self.user_dispersion(state)  # what the verdict will divide by, again
                gains = (log_bound(self.maximum, g, n_c, e_c) / one for g in WORSE_ODDS)
                absolute = absolute.observe(min(x, most) for x in gains)

        recent, recent_bad = state.recent, state.recent_bad
        if not outage:
            recent, recent_bad = FADING * recent + n_s, FADING * recent_bad + e_s
        variance = _variance(recent_bad, recent)
        # what people read of stable is of the same seconds as the canary's: none of it was before the first user
        met = state.canary > 0 or n_c > 0
        return replace(
            state,
            canary=state.canary + n_c,
            canary_bad=state.canary_bad + e_c,
            stable=state.stable + (n_s if met else 0.0),
            stable_bad=state.stable_bad + (e_s if met else 0.0),
            recent=recent,
            recent_bad=recent_bad,
            absolute=absolute,
            cusums=cusums,
            step=state.step.add(n_c, e_c, n_s, e_s, one) if promotable and not outage else state.step,
            dispersion=(
                state.dispersion.interrupted()
                if outage
                else state.dispersion.observe(usable, variance, kurtosis=1 / variance)
            ),
        )

    def _compare(
        self, state: RateState, strata: Sequence[Counts], n_c: float, rho: float, *, promotable: bool, outage: bool
    ) -> RateState:
        """With both arms compared within the interval, or within the few that end with it."""
        if state.pending.intervals and promotable != bool(state.pending.promotable):
            state = self._settled(state)
        # a bet is fixed before its values are read: by rate and dispersion of earlier intervals
        rate = state.recent_bad / state.recent if state.recent else 0.0
        pending = state.pending if state.pending.intervals else Pending.begin(rate, rho, promotable=promotable)
        if self.signal.strata or (not pending.intervals and n_c >= ENOUGH):
            # of strata each is compared alone, and the next interval may have others
            return self._compared(state, strata, rate, rho, promotable=promotable and not outage)
        if not state.canary and not n_c:
            return state
        for counts in strata:
            pending = pending.add(counts, outage=outage)
        state = replace(state, pending=pending)
        most = max(1, MOST_SECONDS // self.interval_seconds)
        return self._settled(state) if pending.is_enough(most) else state

    def _settled(self, state: RateState) -> RateState:
        """With what was pending as evidence."""
        was, state = state.pending, replace(state, pending=Pending())
        return self._compared(state, [was.counts], was.rate, was.rho, promotable=was.promotes)

    def _compared(
        self, state: RateState, strata: Sequence[Counts], rate: float, rho: float, *, promotable: bool
    ) -> RateState:
        n_c, n_s = sum(c.canary.n for c in strata), sum(c.stable.n for c in strata)
        if n_c <= 0:
            return state
        both = 1 + SKEWED * rho * n_c / (n_c + n_s) * n_s
        relative, promotion, contrast = state.relative, state.promotion, state.contrast
        if self.margin_percent is not None and self.rollback_percent is not None:
            theta0 = 1 + self.rollback_percent / 100
            relative = relative.observe(self._log_worse(theta0, g, rate, strata) / both for g in WORSE)
            if promotable:
                margin = 1 + self.margin_percent / 100
                promotion = tuple(
                    x + _log_values(margin, g, rate, strata) / both for x, g in zip(promotion, BETTER, strict=True)
                )
        for counts in strata:
            c, s = counts.canary, counts.stable
            if c.n > 0 and s.n > 0:
                contrast = contrast.add(c.n, c.total, s.n, s.total, both, both)
        return replace(
            state,
            relative=relative,
            promotion=promotion,
            contrast=contrast,
            effective=state.effective + n_c / both,
        )

    def _log_worse(self, theta0: float, multiple: float, rate: float, strata: Sequence[Counts]) -> float:
        """ln e-value of an interval against "at most theta0 times stable's rate, or negligible"; strata multiply."""
        found = 0.0
        for counts in strata:
            if counts.canary.n > 0:
                believed = max(rate, self.negligible / theta0)
                bet = two_arm_bet(theta0, multiple, believed, counts.canary.n, counts.stable.n)
                found += bet.log_value_above(self.negligible, counts)
        return found

    def new_step(self, state: RateState) -> RateState:
        if state.pending.intervals:
            state = self._settled(state)
        return replace(state, promotion=(0.0,) * len(BETTER), step=StepCounts())

    # ------------------------------------------------------------ evidence

    def user_dispersion(self, state: RateState) -> float:
        """Variance of the totals over that of independent requests, for what users' habits add."""
        if not state.dispersion.requests:
            return 1.0
        arms = ((state.canary_bad, state.canary), (state.stable_bad, state.stable))
        return state.dispersion.between_users(*(_variance(bad, n) for bad, n in arms))

    def log_breach_relative(self, state: RateState) -> float:
        """ln evidence of "worse than stable by more than rollbackAbovePercent, and above the negligible rate"."""
        return state.relative.log_evidence(list(WORSE.values()))

    def log_breach_absolute(self, state: RateState) -> float:
        """ln evidence of "above max"; none while stable is under suspicion of the same."""
        return -math.inf if state.suspicion >= SUSPECT else state.absolute.log_evidence(list(WORSE_ODDS.values()))

    def log_promote_relative(self, state: RateState) -> float:
        """ln evidence against "worse than stable by the margin or more, and above the negligible rate"."""
        better = log_mix(state.promotion, list(BETTER.values()))
        return log_add(better, _log_below(self.negligible, SPOTLESS_ODDS, state)) - math.log(2)

    def log_promote_absolute(self, state: RateState, maximum: float) -> float:
        """ln evidence against "at or above max"."""
        return _log_below(maximum, BETTER_ODDS, state)

    # ------------------------------------------------------------ verdicts

    def breached(self, state: RateState, levels: Levels) -> bool:
        crossed = log_threshold(levels.breach / self.bounds)
        evidence = [self.log_breach_relative(state)] if self.margin_percent is not None else []
        evidence += [self.log_breach_absolute(state)] if self.maximum is not None else []
        # most looks end here: evidence that is too weak as it stands stays too weak when users are weighed
        return max(evidence) >= crossed and shrunk(max(evidence), self.user_dispersion(state)) >= crossed

    def passed(self, state: RateState, levels: Levels) -> bool:
        if not state.canary or (self.maximum is not None and state.suspicion >= COMMON):
            return False
        needed, users = log_threshold(levels.promote), self.user_dispersion(state)
        evidence = [self.log_promote_relative(state)] if self.margin_percent is not None else []
        evidence += [self.log_promote_absolute(state, self.maximum)] if self.maximum is not None else []
        return shrunk(min(evidence), users) >= needed and not self.breached(state, levels)

    def _findings(self, state: RateState, levels: Levels, users: float) -> list[Finding]:
        crossed, passed = log_threshold(levels.breach / self.bounds), log_threshold(levels.promote)
        found: list[Finding] = []
        if self.margin_percent is not None:
            alone = shrunk(log_mix(state.promotion, list(BETTER.values())) - math.log(2), users) >= passed
            rollback, margin = f"(rollback above {self.rollback_percent:g} %)", f"{self.margin_percent:g} %"
            negligible = "" if alone else f" or below the negligible {wording.share(self.negligible)}"
            found.append(
                Finding(
                    breached=shrunk(self.log_breach_relative(state), users) >= crossed,
                    kept=shrunk(self.log_promote_relative(state), users) >= passed,
                    breach_text=f"worse by more than {self.rollback_percent:g} % (promotion margin {margin})",
                    kept_text=f"worse by less than {margin}{negligible} {rollback}",
                    open_text=f"within {margin} of stable {rollback}",
                )
            )
        if self.maximum is not None:
            text = f"its maximum of {wording.share(self.maximum)}"
            found.append(
                Finding(
                    breached=shrunk(self.log_breach_absolute(state), users) >= crossed,
                    kept=shrunk(self.log_promote_absolute(state, self.maximum), users) >= passed,
                    breach_text=f"above {text}",
                    kept_text=f"below {text}",
                    open_text=f"below {text}",
                )
            )
        return found

    def judge(self, state: RateState, levels: Levels) -> Judgement:
        users = self.user_dispersion(state)
        findings = self._findings(state, levels, users) if state.canary else []
        breach = any(finding.breached for finding in findings)
        common_cause = self.maximum is not None and state.suspicion >= COMMON
        remarks: list[str] = []
        if not state.canary:
            remarks.append("no canary requests measured yet")
        if common_cause:
            remarks.append(f"stable was above {wording.share(self.maximum or 0)} lately, so that bound is suspended")
        if state.canary and not breach:
            remarks.append(self._detectable_text(state, levels.breach / self.bounds))
        remarks += wording.dispersion(users, self._weighed(state) / state.canary if state.canary else 1.0)
        return Judgement(
            breach=breach,
            non_inferior=bool(findings) and not breach and all(finding.kept for finding in findings),
            canary_samples=int(state.canary),
            stable_samples=int(state.stable),
            canary=wording.share(state.canary_bad / state.canary) if state.canary else "",
            stable=wording.share(state.stable_bad / state.stable) if state.stable else "",
            difference=self._difference_text(state),
            message=wording.fits(f"{self._values_text(state)}: {verdict_text(findings, levels, remarks)}", 512),
            common_cause=common_cause,
            beyond=self._beyond_text(state),
        )

    def _beyond_text(self, state: RateState) -> str:
        """What the step's own counts say, if it is beyond a bound: (bad - 1)/n, because a plain share of few requests
        is above the bound in a quarter of healthy steps."""
        step = state.step
        if step.canary <= 0:
            return ""
        share = (step.canary_bad - 1) / step.canary
        said = f"{wording.share(step.canary_bad / step.canary)} of {wording.count(step.canary)} in this step"
        if self.maximum is not None and share > self.maximum:
            return f"{said}, its maximum is {wording.share(self.maximum)}"
        if self.margin_percent is not None and step.stable > 0:
            stable = step.stable_bad / step.stable
            if share > max((1 + self.margin_percent / 100) * stable, self.negligible):
                return f"{said}, more than {self.margin_percent:g} % above the {wording.share(stable)} on stable"
        return ""

    def detectable(self, state: RateState, level: float) -> float:
        """Smallest canary rate, from the start on, whose expected evidence crosses 1/level on the requests seen so far.

        Solved per alternative with the intervals pooled into one, so about an even chance to have been seen. Above 1 if
        not even a total failure would have been. Infinity without requests.
        """
        if state.canary <= 0:
            return math.inf
        # as many independent requests as the dispersed ones weigh
        share = self._weighed(state) / state.canary / self.user_dispersion(state)
        n_c, n_s, e_s = state.canary * share, state.stable * share, state.stable_bad * share
        rates: list[float] = []
        if self.rollback_percent is not None:
            theta0 = 1 + self.rollback_percent / 100
            rate, ratio = max(e_s / n_s if n_s else 0.0, self.negligible / theta0), math.inf
            for g, weight in WORSE.items():
                bet = two_arm_bet(theta0, g, rate, n_c, n_s)
                others = bet.log_value_above(self.negligible, Counts(Arm(n_c, 0.0), Arm(n_s, e_s)))
                gain = bet.canary_bad - bet.canary_good
                if gain > 0:
                    ratio = min(ratio, (log_needed(level, weight) - others) / gain / n_c)
            rates.append(ratio)
        enough = state.absolute.intervals >= log_needed(level, 1.0) / MOST_PER_INTERVAL
        if self.maximum is not None and state.suspicion < SUSPECT and enough:
            rates.append(_detectable_bound(self.maximum, n_c, level))
        return min(rates, default=math.inf)

    def _weighed(self, state: RateState) -> float:
        """Canary requests, each divided by its interval's dispersion; pending ones count as they are."""
        return state.effective + state.pending.canary

    # ------------------------------------------------------------ checkpoints

    def encode(self, state: RateState) -> str:
        return encoding.encode(self.definition, state.numbers(), state.singles())

    def decode(self, text: str) -> RateState:
        return RateState.read(*encoding.decode(self.definition, text, LENGTH, SINGLES))

    # ------------------------------------------------------------ texts

    def _values_text(self, state: RateState) -> str:
        if not state.canary:
            return self.signal.noun
        canary = wording.share(state.canary_bad / state.canary)
        if not state.stable:
            return f"{self.signal.noun} {canary} {wording.samples(state.canary, None)}, none on stable"
        stable = wording.share(state.stable_bad / state.stable)
        return f"{self.signal.noun} {canary} against {stable} on stable {wording.samples(state.canary, state.stable)}"

    def _detectable_text(self, state: RateState, level: float) -> str:
        rate = self.detectable(state, level)
        if rate > 1:
            return "too few requests to detect any rise"
        return f"a rise to {wording.share(rate)} or more would have been detected"

    def difference(self, state: RateState) -> tuple[float, float] | None:
        """Anytime-valid interval for the difference in share (asymptotic: AsympCS on the stratified sums)."""
        sums = state.contrast
        if sums.weight <= 0:
            return None
        v_c, v_s = _variance(state.canary_bad, state.canary), _variance(state.stable_bad, state.stable)
        middle = (sums.canary - sums.stable) / sums.weight
        variance = self.user_dispersion(state) * (v_c * sums.canary_spread + v_s * sums.stable_spread)
        width = half_width(variance, _RHO, wording.DISPLAY_LEVEL) / sums.weight
        return max(middle - width, -1.0), min(middle + width, 1.0)

    def _difference_text(self, state: RateState) -> str:
        ends = self.difference(state)
        return "" if ends is None else wording.fits(wording.share_difference(*ends), 96)


def _log_values(theta0: float, multiple: float, rate: float, strata: Sequence[Counts]) -> float:
    """ln e-value of an interval: strata are compared separately and multiply."""
    found = 0.0
    for counts in strata:
        if counts.canary.n > 0:
            found += two_arm_bet(theta0, multiple, rate, counts.canary.n, counts.stable.n).log_value(counts)
    return found


def _log_below(bound: float, grid: Grid, state: RateState) -> float:
    logs = [log_bound(bound, g, state.step.weighed, state.step.weighed_bad) for g in grid]
    return log_mix(logs, list(grid.values()))


def _variance(bad: float, n: float) -> float:
    """Of one request, by the rate so far; half a bad request is presumed, so that no rate is certain."""
    p = (bad + 0.5) / (n + 1)
    return p * (1 - p)


def _detectable_bound(bound: float, requests: float, level: float) -> float:
    return min(
        (log_needed(level, weight) / requests + math.log1p(bound * (g - 1))) / math.log(g)
        for g, weight in WORSE_ODDS.items()
    )
