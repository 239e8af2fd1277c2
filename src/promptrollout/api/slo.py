"""PromptSLO: objectives on quality, cost, latency and errors, reusable by several rollouts."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from promptrollout.api.meta import Conditions, CustomResource, Decimal, Model, Name

Signal = Literal[
    "ErrorRate",
    "ContractFailureRate",
    "RefusalRate",
    "TruncationRate",
    "EmptyAnswerRate",
    "GuardrailViolationRate",
    "FallbackRate",
    "AbandonmentRate",
    "NegativeFeedbackRate",
    "FeedbackRate",
    "ToolFailureRate",
    "JudgeScore",
    "Score",
    "CostPerRequest",
    "CostPerAction",
    "CallsPerAction",
    "ErrorsPerAction",
    "TokensPerRequest",
    "Latency",
    "TimeToFirstToken",
    "CacheHitRate",
    "Custom",
]

Selector = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=r"""^[a-zA-Z_:][a-zA-Z0-9_:]*\{[^{}"'`#]*("([^"\\]|\\.)*"[^{}"'`#]*)*\}$""",
    ),
]
"""A metric with its label matchers and nothing round it: counters are read raw, and compared series by series. Values
stand in double quotes, and there are no comments: an expression could hide in them."""
Expression = Annotated[str, Field(min_length=1, max_length=1024)]
LabelValue = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$")]

# ---------------------------------------------------------------- Custom

QUERIES_SELECT_ARM: Final = (
    "each query must select one arm: put {{ version }} and {{ variant }} into its label matchers"
)
VALUE_SELECTS_ARM: Final = "value must select one arm: use {{ version }} and {{ variant }} in it"
"""Rules that `lint` finds the faulty query of."""


def _selects_arm(*queries: str) -> tuple[str, str]:
    """The rule that every one of these fields names both variables."""
    parts = [
        rf"self.{query}.matches(r'\{{\{{ *{name} *\}}\}}')" for query in queries for name in ("version", "variant")
    ]
    return " && ".join(parts), QUERIES_SELECT_ARM


class CustomRatio(Model):
    """A share: counters of bad ones and of all."""

    rules: ClassVar = (_selects_arm("bad", "total"),)

    bad: Selector
    """Counter of bad events: `checkout_failed_total{prompt_version="{{ version }}", variant="{{ variant }}"}`."""
    total: Selector
    """Counter of all events."""


class CustomMean(Model):
    """A mean: counters of a quantity, of its square, and of how often it was measured. None of them may fall."""

    rules: ClassVar = (_selects_arm("sum", "count", "sumsq"),)

    sum: Selector
    """Counter of the sum of all values."""
    count: Selector
    """Counter of how many values there were."""
    sumsq: Selector
    """Counter of the sum of the squares of all values, which gives their variance."""


class Custom(Model):
    """PromQL for the gateway's metrics source. Variables: namespace, rollout, rollout_uid, variant, version."""

    rules: ClassVar = (
        (
            "[has(self.ratio), has(self.mean), has(self.value)].filter(x, x).size() == 1",
            "custom has exactly one of ratio, mean and value",
        ),
        (
            "!has(self.value) || (" + _selects_arm("value")[0] + ")",
            VALUE_SELECTS_ARM,
        ),
    )

    ratio: CustomRatio | None = None
    """A share of bad events, from two counters."""
    mean: CustomMean | None = None
    """A mean, from three counters."""
    value: Expression | None = None
    """Any expression with one value, queried for each arm at the end of each interval: one sample per interval."""

    @property
    def form(self) -> str:
        """`ratio`, `mean` or `value`."""
        return "ratio" if self.ratio is not None else "mean" if self.mean is not None else "value"

    @property
    def fields(self) -> dict[str, str]:
        """Template by the path of its field in the objective."""
        if self.value is not None:
            return {"custom.value": self.value}
        part = self.ratio or self.mean
        return {f"custom.{self.form}.{name}": query for name, query in part.dump().items()} if part else {}

    @property
    def queries(self) -> dict[str, str]:
        """Template by role, in the words of the engine's counts."""
        if self.ratio is not None:
            return {"n": self.ratio.total, "total": self.ratio.bad}
        if self.mean is not None:
            return {"n": self.mean.count, "total": self.mean.sum, "total_squared": self.mean.sumsq}
        return {"value": self.value or ""}


# ---------------------------------------------------------------- objectives


class VersusStable(Model):
    """Bounds on the canary relative to stable over the same time."""

    rules: ClassVar = (
        (
            "!has(self.rollbackAbovePercent) || (has(self.maxIncreasePercent) &&"
            " self.rollbackAbovePercent <= self.maxIncreasePercent)",
            "rollbackAbovePercent must not exceed maxIncreasePercent",
        ),
        (
            "!has(self.maxIncreasePercent) || !(has(self.maxDecrease) || has(self.rollbackAboveDecrease))",
            "set maxIncreasePercent where more is worse, maxDecrease where less is worse, not both",
        ),
        (
            "!has(self.rollbackAboveDecrease) || double(self.rollbackAboveDecrease) <="
            " (has(self.maxDecrease) ? double(self.maxDecrease) : 0.10)",
            "rollbackAboveDecrease must not exceed maxDecrease",
        ),
        ("!has(self.maxDecrease) || double(self.maxDecrease) > 0.0", "maxDecrease must be above 0"),
    )

    max_increase_percent: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Promotion margin, in percent of stable's value: the canary passes when it is shown to be worse by less. It is no
    tolerance: the canary is rolled back above `rollbackAbovePercent`, by default a fifth of this for rates and half for
    means. With 50 an error rate passes below +50 % and is rolled back above +10 %."""
    rollback_above_percent: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Breach: the canary is shown to be worse by more than this. Absent: a fifth of `maxIncreasePercent` for rates (10
    for 50), half of it for costs and other means (25 for 50)."""
    max_decrease: Decimal | None = None
    """Promotion margin where less is worse, in the signal's unit. `JudgeScore` and `CacheHitRate` without it: 0.10. The
    canary is rolled back above `rollbackAboveDecrease`, by default half of this."""
    rollback_above_decrease: Decimal | None = None
    """Breach where less is worse: the canary is shown to be lower by more than this. Absent: half of `maxDecrease`, so
    0.05 for 0.10."""


_SECONDS = "self.signal in ['Latency', 'TimeToFirstToken']"
_LESS_IS_WORSE = (
    "(self.signal in ['JudgeScore', 'CacheHitRate']"
    " || (self.signal == 'Score' && !(has(self.direction) && self.direction == 'LowerIsBetter'))"
    " || (self.signal == 'Custom' && has(self.direction) && self.direction == 'HigherIsBetter'))"
)
_MEANS = [
    *("CostPerRequest", "CostPerAction", "CallsPerAction", "ErrorsPerAction", "TokensPerRequest"),
    *("JudgeScore", "Score", "Custom"),
]


class Objective(Model):
    """One line of an SLO: a signal and at least one bound."""

    rules: ClassVar = (
        (
            "has(self.max) || has(self.min) || has(self.versusStable)",
            "an objective needs a bound: set max (min where less is worse), versusStable or both",
        ),
        (
            f"!(has(self.thresholdSeconds) || has(self.quantile)) || {_SECONDS}",
            "thresholdSeconds and quantile belong to the signals Latency and TimeToFirstToken",
        ),
        (
            f"!({_SECONDS}) || has(self.thresholdSeconds) != has(self.quantile)",
            "Latency and TimeToFirstToken need exactly one of thresholdSeconds and quantile",
        ),
        ("!has(self.quantile) || has(self.max)", "quantile needs max, in seconds"),
        (
            "!has(self.quantile) || (double(self.quantile) > 0.0 && double(self.quantile) < 1.0)",
            'quantile is a share above 0 and below 1, for example "0.95"',
        ),
        (
            f"!has(self.max) || has(self.quantile) || self.signal in {_MEANS}"
            " || (double(self.max) > 0.0 && double(self.max) < 1.0)",
            'max of a rate is a share between 0 and 1, for example "0.02" for 2 %',
        ),
        (
            "!has(self.max) || !has(self.custom) || !has(self.custom.ratio) || double(self.max) < 1.0",
            'max of a ratio is a share between 0 and 1, for example "0.02" for 2 %',
        ),
        ("!has(self.max) || double(self.max) > 0.0", "max must be above 0"),
        ("!has(self.min) || double(self.min) > 0.0", "min must be above 0"),
        (
            f"!has(self.min) || {_LESS_IS_WORSE}",
            "min is for signals where less is worse: JudgeScore, Score, CacheHitRate, Custom with HigherIsBetter",
        ),
        (f"!has(self.max) || !{_LESS_IS_WORSE}", "where less is worse, the absolute bound is min, not max"),
        (
            "self.signal != 'JudgeScore' || !has(self.min) || (double(self.min) >= 1.0 && double(self.min) < 5.0)",
            "min of JudgeScore is from 1 to below 5",
        ),
        (
            f"!has(self.versusStable) || {_LESS_IS_WORSE} || has(self.versusStable.maxIncreasePercent)",
            "versusStable needs maxIncreasePercent: of this signal, more is worse",
        ),
        (
            f"!has(self.versusStable) || !{_LESS_IS_WORSE} || has(self.versusStable.maxDecrease)"
            " || (self.signal in ['JudgeScore', 'CacheHitRate'] && !has(self.versusStable.maxIncreasePercent))",
            "versusStable needs maxDecrease, in the signal's unit: of this signal, less is worse",
        ),
        (
            "(self.signal == 'JudgeScore') == has(self.dimension)",
            "dimension belongs to signal JudgeScore, which needs it",
        ),
        ("(self.signal == 'Score') == has(self.score)", "score belongs to signal Score, which needs it"),
        ("(self.signal == 'Custom') == has(self.custom)", "custom belongs to signal Custom, which needs it"),
        (
            "!has(self.direction) || self.signal == 'Score' || (has(self.custom) && !has(self.custom.ratio))",
            "direction belongs to signal Score, and to Custom with mean or value",
        ),
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
    """Name of the objective. Unique in the rollout, including its SLOs."""
    signal: Signal
    """What is measured. `Custom` uses your own PromQL, the others use the gateways' metrics."""
    max: Decimal | None = None
    """Absolute upper bound. For rates a share between 0 and 1, with `quantile` seconds, else in the signal's unit."""
    min: Decimal | None = None
    """Absolute lower bound, for signals where less is worse. In the signal's unit."""
    versus_stable: VersusStable | None = None
    threshold_seconds: Decimal | None = None
    """For `Latency` and `TimeToFirstToken`: the objective is on the share of requests slower than this."""
    quantile: Decimal | None = None
    """For `Latency` and `TimeToFirstToken`, instead of `thresholdSeconds`: this share of requests must take at most
    `max` seconds. "0.95" with `max` "3" is the same test as at most 0.05 of the requests slower than 3 s."""
    dimension: LabelValue | None = None
    """For `JudgeScore`: what the judge scores, from 1 to 5."""
    score: LabelValue | None = None
    """For `Score`: the name of the score."""
    direction: Literal["HigherIsBetter", "LowerIsBetter"] | None = None
    """For `Score` (default `HigherIsBetter`), and `Custom` with `mean` or `value` (default `LowerIsBetter`)."""
    custom: Custom | None = None
    """For `Custom`: the queries."""
    min_samples: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Canary samples that a step needs before it can pass. It does not delay the rollback of a rate."""
    advance_on: Literal["NoBreach", "NonInferior"] | None = None
    """What a pass needs: no breach, or proof that the canary is within the margin. Absent: `NoBreach` in early steps,
    `NonInferior` in the last."""
    negligible_rate: Decimal | None = None
    """For rates: below this share a difference does not matter. Absent: 0.005."""


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
    """The generation of the spec that this status describes."""
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
