"""PromptRollout: which prompt a name serves, and how a change of it is rolled out."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from promptrollout.api.delivery import (
    Attempt,
    Audience,
    Laggard,
    RejectedVersion,
    Reporting,
    Stickiness,
    Testers,
    VersionRef,
)
from promptrollout.api.meta import (
    Conditions,
    CustomResource,
    LocalRef,
    Model,
    ShortText,
    Text,
    Timestamp,
)
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.slo import Objective, Objectives

# ---------------------------------------------------------------- spec


class Pause(Model):
    duration_seconds: Annotated[int, Field(ge=1, le=2_592_000)] | None = None
    """Absent: waits for a person (`promote`)."""


class Step(Model):
    """Either a weight or a pause."""

    rules: ClassVar = (
        ("has(self.weight) != has(self.pause)", "a step has either weight or pause"),
        ("!has(self.minDurationSeconds) || has(self.weight)", "minDurationSeconds belongs to a weight"),
    )

    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    """Percent of users on the canary. Grows strictly from step to step."""
    min_duration_seconds: Annotated[int, Field(ge=0, le=2_592_000)] | None = None
    """Active time at this weight before the next step. Absent: 300."""
    pause: Pause | None = None
    """Nothing advances until it is over; a breach still rolls back."""


class Canary(Model):
    audience: Audience | None = None
    testers: Testers = []
    """Whose requests may name their variant in the header `x-promptrollout-variant`, if any of these match. They stay
    outside the analysis."""
    steps: Annotated[
        list[Step],
        Field(
            min_length=1,
            max_length=20,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {
                        "rule": "self.filter(s, has(s.weight)).map(s, s.weight).isSorted() && "
                        "self.filter(s, has(s.weight)).all(s, "
                        "self.filter(t, has(t.weight) && t.weight == s.weight).size() == 1)",
                        "message": "weights must grow strictly from step to step",
                    },
                    {
                        "rule": "self.exists(s, has(s.weight))",
                        "message": "at least one step needs a weight",
                    },
                ]
            },
        ),
    ]
    """In order. After the last one the canary gets everybody."""
    bake_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 3600
    """After 100 %: how long the old arm stays loaded and absolute objectives can still roll back."""
    max_duration_seconds: Annotated[int, Field(ge=1, le=7_776_000)] = 86_400
    """Of active time."""
    on_timeout: Literal["Hold", "Rollback"] = "Hold"
    """When maxDurationSeconds is over: wait for a person, or go back to stable."""
    on_insufficient_traffic: Literal["RequireApproval", "Hold", "Rollback"] = "RequireApproval"
    """When a step's time is over and there were too few requests to tell: ask a person, wait, or go back to stable."""
    on_metrics_loss: Literal["Hold", "ReduceToFirstStep", "Withdraw"] = "Hold"
    """When the metrics source could not be read for metricsLossSeconds while users meet the canary: stay, go back to
    the first weight, or go to weight 0 and start over when it can be read again. Never rejects the version."""
    metrics_loss_seconds: Annotated[int, Field(ge=10, le=86_400)] = 600
    """How long the metrics source may be out of reach before onMetricsLoss applies and an Event says so."""


class Strategy(Model):
    canary: Canary
    """Raise the weight step by step while the objectives hold."""


class Analysis(Model):
    rules: ClassVar = (
        (
            "!(has(self.mode) && self.mode == 'None') || (self.objectives.size() == 0 && self.sloRefs.size() == 0)",
            "mode None excludes objectives and sloRefs",
        ),
        (
            "(has(self.mode) && self.mode == 'None') || self.objectives.size() + self.sloRefs.size() > 0",
            "declare objectives or sloRefs, or say mode: None",
        ),
    )

    mode: Literal["Metrics", "None"] = "Metrics"
    """`None`: steps advance by time alone and nothing is rolled back by itself."""
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """How often the objectives are evaluated. At least twice the scrape interval."""
    slo_refs: Annotated[list[LocalRef], Field(max_length=10)] = []
    """PromptSLOs whose objectives apply too."""
    objectives: Objectives = []
    """Of this rollout. ErrorRate and ContractFailureRate are watched even if they are not named."""


