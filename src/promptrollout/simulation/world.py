"""One rollout on a virtual clock, decided by the operator's own `plan`: what would happen, and when."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from promptrollout.api.decisions import DecisionReason
from promptrollout.api.delivery import VersionRef
from promptrollout.api.rollout import Decision, ObjectiveStatus, RolloutSpec, RolloutStatus, Snapshot
from promptrollout.engine.lifecycle.analysis import is_outage
from promptrollout.engine.lifecycle.facts import Delivered, DeliveryIntent, Desired, Facts, Plan
from promptrollout.engine.lifecycle.moves import BASELINE_INTERVALS, step_seconds
from promptrollout.engine.lifecycle.plan import plan
from promptrollout.engine.lifecycle.progress import COMMON_SECONDS
from promptrollout.engine.objectives import sample_ratio
from promptrollout.engine.objectives.definitions import bounds_of
from promptrollout.engine.statistics.evidence import Evidence, Interval
from promptrollout.simulation.toll import Toll, tolls
from promptrollout.simulation.traffic import Strata, Traffic

Outcome = Literal["Promoted", "RolledBack", "Held"]

EPOCH = 1_800_000_000
"""When a simulation without dates of its own exposes its canary, in seconds since 1970."""
SETTLE_PLANS = 12
"""More moves than a rollout can make at one moment."""
PAUSE_INTERVALS = 2
"""A longer gap between two plans does not count towards a pause: see engine.lifecycle.progress.count_time."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One decision of the timeline; `seconds` since the canary was first exposed."""

    seconds: int
    weight: int
    """Percent of users on the canary when it was taken."""
    reason: str
    message: str
    warning: bool
    evidence: tuple[ObjectiveStatus, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one rollout."""

    outcome: Outcome
    seconds: int
    """From the first exposure to 100 % or to the rollback; if it held, to the end of the traffic."""
    reason: str
    """The decision's; empty if it held."""
    why: str
    """The decision's message; if it held, what the rollout was waiting for."""
    timeline: tuple[Moment, ...]
    weights: tuple[tuple[int, int], ...]
    """Seconds and percent of users on the canary from then on."""
    tolls: Mapping[str, Toll]
    """By objective: what the canary cost the users until `seconds`."""
    canary_requests: float
    """Of the objective that counts most, until `seconds`."""
    rows: tuple[ObjectiveStatus, ...]
    """The analysis table at `seconds`."""
    looks: tuple["Look", ...] = ()
    """After each interval, for plots; empty unless asked for."""


@dataclass(frozen=True, slots=True)
class Look:
    """The analysis table after one interval, with its checkpoints."""

    seconds: int
    rows: tuple[ObjectiveStatus, ...]


def simulate(
    rules: Snapshot,
    traffic: Traffic,
    *,
    confirm_seconds: int = 0,
    exposed_at: int = EPOCH,
    at_once: int | None = None,
    coarse: bool = False,
    looks: bool = False,
) -> Run:
    """Roll a version out by `rules` until it is promoted and its bake is over, rolled back, or the traffic ends.

    Pods confirm a configuration after `confirm_seconds` and serve it at once. `at_once`: most intervals handed to one
    plan; 1 is what the operator does, and any number decides the same. `coarse`: what waits for evidence after a step's
    time is evaluated less and less often, which is quicker, and late by at most a fiftieth of the wait. `looks`: keep
    the table after every interval. ValueError if the traffic was cut otherwise than the rules say.
    """
    width = rules.interval_seconds
    if traffic.interval_seconds != width:
        raise ValueError(
            f"the metrics come in intervals of {traffic.interval_seconds} s and analysis.intervalSeconds is {width}: "
            "make them equal"
        )
    origin = -(-exposed_at // width) * width
    return _World(rules, traffic, confirm_seconds, origin, 1 if looks else at_once, coarse, looks).run()


def _version(text: str) -> VersionRef:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return VersionRef(version=text, digest=f"sha256:{digest}")


STABLE, CANARY = _version("stable"), _version("canary")


def _spec(rules: Snapshot) -> RolloutSpec:
    """A spec that asks for nothing beyond the rules."""
    spec = {
        "gatewayRef": {"name": "simulated"},
        "versionRef": {"name": CANARY.version},
        "strategy": {"canary": {"steps": [{"weight": 1}]}},
        "analysis": {"mode": "None"},
    }
    return RolloutSpec.model_validate(spec).model_copy(update={"stickiness": rules.stickiness})


def _mismatch(status: RolloutStatus) -> bool:
    return any(row.name == sample_ratio.NAME and row.common_cause for row in status.analysis)


@dataclass(slots=True)
class _World:
    rules: Snapshot
    traffic: Traffic
    confirm_seconds: int
    origin: int
    at_once: int | None
    coarse: bool
    wants_looks: bool
    status: RolloutStatus = field(init=False)
    now: int = field(init=False)
    spec: RolloutSpec = field(init=False)
    planned_at: int = field(init=False)
    has_bounds: bool = field(init=False)
    intent: DeliveryIntent | None = None
    sequence: int = 0
    confirmed_at: int = 0
    sent: list[tuple[int, int]] = field(default_factory=list)
    """Time, and percent of users on the canary from then on."""
    seen: dict[int, Strata] = field(default_factory=dict)
    timeline: list[Moment] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    outcome: Outcome = "Held"
    decided: Moment | None = None
    rows: tuple[ObjectiveStatus, ...] = ()

    def __post_init__(self) -> None:
        self.spec = _spec(self.rules)
        self.status = RolloutStatus(stage="Idle", weight=100, stable=STABLE, revision=1)
        self.now = self.planned_at = self.origin - self.confirm_seconds
        self.has_bounds = any(bounds_of(objective).bound is not None for objective in self.rules.objectives)

    @property
    def width(self) -> int:
        return self.rules.interval_seconds

    # ------------------------------------------------------------ the clock

    def run(self) -> Run:
        end = self.origin + self.traffic.intervals * self.width
        self.settle()
        while self.status.stage != "Idle" and self.now < end:
            self.now = min(self.next_moment(), end)
            self.settle()
        return self.result()

    def next_moment(self) -> int:
        """When something may happen next: pods confirm, a step's time is up, or just the next interval is over."""
        ends = self.now - self.now % self.width + self.width
        if self.now < self.confirmed_at <= ends:
            return self.confirmed_at
        ahead = max(1, min(self.quiet_intervals(), self.at_once or self.quiet_intervals()))
        away = self.status.clock.unreachable_since is not None
        for end in range(ends, ends + ahead * self.width, self.width):
            if away or not self.answers(end) or self.unreachable(end):
                return max(ends, end - self.width)
        return ends + (ahead - 1) * self.width

    def quiet_intervals(self) -> int:
        """How many intervals pass at least before anything but a breach can happen.

        `plan` folds intervals one by one up to the first breach, so that it decides the same on all of them together.
        """
        clock, stage = self.status.clock, self.status.stage
        if clock.acknowledged_at is None or clock.acknowledged_at % self.width:
            return 1
        behind = self.now - (clock.evaluated_until or self.now)  # an outage's intervals are all read after it
        if stage == "Baking":
            return -(-(self.rules.bake_seconds - clock.step_active_seconds - behind) // self.width)
        if stage != "Stepping":
            return 1
        step = self.rules.steps[self.status.current_step_index]
        if step.pause is not None or not self.rules.analyse:
            return PAUSE_INTERVALS
        left = min(
            step_seconds(step) - clock.step_active_seconds, self.rules.max_duration_seconds - clock.active_seconds
        )
        if left <= 0 and self.coarse:
            return -left // self.width // 50
        until = clock.evaluated_until or self.now
        common = clock.common_since or until
        if self.has_bounds and common <= clock.acknowledged_at + COMMON_SECONDS:
            left = min(left, common + COMMON_SECONDS - until)  # then the weight may be taken back
        return -(-(left - behind) // self.width)

    def answers(self, end: int) -> bool:
        """Whether Prometheus answers when the interval that ends then is over. It is not asked before the exposure."""
        k = self.index(end) - 1
        return k < 0 or self.traffic.available(k)

    def unreachable(self, end: int) -> bool:
        """Whether only the canary's provider was down in the interval that ends then."""
        k = self.index(end) - 1
        return k >= 0 and self.traffic.unreachable(k)

    def index(self, start: int) -> int:
        return (start - self.origin) // self.width

    # ------------------------------------------------------------ planning

    def settle(self) -> None:
        """Plan until nothing moves at this moment."""
        for _ in range(SETTLE_PLANS):
            result = self.plan_once()
            self.take(result)
            if result.next_seconds is None or result.next_seconds > self.now or not self.confirmed:
                return
        raise RuntimeError("the plan does not settle; this is a defect of the engine")

    def plan_once(self) -> Plan:
        """One plan. Where the operator's next plan would have seen something else in mid-batch, the clock is put back
        to the look at that very interval."""
        planned_at, self.planned_at = self.planned_at, self.now
        while True:
            facts = self.facts()
            result = plan(facts, self.now)
            turn = self.turning_point(facts, result)
            looks = range(turn or self.now, self.now, self.width)
            look = next((at for at in looks if at > planned_at and self.answers(at)), None)
            if look is None:
                return result
            self.now = self.planned_at = look

    def turning_point(self, facts: Facts, result: Plan) -> int | None:
        """End of the first interval of a batch after which what was folded so far decides something about the next: a
        breach, an outage of both arms, a mismatch of the sample ratio."""
        intervals, until = facts.evidence.intervals, result.status.clock.evaluated_until
        if len(intervals) < 2 or until is None or until <= intervals[0].start:
            return None
        outages = (each.end for each in intervals if is_outage(self.rules.objectives, each))
        first = next(outages, until) if facts.status.clock.outage_since is None else intervals[0].end
        if _mismatch(facts.status) != _mismatch(result.status):
            first = min(first, intervals[len(intervals) // 2 - 1].end)
        return min(first, until)

    def take(self, result: Plan) -> None:
        before, self.status = self.status, result.status
        for decision in result.decisions:
            self.note(decision)
        intent = result.delivery
        if intent is not None and not self.is_in_force(intent):
            self.sequence += 1
            self.confirmed_at = self.now + self.confirm_seconds
            weight = intent.weight if intent.canary else 100 if intent.stable == CANARY else 0
            if not self.sent or self.sent[-1][1] != weight:
                self.sent.append((self.now, weight))
        self.intent = intent
        known, taken = before.clock.evaluated_until, self.status.clock.evaluated_until
        if self.wants_looks and known is not None and taken is not None and taken > known and self.now > self.origin:
            self.looks.append(Look(self.now - self.origin, tuple(self.status.analysis)))

    def is_in_force(self, intent: DeliveryIntent) -> bool:
        return self.intent is not None and dataclasses.replace(intent, memory=self.intent.memory) == self.intent

    def note(self, decision: Decision) -> None:
        moment = Moment(
            seconds=self.now - self.origin,
            weight=decision.weight,
            reason=decision.reason,
            message=decision.message,
            warning=decision.type == "Warning",
            evidence=tuple(decision.evidence),
        )
        self.timeline.append(moment)
        if decision.reason == DecisionReason.ROLLOUT_COMPLETED:
            self.outcome, self.decided, self.rows = "Promoted", moment, tuple(self.status.analysis)
        elif decision.reason == self.status.withdrawal and self.status.rejected:
            self.outcome, self.decided, self.rows = "RolledBack", moment, tuple(self.status.analysis)

    # ------------------------------------------------------------ the surroundings

    @property
    def confirmed(self) -> bool:
        return self.now >= self.confirmed_at

    def facts(self) -> Facts:
        return Facts(
            name="simulated",
            namespace="simulated",
            uid="simulated",
            generation=1,
            spec=self.spec,
            status=self.status,
            desired=Desired(CANARY, None, self.rules),
            delivered=self.delivered(),
            promoted=None,
            evidence=self.evidence(),
        )

    def delivered(self) -> Delivered | None:
        if self.intent is None:
            return None
        return Delivered(
            sequence=self.sequence,
            weight=self.intent.weight,
            stable=self.intent.stable,
            canary=self.intent.canary,
            memory=self.intent.memory,
            complete=self.confirmed,
            acknowledged=int(self.confirmed),
            total=1,
            canary_provider_unreachable=self.unreachable(self.now - self.now % self.width),
        )

    def evidence(self) -> Evidence:
        if not self.answers(self.now - self.now % self.width):
            return Evidence(available=False, problem="the metrics source does not answer")
        since = self.status.clock.evaluated_until
        if since is None:
            return Evidence()
        starts = range(since, self.now - self.width + 1, self.width)
        return Evidence(tuple(Interval(at, at + self.width, self.counts(at)) for at in starts))

    def counts(self, start: int) -> Strata:
        k = self.index(start)
        for each in range(max(self.seen, default=-BASELINE_INTERVALS - 1) + 1, k + 1):
            self.seen[each] = self.traffic.counts(each, self.weight_at(self.origin + each * self.width))
        return self.seen.get(k, {})

    def weight_at(self, time: int) -> int:
        return next((weight for at, weight in reversed(self.sent) if at <= time), 0)

    # ------------------------------------------------------------ the result

    def result(self) -> Run:
        until = self.decided.seconds if self.decided else self.now - self.origin
        paid = tolls(self.counts(self.origin + at) for at in range(0, until - self.width + 1, self.width))
        return Run(
            outcome=self.outcome,
            seconds=until,
            reason=self.decided.reason if self.decided else "",
            why=self.decided.message if self.decided else self.status.message,
            timeline=tuple(self.timeline),
            weights=tuple((at - self.origin, weight) for at, weight in self.sent),
            tolls=paid,
            canary_requests=max((toll.requests for toll in paid.values()), default=0.0),
            rows=self.rows or tuple(self.status.analysis),
            looks=tuple(self.looks),
        )
