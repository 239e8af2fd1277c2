"""A small world around `plan`: versions, gateway pods that confirm, and recorded metrics that can be read again.

Deterministic, no I/O. Unit tests tell stories with it; property tests drive it with random histories.
"""

import dataclasses
import hashlib
import json
from typing import Any

from promptrollout.api.command import Command, MalformedCommand
from promptrollout.api.delivery import Laggard, Stickiness, VersionRef
from promptrollout.api.rollout import RolloutSpec, RolloutStatus, Snapshot
from promptrollout.api.slo import Objective
from promptrollout.api.strategy import Step
from promptrollout.engine.lifecycle.facts import Delivered, DeliveryIntent, Desired, Facts, Plan, Pods
from promptrollout.engine.lifecycle.plan import plan
from promptrollout.engine.lifecycle.reasons import Problem
from promptrollout.engine.statistics.dispersion import SHARDS
from promptrollout.engine.statistics.evidence import Arm, Counts, Evidence, Interval

INTERVAL = 30
START = 1_800_000_000

ERRORS = Objective.model_validate(
    {"name": "errors", "signal": "ErrorRate", "versusStable": {"maxIncreasePercent": 50}, "minSamples": 100}
)
COST = Objective.model_validate(
    {"name": "cost", "signal": "CostPerRequest", "versusStable": {"maxIncreasePercent": 10}, "minSamples": 200}
)


def version(text: str) -> VersionRef:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return VersionRef(version=f"app-{digest[:10]}", digest=f"sha256:{digest}")


def snapshot(*steps: dict[str, Any], **fields: Any) -> Snapshot:
    base: dict[str, Any] = {
        "steps": [Step.model_validate(s) for s in steps]
        or [Step(weight=10, min_duration_seconds=60), Step(weight=50, min_duration_seconds=60)],
        "objectives": [ERRORS],
        "interval_seconds": INTERVAL,
        "bake_seconds": 60,
        "max_duration_seconds": 86_400,
        "on_timeout": "Hold",
        "on_insufficient_traffic": "RequireApproval",
        "analyse": True,
    }
    return Snapshot(**(base | fields))


SPEC = RolloutSpec.model_validate(
    {
        "gatewayRef": {"name": "default"},
        "versionRef": {"name": "any"},
        "strategy": {"canary": {"steps": [{"weight": 10}]}},
        "analysis": {"objectives": [ERRORS.dump()]},
    }
)