class RolloutSpec(Model):
    rules: ClassVar = (
        (
            "has(self.template) != has(self.versionRef)",
            "set exactly one of template (the prompt itself) and versionRef (a PromptVersion)",
        ),
        (
            "!has(self.stickiness) || (self.stickiness.by == 'Header') == has(self.stickiness.header)",
            "stickiness.header belongs to by: Header, which needs it",
        ),
        (
            "!has(self.reporting) || (has(self.evidenceSource) && self.evidenceSource == 'Reported')",
            "reporting belongs to evidenceSource: Reported; set that, or remove spec.reporting",
        ),
    )

    gateway_ref: LocalRef
    """The PromptGateway that serves this rollout."""
    template: PromptSpec | None = None
    """The prompt itself. Editing it starts a rollout."""
    version_ref: LocalRef | None = None
    """The PromptVersion to serve. Naming another one starts a rollout."""
    baseline_ref: LocalRef | None = None
    """A PromptVersion to compare the first version with; without it the first version is served at once."""
    stickiness: Stickiness = Stickiness()
    """What stays on its arm."""
    evidence_source: Literal["Gateway", "Reported"] = "Gateway"
    """`Reported`: applications render prompts, call the model themselves and report to `POST /v1/usage`; what they
    never report is a failure. `Gateway`: only what the gateway sees itself counts."""
    reporting: Reporting | None = None
    """With `evidenceSource: Reported`; absent: its defaults."""
    strategy: Strategy
    """How a change reaches the users."""
    analysis: Analysis
    """What a change is judged by."""
    paused: bool = False
    """Nothing advances; a breach still rolls back."""
    revision_history_limit: Annotated[int, Field(ge=0, le=50)] = 10
    """How many copies of versions are kept beside those in use and the one to go back to."""

    @property
    def reported(self) -> Reporting | None:
        """How applications report; None where only what the gateway sees counts."""
        return (self.reporting or Reporting()) if self.evidence_source == "Reported" else None


# ---------------------------------------------------------------- status

Phase = Literal["Healthy", "Progressing", "Paused", "Degraded"]
Stage = Literal["Idle", "Loading", "Stepping", "Promoting", "Baking", "Withdrawing"]
VerdictKind = Literal["Breach", "Pass", "NoEvidence"]


class Snapshot(Model):
    """What the current revision is judged by, taken when it started (and again when a person edits it)."""

    steps: Annotated[list[Step], Field(max_length=20)]
    objectives: Annotated[list[Objective], Field(max_length=40)]
    """Of the rollout and of its SLOs, and the two that are always on."""
    interval_seconds: int
    bake_seconds: int
    max_duration_seconds: int
    on_timeout: Literal["Hold", "Rollback"]
    on_insufficient_traffic: Literal["RequireApproval", "Hold", "Rollback"]
    on_metrics_loss: Literal["Hold", "ReduceToFirstStep", "Withdraw"] = "Hold"
    metrics_loss_seconds: int = 600
    analyse: bool
    """False with `analysis.mode: None`."""
    stickiness: Stickiness = Stickiness()
    audience: Audience | None = None
    reporting: Reporting | None = None
    """Only with `evidenceSource: Reported`."""


class ObjectiveStatus(Model):
    """One row of the analysis table."""

    name: ShortText
    signal: ShortText
    verdict: VerdictKind
    canary: Annotated[str, Field(max_length=32)] = ""
    stable: Annotated[str, Field(max_length=32)] = ""
    canary_samples: Annotated[int, Field(ge=0)] = 0
    stable_samples: Annotated[int, Field(ge=0)] = 0
    step_samples: Annotated[int, Field(ge=0)] = 0
    """Canary samples since the step was acknowledged."""
    difference: Annotated[str, Field(max_length=96)] = ""
    """Interval for canary minus stable (or the ratio), valid at any time."""
    message: Annotated[str, Field(max_length=512)] = ""
    common_cause: bool | None = None
    """Stable violates `max` as well, or the arms cannot be compared (the canary does not get its share of requests, or
    fewer of its answers could be judged): nothing is concluded from that row, and nothing advances."""
    checkpoint: Annotated[str, Field(max_length=1024)] | None = None
    """The test's running sums, exact; read by the engine only."""


class Decision(Model):
    """One entry of the decision record: what was decided, and on what evidence."""

    id: Annotated[str, Field(max_length=64)]
    """Unique in the rollout; also part of the Event's name."""
    at: Timestamp
    reason: Annotated[str, Field(max_length=64)]
    """The Event's CamelCase reason."""
    type: Literal["Normal", "Warning"] = "Normal"
    revision: int
    attempt: int = 1
    step: Annotated[str, Field(max_length=16)] = ""
    weight: int
    message: Annotated[str, Field(max_length=1024)]
    command: Annotated[str, Field(max_length=64)] | None = None
    """With reason CommandRefused: the id of the command."""
    window_seconds: int | None = None
    """From the first exposure to the last interval used."""
    evidence: Annotated[list[ObjectiveStatus], Field(max_length=41)] = []
    """Rows of the analysis table without checkpoints; only on decisions that rest on evidence."""


class DeliveryState(Model):
    """How far the current configuration has come."""

    sequence: Annotated[int, Field(ge=0)] = 0
    acknowledged: Annotated[int, Field(ge=0)] = 0
    total: Annotated[int, Field(ge=0)] = 0
    laggards: Annotated[list[Laggard], Field(max_length=10)] = []


Seconds = Annotated[int, Field(ge=0)]
"""Whole seconds: a duration, or a time since the epoch on the metrics source's clock."""


