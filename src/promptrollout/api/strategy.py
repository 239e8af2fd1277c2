"""How a change of the prompt is rolled out: steps, pauses, who meets the canary."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from promptrollout.api.delivery import Audience, Testers
from promptrollout.api.meta import Model


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


HOLDBACK_PERCENT = 5
"""Default of `holdbackPercent`."""
MOST_HOLDBACK_PERCENT = 50


class Canary(Model):
    rules: ClassVar = (
        (
            "!has(self.holdbackPercent) || self.holdbackPercent == 0 || "
            "self.steps.all(s, !has(s.weight) || s.weight + self.holdbackPercent <= 100)",
            "holdbackPercent must not exceed 100 minus the last weight: lower it, or set it to 0",
        ),
        (
            "!has(self.holdbackPercent) || self.holdbackPercent == 0 || !has(self.bakeSeconds) || self.bakeSeconds > 0",
            "holdbackPercent needs bakeSeconds above 0: raise bakeSeconds, or set holdbackPercent to 0",
        ),
    )

    audience: Audience | None = None
    testers: Testers = []
    """Requests that match any of these may choose their variant by the header `x-promptrollout-variant`. They are not
    part of the analysis."""
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
    """In order. After the last step all users but the holdback get the canary, and all users after the bake."""
    bake_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 3600
    """How long the old version stays loaded after the promotion. All objectives can still roll back during this time:
    absolute ones always, those versus stable as far as there is a holdback."""
    holdback_percent: Annotated[int, Field(ge=0, le=MOST_HOLDBACK_PERCENT)] | None = None
    """Percent of users who stay on the old version during the bake, so that both versions can still be compared.
    Absent: 5, or less if the last step leaves less to stable. 0: none. There is none either without a bake, without
    analysis, for a first version, after `promote --full`, and on the way back to the version before."""
    max_duration_seconds: Annotated[int, Field(ge=1, le=7_776_000)] = 86_400
    """Longest active time of a canary: time in which it is not paused, and its pods and metrics are available."""
    on_timeout: Literal["Hold", "Rollback"] = "Hold"
    """When `maxDurationSeconds` is over: wait for a person, or roll back."""
    on_first_breach: Literal["Reject", "WithdrawAndRetry"] = "Reject"
    """A breach takes the version to weight 0 at once. `Reject` rejects it too. `WithdrawAndRetry` gives it one fresh
    try from the first step after 10 minutes, and rejects it at a second breach: for providers with short incidents."""
    on_insufficient_traffic: Literal["RequireApproval", "Hold", "Rollback"] = "RequireApproval"
    """When a step's time is over and traffic was too low to decide: ask a person, wait, or roll back."""
    on_metrics_loss: Literal["Hold", "ReduceToFirstStep", "Withdraw"] = "Hold"
    """When metrics have been unavailable for `metricsLossSeconds` during a canary: keep the weight, go back to the
    first weight, or go to weight 0 and start over when metrics are back. The version is never rejected."""
    metrics_loss_seconds: Annotated[int, Field(ge=10, le=86_400)] = 600
    """How long metrics may be unavailable before `onMetricsLoss` applies, with an Event."""


class Strategy(Model):
    canary: Canary
    """Raise the weight step by step while the objectives hold."""
