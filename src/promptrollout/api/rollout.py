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
from promptrollout.api.strategy import HOLDBACK_PERCENT, Step, Strategy

# ---------------------------------------------------------------- spec


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
    """`None`: steps advance by time alone, and nothing is rolled back automatically."""
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """How often the objectives are evaluated. Use at least twice the scrape interval."""
    slo_refs: Annotated[list[LocalRef], Field(max_length=10)] = []
    """PromptSLOs whose objectives apply too."""
    objectives: Objectives = []
    """Objectives of this rollout. `ErrorRate` and `ContractFailureRate` are always watched, even if not listed."""


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
    """A PromptVersion that serves as stable while the first version canaries. Absent: the first version serves all
    users at once."""
    stickiness: Stickiness = Stickiness()
    """What is assigned to an arm and stays there: users, conversations, requests, or values of a header."""
    evidence_source: Literal["Gateway", "Reported"] = "Gateway"
    """`Gateway`: requests through the gateway count. `Reported`: applications also render prompts, call the model
    themselves and report to `POST /v1/usage`; a render without a report counts as a failure."""
    reporting: Reporting | None = None
    """Only with `evidenceSource: Reported`. Absent: the defaults."""
    strategy: Strategy
    """How a change reaches the users."""
    analysis: Analysis
    """What a change is judged by."""
    paused: bool = False
    """Nothing advances; a breach still rolls back."""
    revision_history_limit: Annotated[int, Field(ge=0, le=50)] = 10
    """How many old copies of versions are kept, besides those in use and the rollback target."""

    @property
    def holdback_percent(self) -> int:
        """With the default resolved; not more than the last step leaves to stable."""
        canary = self.strategy.canary
        wanted = HOLDBACK_PERCENT if canary.holdback_percent is None else canary.holdback_percent
        return min([wanted, *(100 - step.weight for step in canary.steps if step.weight is not None)])

    @property
    def reported(self) -> Reporting | None:
        """How applications report; None where only what the gateway sees counts."""
        return (self.reporting or Reporting()) if self.evidence_source == "Reported" else None


# ---------------------------------------------------------------- status

Phase = Literal["Healthy", "Progressing", "Paused", "Degraded"]
Stage = Literal["Idle", "Loading", "Stepping", "Promoting", "Baking", "Withdrawing"]
VerdictKind = Literal["Breach", "Pass", "NoEvidence"]


class Snapshot(Model):
    """The rules of the current revision, copied from the spec when it started and when a person edits them."""

    steps: Annotated[list[Step], Field(max_length=20)]
    objectives: Annotated[list[Objective], Field(max_length=40)]
    """Those of the rollout and of its SLOs, and the two that are always on."""
    interval_seconds: int
    """As in the spec."""
    bake_seconds: int
    """As in the spec."""
    holdback_percent: int = 0
    """As in the spec."""
    max_duration_seconds: int
    """As in the spec."""
    on_timeout: Literal["Hold", "Rollback"]
    """As in the spec."""
    on_first_breach: Literal["Reject", "WithdrawAndRetry"] = "Reject"
    """As in the spec."""
    on_insufficient_traffic: Literal["RequireApproval", "Hold", "Rollback"]
    """As in the spec."""
    on_metrics_loss: Literal["Hold", "ReduceToFirstStep", "Withdraw"] = "Hold"
    """As in the spec."""
    metrics_loss_seconds: int = 600
    """As in the spec."""
    analyse: bool
    """False with `analysis.mode: None`."""
    stickiness: Stickiness = Stickiness()
    audience: Audience | None = None
    reporting: Reporting | None = None
    """Only with `evidenceSource: Reported`."""


