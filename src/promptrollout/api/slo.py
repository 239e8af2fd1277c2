"""PromptSLO: objectives on quality, cost, latency and errors, reusable by several rollouts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from promptrollout.api.meta import Conditions, CustomResource, Decimal, Model, Name

Signal = Literal["ErrorRate", "ContractFailureRate", "CostPerRequest", "Latency"]


class VersusStable(Model):
    """Bounds on the canary relative to stable over the same time, in percent of stable's value."""

    rules: ClassVar = (
        (
            "!has(self.rollbackAbovePercent) || self.rollbackAbovePercent <= self.maxIncreasePercent",
            "rollbackAbovePercent must not exceed maxIncreasePercent",
        ),
    )

    max_increase_percent: Annotated[int, Field(ge=0, le=10_000)]
    """Promotion margin: the canary passes when it is shown to be worse by less than this."""
    rollback_above_percent: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Breach: the canary is shown to be worse by more than this.

    Absent: half of the margin for cost, a fifth of it for rates."""


class Objective(Model):
    """One line of an SLO: a signal and at least one bound."""

    rules: ClassVar = (
        (
            "has(self.max) || has(self.versusStable)",
            "an objective needs a bound: set max, versusStable or both",
        ),
        (
            "(self.signal == 'Latency') == has(self.thresholdSeconds)",
            "thresholdSeconds belongs to signal Latency, which needs it",
        ),
        (
            "!has(self.max) || self.signal == 'CostPerRequest' || (double(self.max) > 0.0 && double(self.max) < 1.0)",
            'max of a rate is a share between 0 and 1, for example "0.02" for 2 %',
        ),
        ("!has(self.max) || double(self.max) > 0.0", "max must be above 0"),
        (
            "!has(self.thresholdSeconds) || double(self.thresholdSeconds) > 0.0",
            "thresholdSeconds must be above 0",
        ),
        (
            "!has(self.negligibleRate) || (double(self.negligibleRate) > 0.0 && double(self.negligibleRate) < 0.5)",
            "negligibleRate is a share above 0 and below 0.5",
        ),
    )

    name: Name
    """Unique in the rollout, its SLOs included."""
    signal: Signal
    """What is measured, from the gateways' own metrics."""
    max: Decimal | None = None
    """Absolute bound. Rates and `Latency`: a share of requests between 0 and 1. `CostPerRequest`: USD."""
    versus_stable: VersusStable | None = None
    threshold_seconds: Decimal | None = None
    """`Latency` only: the objective is on the share of requests slower than this."""
    min_samples: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Canary samples inside the step before it can pass. Never delays the rollback of a rate."""
    advance_on: Literal["NoBreach", "NonInferior"] | None = None
    """Absent: NoBreach in early steps, NonInferior in the last."""
    negligible_rate: Decimal | None = None
    """Rates: below this share a difference does not matter. Absent: 0.005."""


Objectives = Annotated[
    list[Objective],
    Field(
        max_length=20,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


class SLOSpec(Model):
    objectives: Annotated[Objectives, Field(min_length=1)]
    """Names are unique."""


class SLOStatus(Model):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    conditions: Conditions = []


class PromptSLO(CustomResource):
    """A reusable list of objectives."""

    kind_name = "PromptSLO"
    plural = "promptslos"
    short_names = ("pslo",)
    columns = (
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    )

    spec: SLOSpec
    status: SLOStatus | None = None