class World:
    """One rollout. `tick()` lets an interval pass; the fields may be changed between ticks."""

    def __init__(self, rules: Snapshot | None = None) -> None:
        self.now = START
        self.uid = "uid-1"
        self.rules: Snapshot | None = rules or snapshot()
        self.desired: VersionRef | None = version("v1")
        self.baseline: VersionRef | None = None
        self.problems: tuple[str, ...] = ()
        """Each `path: reason and fix`."""
        self.paused = False
        self.frozen: str | None = None
        self.overridden = False
        self.unserved = 0
        self.promoted: VersionRef | None = None
        self.command: Command | MalformedCommand | None = None
        self.pods = ["pod-a", "pod-b"]
        self.deaf: set[str] = set()
        """Pods that never confirm."""
        self.metrics_available = True
        self.metrics_problem = "connection refused"
        """What the operator says of metrics that are not available."""
        self.contact: bool | None = None
        """Whether the metrics source answers when it is asked before a raise; None: it did so a moment ago."""
        self.asked = 0
        """How often it was asked."""
        self.requests = 2_000.0
        """An interval's requests, of both arms together."""
        self.error_rate: dict[str, float] = {}
        """By digest; others have 1 %."""
        self.cost: dict[str, float] = {}
        """By digest, in USD; others cost 0.001."""
        self.silent: set[str] = set()
        """Objectives whose series are missing."""
        self.provider_unreachable: bool | None = False
        self.pods_state = Pods()
        self.heavy_key_share_percent: int | None = None
        self.stickiness = Stickiness()
        self.read_until: int | None = None
        """Intervals that end later are not read yet; None: all are."""
        self.lost_on_canary = 0.0
        """Share of the canary's requests that never reach it."""
        self.extra: dict[str, str] = {}
        """Further objectives, each measured like another."""
        self.status = RolloutStatus()
        self.persisted = "{}"
        self.checkpointed_at = START
        self.intent: DeliveryIntent | None = None
        self.sequence = 0
        self.heard: dict[str, int] = {}
        self.recorded: dict[tuple[int, str], dict[str, Any]] = {}
        """By start of the interval and stable's digest."""
        self.events: list[str] = []
        self.weights: list[tuple[int, str | None]] = []
        """Every configuration that pods were sent: weight and canary's digest."""
        self.stables: list[str] = []
        """Stable's digest in each of them."""
        self.evicted: list[str] = []
        self.writes = 0

    # ------------------------------------------------------------ acting

    def tick(self, times: int = 1) -> "World":
        for _ in range(times):
            self.record()
            self.now += INTERVAL
            self.settle()
        return self

    def settle(self) -> None:
        """Plan until nothing moves at this moment; pods answer in between."""
        for _ in range(12):
            result = self.plan_once()
            if result.next_seconds is None or result.next_seconds > self.now:
                return
        raise AssertionError("the plan does not settle")

    def plan_once(self, *, crash_after: str | None = None) -> Plan:
        """One reconcile: status, delivery, events, in this order. `crash_after` drops what comes later."""
        result = plan(self.facts(), self.now)
        due = self.now - self.checkpointed_at >= min(300, 10 * INTERVAL)
        if result.urgent or due:
            self.persisted = json.dumps(result.status.dump())
            self.checkpointed_at = self.now
            self.writes += result.urgent
        self.status = result.status
        self.asked += result.wants_contact
        if crash_after == "status":
            return result
        if result.delivery is not None:
            self.send(result.delivery)
        if crash_after == "delivery":
            return result
        self.events += [decision.reason for decision in result.decisions]
        self.evicted += result.evict
        return result

    def send(self, intent: DeliveryIntent) -> None:
        if self.intent is None or dataclasses.replace(intent, memory=self.intent.memory) != self.intent:
            self.sequence += 1
            self.weights.append((intent.weight, intent.canary.digest if intent.canary else None))
            self.stables.append(intent.stable.digest)
        self.intent = intent
        for pod in self.pods:
            if pod not in self.deaf:
                self.heard[pod] = self.sequence

    def restart(self) -> None:
        """The operator was killed: only what was written is left."""
        self.status = RolloutStatus.model_validate_json(self.persisted)

    def lose_status(self) -> None:
        self.persisted = "{}"
        self.restart()

    def tell(self, verb: str, **fields: Any) -> None:
        s = self.status
        base = {
            "id": f"c{self.now}-{verb}",
            "verb": verb,
            "rolloutUID": self.uid,
            "revision": s.revision,
            "attempt": s.attempt,
            "step": s.current_step_index,
            "by": "alice",
        }
        self.command = Command.model_validate(base | fields)
        self.settle()

    # ------------------------------------------------------------ the surroundings

    def record(self) -> None:
        """This interval's counts under the configuration in force."""
        start = self.now - self.now % INTERVAL
        if self.intent is None:
            return
        if self.intent.canary is None:  # a first version is measured as if it were a canary
            bad = self.requests * self.error_rate.get(self.intent.stable.digest, 0.01)
            self.recorded[start, self.intent.stable.digest] = {"errors": (Counts.of(self.requests, bad, 0, 0),)}
            return
        share = self.intent.weight / 100
        canary, stable = self.requests * share * (1 - self.lost_on_canary), self.requests * (1 - share)
        bad = self.error_rate.get(self.intent.canary.digest, 0.01)
        good = self.error_rate.get(self.intent.stable.digest, 0.01)
        price = self.cost.get(self.intent.canary.digest, 0.001), self.cost.get(self.intent.stable.digest, 0.001)
        counts: dict[str, Any] = {
            "errors": Counts(sharded(canary, bad), sharded(stable, good)),
            "cost": Counts(moments(canary, price[0]), moments(stable, price[1])),
        }
        counts |= {name: counts[like] for name, like in self.extra.items()}
        self.recorded[start, self.intent.stable.digest] = {k: (v,) for k, v in counts.items() if k not in self.silent}

    def evidence(self) -> Evidence:
        if not self.metrics_available:
            return Evidence(available=False, problem=self.metrics_problem, lost=True, confirmed=False)
        confirmed = self.contact is None
        since = self.status.clock.evaluated_until
        if since is None:
            return Evidence(confirmed=confirmed)
        ends = range(since + INTERVAL, (self.read_until or self.now) + 1, INTERVAL)
        stable = self.intent.stable.digest if self.intent else ""
        found = (Interval(e - INTERVAL, e, self.recorded.get((e - INTERVAL, stable), {})) for e in ends)
        return Evidence(tuple(found), confirmed=confirmed)

    def delivered(self) -> Delivered | None:
        if self.intent is None:
            return None
        confirmed = [pod for pod in self.pods if self.heard.get(pod) == self.sequence]
        return Delivered(
            sequence=self.sequence,
            weight=self.intent.weight,
            stable=self.intent.stable,
            canary=self.intent.canary,
            memory=self.intent.memory,
            complete=bool(self.pods) and len(confirmed) == len(self.pods),
            acknowledged=len(confirmed),
            total=len(self.pods),
            laggards=tuple(Laggard(pod=p, reason="silent") for p in self.pods if p not in confirmed),
            unserved=self.unserved,
            overridden=self.overridden,
            canary_provider_unreachable=self.provider_unreachable,
            heavy_key_share_percent=self.heavy_key_share_percent,
        )

    def facts(self) -> Facts:
        return Facts(
            name="app",
            namespace="shop",
            uid=self.uid,
            generation=1,
            spec=SPEC.model_copy(update={"paused": self.paused, "stickiness": self.stickiness}),
            status=self.status,
            desired=Desired(self.desired, self.baseline, self.rules, tuple(problem(each) for each in self.problems)),
            delivered=self.delivered(),
            promoted=self.promoted,
            evidence=self.evidence(),
            command=self.command,
            frozen=self.frozen,
            pods=self.pods_state,
        )

    # ------------------------------------------------------------ reading

    def condition(self, kind: str) -> str:
        return next(c.status for c in self.status.conditions if c.type == kind)

    @property
    def at(self) -> tuple[str | None, int]:
        """Stage and weight that pods were last sent."""
        return self.status.stage, self.intent.weight if self.intent else 0


def problem(text: str) -> Problem:
    path, _, reason = text.partition(": ")
    return Problem(path, reason)


def sharded(n: float, rate: float) -> Arm:
    """A rate's arm whose users are spread unevenly, but all alike."""
    sizes = [1 + (7 * g) % 5 / 8 for g in range(SHARDS)]
    parts = [n * size / sum(sizes) for size in sizes]
    return Arm(n, n * rate, shards=tuple((part, part * rate) for part in parts))


def moments(n: float, mean: float) -> Arm:
    return Arm(n, n * mean, n * mean * mean * 1.25)


def started(rules: Snapshot | None = None, **fields: Any) -> World:
    """A world where v1 is stable and v2 has just been asked for and loaded; its first step is sent."""
    world = World(rules)
    world.settle()
    for name, value in fields.items():
        setattr(world, name, value)
    world.desired = version("v2")
    world.settle()
    return world