class ObjectiveStatus(Model):
    """One row of the analysis table."""

    name: ShortText
    """Name of the objective."""
    signal: ShortText
    """Its signal."""
    verdict: VerdictKind
    """`Breach` rolls back, `Pass` may advance, `NoEvidence` holds."""
    canary: Annotated[str, Field(max_length=32)] = ""
    """Value of the canary."""
    stable: Annotated[str, Field(max_length=32)] = ""
    """Value of stable over the same time."""
    canary_samples: Annotated[int, Field(ge=0)] = 0
    """Samples of the canary since its first request."""
    stable_samples: Annotated[int, Field(ge=0)] = 0
    """Samples of stable over the same time."""
    step_samples: Annotated[int, Field(ge=0)] = 0
    """Canary samples since the step was acknowledged."""
    difference: Annotated[str, Field(max_length=96)] = ""
    """95 % confidence interval for canary minus stable, or for their ratio. Valid at any time."""
    message: Annotated[str, Field(max_length=512)] = ""
    """The verdict in one sentence."""
    common_cause: bool | None = None
    """The row decides nothing and the rollout holds: stable violates `max` too, or the arms cannot be compared."""
    step_beyond_bound: Annotated[str, Field(max_length=128)] | None = None
    """The step cannot pass: what its own samples say is beyond a bound, though not yet proven. Absent while it is
    not."""
    checkpoint: Annotated[str, Field(max_length=2560)] | None = None
    """Running sums of the test. Only the engine reads them."""


class Decision(Model):
    """One entry of the decision record: what was decided, and on what evidence."""

    id: Annotated[str, Field(max_length=64)]
    """Unique in the rollout; also part of the Event's name."""
    at: Timestamp
    """When it was decided."""
    reason: Annotated[str, Field(max_length=64)]
    """Reason of the Event."""
    type: Literal["Normal", "Warning"] = "Normal"
    """Type of the Event."""
    revision: int
    """Revision of the rollout."""
    attempt: int = 1
    """Attempt of the version."""
    step: Annotated[str, Field(max_length=16)] = ""
    """The step, such as `2/4`."""
    weight: int
    """Percent of users on the canary when it was decided."""
    message: Annotated[str, Field(max_length=1024)]
    """What happened, in words."""
    command: Annotated[str, Field(max_length=64)] | None = None
    """With reason CommandRefused: the id of the command."""
    window_seconds: int | None = None
    """Length of the evidence: from the canary's first request, or from the promotion in a bake with a holdback, to the
    end of the last interval used."""
    evidence: Annotated[list[ObjectiveStatus], Field(max_length=41)] = []
    """Rows of the analysis table, for decisions that rest on evidence."""


class DeliveryState(Model):
    """Which gateway pods serve the current configuration."""

    sequence: Annotated[int, Field(ge=0)] = 0
    """Number of the configuration that pods should serve."""
    acknowledged: Annotated[int, Field(ge=0)] = 0
    """Ready pods that confirmed it."""
    total: Annotated[int, Field(ge=0)] = 0
    """Ready pods."""
    laggards: Annotated[list[Laggard], Field(max_length=10)] = []
    """Ready pods that did not confirm it."""


Seconds = Annotated[int, Field(ge=0)]
"""Whole seconds: a duration, or a time since the epoch on the metrics source's clock."""


