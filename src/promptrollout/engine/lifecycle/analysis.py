"""Fold evidence into the analysis table, interval by interval, and read verdicts off it."""

import math
from collections.abc import Iterable, Sequence

from promptrollout.api.decisions import DecisionReason
from promptrollout.api.rollout import Clock, ObjectiveStatus, Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.lifecycle.draft import Draft
from promptrollout.engine.lifecycle.moves import current_step, is_last_weight, read_baseline
from promptrollout.engine.lifecycle.reasons import Missing, MissingEvidence
from promptrollout.engine.objectives import sample_ratio
from promptrollout.engine.objectives.definitions import gate_of, make_test
from promptrollout.engine.objectives.judgement import Judgement, Levels
from promptrollout.engine.objectives.sample_ratio import LEAST_OFF, LEAST_OFF_OF_USERS, SampleRatio
from promptrollout.engine.objectives.signals import signal_of
from promptrollout.engine.statistics.common_cause import COMMON
from promptrollout.engine.statistics.evidence import Counts, Interval

FAMILY_LEVEL = 0.05
"""Chance that a harmless canary is rolled back by any objective at any time in its steps. The comparison with the
holdback, in the bake, is a test of its own with the same level."""
PROMOTION_LEVEL = 0.05
"""Chance, over all attempts together, that a canary at the margin passes an objective."""

OUTAGE_SHARE = 0.5
OUTAGE_FAILURES = 5
"""One failure of two requests is no outage."""
MOST_SAMPLES = 2**53
"""The largest integer that the API and JSON hold exactly."""
ENDED_SECONDS = 120
"""Requests count when they end: some of the lower weight still run when the next weight begins."""

WARM_WEIGHT = 50
"""From this weight (percent) on the canary's prompt is in the provider's cache like stable's, and costs are as
billed."""

WATCHED = ("Stepping", "Promoting", "Baking")
"""Stages in which the canary serves users, so evidence is read."""


def levels(snapshot: Snapshot, attempt: int, clock: Clock | None = None) -> Levels:
    """Breach: the family's level shared by the most objectives that there were, and divided by (1 + m)^2 once evidence
    began anew m times: however often that happens, false alarms stay below pi^2/6 = 1.65 times the level. Promotion:
    .05 * 6 / (pi^2 n^2) for the n-th attempt, which sums to .05 over all attempts (reference: statistics of repeated
    attempts, the Basel series)."""
    most, restarts = (clock.objectives, clock.restarts) if clock is not None else (0, 0)
    return Levels(
        breach=FAMILY_LEVEL / max(1, most, len(snapshot.objectives)) / (1 + restarts) ** 2,
        promote=PROMOTION_LEVEL * 6 / (math.pi**2 * attempt**2),
    )


def fold_evidence(draft: Draft, *, held: bool) -> ObjectiveStatus | None:
    """Add all intervals up to the first breach. Returns the row in breach, if any. `held`: they are no active time.

    Looking after each interval (and not only after the last) makes a restart or an outage decide as if it had not been.
    """
    s, until = draft.status, draft.clock.evaluated_until
    if s.stage not in WATCHED or s.snapshot is None or not s.snapshot.analyse or until is None:
        return None
    due = [interval for interval in draft.facts.evidence.intervals if interval.start >= until]
    if not due or due[0].start > until:  # an edit of now reads what was before once more: these come again
        return None
    analysis, unreachable = AnalysisFold(draft, s.snapshot, held=held), draft.clock.unreachable_since
    if analysis.unreadable:
        for text in analysis.unreadable.values():
            draft.record(DecisionReason.EVIDENCE_RESTARTED, text)
        draft.set(analysis=[row for row in s.analysis if row.name not in analysis.unreadable])
        read_baseline(draft)
        return None
    for interval in due:
        # an outage of the canary's provider is no verdict on the canary, even before it was noticed
        if unreachable is None or interval.end <= unreachable - s.snapshot.interval_seconds:
            analysis.add(interval)
        if analysis.breached is not None:
            break
    draft.set_clock(evaluated_until=interval.end, **analysis.clock)
    draft.set(analysis=analysis.rows())
    return next((row for row in draft.status.analysis if row.name == analysis.breached), None)