class Clock(Model):
    """Times and durations that the engine computes with."""

    started_at: Seconds | None = None
    """The revision."""
    exposed_at: Seconds | None = None
    """First weight above 0."""
    stage_since: Seconds | None = None
    """The present stage or step, whether acknowledged or not."""
    acknowledged_at: Seconds | None = None
    """Every ready pod had confirmed the present step's configuration, and what applications keep of the one before was
    over (`reporting`; in the future until then); promotion evidence counts from here."""
    evaluated_until: Seconds | None = None
    """End of the last interval that is in the checkpoints. A multiple of the interval."""
    step_active_seconds: Seconds = 0
    active_seconds: Seconds = 0
    unreachable_since: Seconds | None = None
    """The canary's provider alone has been out of reach since then."""
    outage_since: Seconds | None = None
    """Stable itself has failed in half of its requests or more since then: whatever fails both arms decides nothing."""
    unmeasured_since: Seconds | None = None
    """No interval since then has samples of both arms for any objective: perhaps nobody scrapes the pods."""
    common_since: Seconds | None = None
    """Stable has been beyond an absolute bound like the canary since then, all of it in the present step."""
    metrics_lost_since: Seconds | None = None
    """Nothing could be read for this rollout since then, while users met the canary."""
    metrics_lost_told: bool = False
    """`MetricsLost` was recorded, and what the spec asks for was done."""
    metrics_skipped_at: Seconds | None = None
    """When `MetricsSkipped` was recorded last."""
    suspected_at: Seconds | None = None
    """Pods of the gateway failed while users met the canary; since then it waits to be tried alone, or is on trial."""
    trial_at: Seconds | None = None
    """Since when it has been tried alone."""
    suspected_weight: Annotated[int, Field(ge=0, le=100)] = 0
    """The weight at which pods failed: it is under suspicion until they have held out at that one."""
    ticked_at: Seconds | None = None
    """Until when durations that do not rest on intervals (pauses, `mode: None`) have been counted."""


class RolloutStatus(Model):
    """Everything needed to go on after a restart, together with Prometheus."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    phase: Phase | None = None
    message: Text = ""
    stage: Stage | None = None
    """Finer than phase: Idle (one version), Loading (canary loaded at weight 0), Stepping, Promoting (100 % sent),
    Baking (old arm kept), Withdrawing (weight 0 sent)."""
    revision: Annotated[int, Field(ge=0)] = 0
    attempt: Annotated[int, Field(ge=1)] = 1
    current_step_index: Annotated[int, Field(ge=0)] = 0
    step: Annotated[str, Field(max_length=16)] = ""
    """`2/4`, for people."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    """Percent of units on the version that the spec asks for: the canary's weight while it progresses, 100 once it
    is stable, 0 after a rollback."""
    stable: VersionRef | None = None
    canary: VersionRef | None = None
    previous: VersionRef | None = None
    """Served before stable: what `undo` and a revert in Git go back to at once."""
    withdrawal: Annotated[str, Field(max_length=64)] | None = None
    """Why the canary is being taken back."""
    direct: bool = False
    """The canary goes straight to 100 %: it is the version that was served before."""
    paused: bool = False
    """By the verb `pause`; `spec.paused` is separate."""
    step_time_waived: bool = False
    """`promote` was given in this step."""
    step_approved: bool = False
    """A person let this step pass without the evidence that traffic was too thin to give."""
    rejected: Annotated[list[RejectedVersion], Field(max_length=20)] = []
    attempts: Annotated[list[Attempt], Field(max_length=20)] = []
    handled_commands: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=20)] = []
    clock: Clock = Clock()
    snapshot: Snapshot | None = None
    retracing: bool = False
    """The direct canary is an `undo`: it goes through pauses and freezes."""
    analysis: Annotated[list[ObjectiveStatus], Field(max_length=41)] = []
    delivery: DeliveryState = DeliveryState()
    history: Annotated[list[Decision], Field(max_length=10)] = []
    """Newest first."""
    decision_count: Annotated[int, Field(ge=0)] = 0
    conditions: Conditions = []


class PromptRollout(CustomResource):
    """A name that applications call, the prompt it serves, and how changes are rolled out."""

    kind_name = "PromptRollout"
    plural = "promptrollouts"
    short_names = ("pro",)
    max_name_length = 52  # the copies of its versions are named <name>-<ten characters>
    columns = (
        ("Phase", "string", ".status.phase", 0),
        ("Step", "string", ".status.step", 0),
        ("Weight", "integer", ".status.weight", 0),
        ("Stable", "string", ".status.stable.version", 0),
        ("Canary", "string", ".status.canary.version", 0),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("Message", "string", ".status.message", 1),
    )
    selectable_fields = (".spec.gatewayRef.name", ".status.phase")

    spec: RolloutSpec
    status: RolloutStatus | None = None