class Clock(Model):
    """Times (seconds since 1970) and durations that the engine computes with."""

    started_at: Seconds | None = None
    """Start of the revision."""
    exposed_at: Seconds | None = None
    """When the canary got its first weight above 0."""
    compared_since: Seconds | None = None
    """When the test of the bake began, with a holdback: what was before it is no evidence of the canary any more."""
    stage_since: Seconds | None = None
    """Start of the current stage or step, whether acknowledged or not."""
    acknowledged_at: Seconds | None = None
    """When every ready pod had confirmed the current step, plus the time for which applications cache the prompt before
    (`reporting`). Promotion evidence counts from then on."""
    evaluated_until: Seconds | None = None
    """End of the last interval in the checkpoints. A multiple of the interval."""
    first_breach_at: Seconds | None = None
    """When a first breach took this version back, with `onFirstBreach: WithdrawAndRetry`."""
    baseline_until: Seconds | None = None
    """Intervals up to here are read once more, for objectives that began in mid-canary: what stable did before."""
    objectives: Annotated[int, Field(ge=0)] = 0
    """The most objectives of this revision so far. They share the chance of a false alarm, also once some are removed.
    """
    restarts: Annotated[int, Field(ge=0)] = 0
    """How often evidence began anew in this revision: each time at a stricter level."""
    step_active_seconds: Seconds = 0
    """Active time in the current step."""
    active_seconds: Seconds = 0
    """Active time of the revision."""
    unreachable_since: Seconds | None = None
    """Since when only the canary's provider cannot be reached."""
    outage_since: Seconds | None = None
    """Since when stable itself fails in half of its requests or more. What fails both arms decides nothing."""
    unmeasured_since: Seconds | None = None
    """Since when no interval has samples of both arms for any objective. The pods may not be scraped."""
    common_since: Seconds | None = None
    """Since when stable violates an absolute bound as the canary does, within the current step."""
    metrics_lost_since: Seconds | None = None
    """Since when no metrics could be read for this rollout while the canary had users."""
    metrics_lost_told: bool = False
    """`MetricsLost` was recorded and `onMetricsLoss` applied."""
    metrics_skipped_at: Seconds | None = None
    """When `MetricsSkipped` was last recorded."""
    suspected_at: Seconds | None = None
    """When pods of the gateway failed during the canary. Since then it waits to be tried alone, or is being tried."""
    trial_at: Seconds | None = None
    """Since when it is tried alone."""
    suspected_weight: Annotated[int, Field(ge=0, le=100)] = 0
    """The weight at which pods failed. The suspicion ends when pods stay healthy at this weight."""
    ticked_at: Seconds | None = None
    """Until when durations without intervals (pauses, `mode: None`) were counted."""


class RolloutStatus(Model):
    """State of the rollout. With Prometheus, it is all that the operator needs after a restart."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status describes."""
    phase: Phase | None = None
    """As in Argo Rollouts. The conditions say more."""
    message: Text = ""
    """The state in one sentence."""
    stage: Stage | None = None
    """Finer than the phase: `Idle` (one version), `Loading` (canary at weight 0), `Stepping`, `Promoting` (all
    but the holdback sent), `Baking` (old version still loaded), `Withdrawing` (weight 0 sent)."""
    revision: Annotated[int, Field(ge=0)] = 0
    """Counts the changes of the version."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """How often this version was tried."""
    current_step_index: Annotated[int, Field(ge=0)] = 0
    """From 0."""
    step: Annotated[str, Field(max_length=16)] = ""
    """The step for people, such as `2/4`. Empty while the canary loads."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    """Percent of users on the version that the spec asks for: the canary's weight, 100 minus the holdback while it
    bakes, then 100, or 0 after a rollback."""
    stable: VersionRef | None = None
    """The version that serves everybody outside the canary. During the bake all but the holdback."""
    canary: VersionRef | None = None
    """The version that is being rolled out."""
    previous: VersionRef | None = None
    """The version before stable. It serves the holdback during the bake. `undo` and a revert in Git go back to it at
    once."""
    withdrawal: Annotated[str, Field(max_length=64)] | None = None
    """Reason of the last rollback of this revision. Absent once its version starts over."""
    direct: bool = False
    """The canary goes straight to 100 %, because it was served just before."""
    paused: bool = False
    """Paused by the verb `pause`. `spec.paused` is separate."""
    step_time_waived: bool = False
    """`promote` skipped the rest of this step's time."""
    step_approved: bool = False
    """A person approved this step without evidence, because traffic was too low."""
    rejected: Annotated[list[RejectedVersion], Field(max_length=20)] = []
    """Versions that stay rejected until `retry`."""
    attempts: Annotated[list[Attempt], Field(max_length=20)] = []
    """How often versions were tried."""
    handled_commands: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=20)] = []
    """Ids of the last commands, so that none acts twice."""
    clock: Clock = Clock()
    snapshot: Snapshot | None = None
    retracing: bool = False
    """The direct canary is an `undo`, which pauses do not hold."""
    analysis: Annotated[list[ObjectiveStatus], Field(max_length=41)] = []
    """One row for each objective."""
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