class ObjectiveFold:
    """One objective's row while intervals are folded in: its test, and the test's state in plain numbers."""

    def __init__(self, objective: Objective, row: ObjectiveStatus | None, interval_seconds: int) -> None:
        self.objective = objective
        self.signal = signal_of(objective)
        self.test = make_test(objective, interval_seconds)
        self.row = row or ObjectiveStatus(name=objective.name, signal=objective.signal, verdict="NoEvidence")
        self.was_in_breach = self.row.verdict == "Breach"
        self.step_samples = self.row.step_samples
        self.unreadable = ""
        try:
            self.state = self.test.decode(self.row.checkpoint) if self.row.checkpoint else self.test.start()
        except ValueError as error:
            self.state, self.step_samples, self.unreadable = self.test.start(), 0, str(error)

    def add(self, strata: Sequence[Counts], weight: int, *, promotable: bool, outage: bool) -> None:
        if weight < self.signal.from_weight:
            strata, promotable = [counts.stable_alone() for counts in strata], False
        if promotable and self.step_samples == 0:
            self.state = self.test.new_step(self.state)
        if self.signal.unit == "usd" and weight < WARM_WEIGHT:
            strata = [counts.at_shared_cache() for counts in strata]
        self.state = self.test.observe(self.state, strata, promotable=promotable, outage=outage)
        if promotable and not outage:
            self.step_samples += int(sum(counts.canary.n for counts in strata if counts.canary.is_usable))

    def result(self, at: Levels) -> ObjectiveStatus:
        judgement = self.test.judge(self.state, at)
        return updated_row(self.row, judgement, step_samples=self.step_samples, checkpoint=self.test.encode(self.state))


class AnalysisFold:
    """The analysis table while intervals are folded in. Without counts a row stays as it is: no evidence is never a
    pass."""

    def __init__(self, draft: Draft, snapshot: Snapshot, *, held: bool) -> None:
        s, clock, step = draft.status, draft.clock, current_step(draft)
        before = {row.name: row for row in s.analysis}
        self._levels = levels(snapshot, s.attempt, clock)
        width = snapshot.interval_seconds
        self._folds = [ObjectiveFold(objective, before.get(objective.name), width) for objective in snapshot.objectives]
        self._baseline_until = clock.baseline_until or 0
        self._weight = s.weight
        self._acknowledged = clock.acknowledged_at
        since = clock.compared_since or clock.exposed_at or 0
        self._since = since // snapshot.interval_seconds * snapshot.interval_seconds
        # pauses are measured by the clock, see progress.count_time
        self._counts_time = not held and (step is None or step.pause is None)
        self._outage_since, self._common_since = clock.outage_since, clock.common_since
        self._unmeasured_since = clock.unmeasured_since
        self._step_seconds, self._seconds = clock.step_active_seconds, clock.active_seconds
        self._ratio_row = before.get(sample_ratio.NAME)
        by_request = snapshot.stickiness.by == "Request"
        self._ratio = _ratio_before(self._ratio_row, LEAST_OFF if by_request else LEAST_OFF_OF_USERS)
        self.breached: str | None = None
        """Name of the first objective that came into breach."""

    @property
    def unreadable(self) -> dict[str, str]:
        """Objectives whose stored evidence cannot be read and restarts, and why."""
        return {f.objective.name: f"{f.objective.name}: {f.unreadable}" for f in self._folds if f.unreadable}

    @property
    def clock(self) -> dict[str, int | None]:
        """Fields of the clock as they are now."""
        return {
            "outage_since": self._outage_since,
            "unmeasured_since": self._unmeasured_since,
            "common_since": self._common_since,
            "step_active_seconds": self._step_seconds,
            "active_seconds": self._seconds,
        }

    def add(self, interval: Interval) -> None:
        """Add one interval to every row, and its length to the durations in which it was active."""
        if interval.end <= self._baseline_until:
            self._add_baseline(interval)
            return
        outage = is_outage([fold.objective for fold in self._folds], interval)
        if outage != (self._outage_since is not None):
            self._outage_since = interval.start if outage else None
        unmeasured = bool(self._folds) and not interval.counts
        if unmeasured != (self._unmeasured_since is not None):
            self._unmeasured_since = interval.start if unmeasured else None
        confirmed = self._acknowledged is not None and interval.start >= self._acknowledged
        promotable = confirmed and not outage
        if promotable and interval.counts and self._counts_time:
            self._step_seconds += interval.end - interval.start
            self._seconds += interval.end - interval.start
        counted, settled = False, promotable and interval.start >= (self._acknowledged or 0) + ENDED_SECONDS
        for fold in self._folds:
            strata = interval.counts.get(fold.objective.name)
            if strata is None:
                continue
            if interval.end <= self._since:  # counts of an earlier attempt, or of the steps, are no evidence of now
                strata = tuple(counts.stable_alone() for counts in strata)
            fold.add(strata, self._weight, promotable=confirmed, outage=outage)
            if settled and not counted and fold.objective.signal == "ErrorRate" and 0 < self._weight < 100:
                counted, self._ratio = True, self._ratio.observe(strata, self._weight / 100)
            if self.breached is None and not fold.was_in_breach and fold.test.breached(fold.state, self._levels):
                self.breached = fold.objective.name

        common = any(fold.state.suspicion >= COMMON for fold in self._folds)
        self._common_since = (self._common_since or interval.start) if common else None

    def _add_baseline(self, interval: Interval) -> None:
        """What stable did before, for the objectives that begin now."""
        for fold in self._folds:
            strata = interval.counts.get(fold.objective.name)
            if strata is not None and not fold.row.canary_samples:
                alone = [counts.stable_alone() for counts in strata]
                fold.add(alone, self._weight, promotable=False, outage=is_outage([fold.objective], interval))

    def rows(self) -> list[ObjectiveStatus]:
        rows = [fold.result(self._levels) for fold in self._folds]
        if self._ratio.surplus:
            ratio = self._ratio_row or ObjectiveStatus(
                name=sample_ratio.NAME, signal=sample_ratio.SIGNAL, verdict="NoEvidence"
            )
            rows.append(
                updated_row(ratio, self._ratio.judge(), step_samples=0, checkpoint=self._ratio.encode()).model_copy(
                    update={"common_cause": self._ratio.mismatch or None}
                )
            )
        return rows


def _ratio_before(row: ObjectiveStatus | None, least_off: float) -> SampleRatio:
    fresh = SampleRatio(least_off=least_off)
    try:
        return SampleRatio.decode(row.checkpoint) if row is not None and row.checkpoint else fresh
    except ValueError:
        return fresh


def is_outage(objectives: Iterable[Objective], interval: Interval) -> bool:
    """Stable failed in half of its requests or more: the provider is down for both arms.

    The canary failing as often as that is not worse than stable, but no reason to go on either. Such intervals add
    nothing to what promotes, and as ever to what rolls back. Leaving out what stable's failures choose is safe there,
    as an e-value that promotes grows with them: what is left out is worth at least 1 on average where all is worth 1.
    (For rollback it would not be: that evidence shrinks with stable's failures.)
    """
    for objective in objectives:
        if objective.signal == "ErrorRate":
            stable = [counts.stable for counts in interval.counts.get(objective.name, ()) if counts.stable.n > 0]
            if stable:
                failed = sum(arm.total for arm in stable)
                return failed >= OUTAGE_FAILURES and failed >= OUTAGE_SHARE * sum(arm.n for arm in stable)
    return False


def updated_row(row: ObjectiveStatus, judgement: Judgement, *, step_samples: int, checkpoint: str) -> ObjectiveStatus:
    """The row with the present judgement of its test."""
    return row.model_copy(
        update={
            "verdict": verdict(judgement),
            "canary": judgement.canary[:32],
            "stable": judgement.stable[:32],
            "canary_samples": min(judgement.canary_samples, MOST_SAMPLES),
            "stable_samples": min(judgement.stable_samples, MOST_SAMPLES),
            "step_samples": min(step_samples, MOST_SAMPLES),
            "difference": judgement.difference[:96],
            "message": judgement.message[:512],
            "common_cause": judgement.common_cause or None,
            "step_beyond_bound": judgement.beyond[:128] or None,
            "checkpoint": checkpoint,
        }
    )


def verdict(judgement: Judgement) -> str:
    if judgement.breach:
        return "Breach"
    return "Pass" if judgement.non_inferior and not judgement.common_cause else "NoEvidence"


def required(draft: Draft) -> set[str]:
    """Names of the objectives that the present step requires."""
    s = draft.status
    objectives = s.snapshot.objectives if s.snapshot else []
    return {objective.name for objective in objectives if s.weight >= signal_of(objective).from_weight}


def missing_evidence(draft: Draft) -> list[MissingEvidence]:
    """What each objective still needs before the present step may pass; empty when all of them pass."""
    s = draft.status
    if s.snapshot is None or not s.snapshot.analyse:
        return []
    last = is_last_weight(s.snapshot, s.current_step_index)
    rows = {row.name: row for row in s.analysis}
    missing = []
    asked = required(draft)
    for objective in s.snapshot.objectives:
        if objective.name not in asked:
            continue
        row = rows.get(objective.name)
        advance_on = objective.advance_on or ("NonInferior" if last else "NoBreach")
        samples = row.step_samples if row else 0
        gate = gate_of(objective)
        seen = row.canary_samples if row else 0
        if seen < gate:
            missing.append(MissingEvidence(objective.name, Missing.SAMPLES, seen, gate))
        elif samples < objective.min_samples:
            missing.append(MissingEvidence(objective.name, Missing.STEP_SAMPLES, samples, objective.min_samples))
        elif row is not None and row.common_cause:
            missing.append(MissingEvidence(objective.name, Missing.COMPARISON))
        elif row is not None and row.step_beyond_bound:
            missing.append(MissingEvidence(objective.name, Missing.ESTIMATE, text=row.step_beyond_bound))
        elif advance_on == "NonInferior" and (row is None or row.verdict != "Pass"):
            missing.append(MissingEvidence(objective.name, Missing.PROOF))
    return missing
