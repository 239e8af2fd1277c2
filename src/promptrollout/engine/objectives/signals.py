"""The one table of signals: what each measures, from which series, in which unit and direction, by which test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from promptrollout.api import names, query_template
from promptrollout.api.slo import Objective

Kind = Literal["rate", "mean"]
Unit = Literal["share", "usd", "points", "tokens", "calls", "seconds", "number"]
Direction = Literal["more_is_worse", "less_is_worse"]
Role = str
"""What a counter is to its test, in the words of `evidence.Arm`: `n`, `total`, `total_squared`, `input_usd`,
`saved_usd`, `missing`. `spared`: what `n` has beyond `total`. `1` to `5`: buckets of a histogram of whole scores."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Monotone series of one metric: those whose labels have these values. In braces: a value of the objective."""

    metric: str
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def sharded(self) -> Counter:
        return replace(self, metric=names.shard_metric(self.metric))

    def of(self, values: Mapping[str, str]) -> Counter:
        """With the objective's values in place of the braces. ValueError names what the objective does not set."""
        try:
            return replace(self, labels=tuple((name, text.format_map(values)) for name, text in self.labels))
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing: add it") from error


Counters = tuple[tuple[Role, Counter], ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """One line of the table.

    `kind` chooses the test: of a rate (`total` bad ones of `n`) or of a mean (`total` over `n`). `margin` is the
    default of maxDecrease.
    """

    kind: Kind
    unit: Unit
    noun: str
    counters: Counters = ()
    """All of them are needed, but for those in `optional`."""
    direction: Direction = "more_is_worse"
    optional: tuple[Role, ...] = ()
    shards: Counters | None = None
    """Where the sharded counters do not simply follow from `counters`."""
    strata: tuple[str, ...] = ()
    """Labels by whose values the arms are compared separately."""
    margin: str | None = None
    gate: int = 200
    """Samples of the canary before a mean is judged: variances are estimated, so its validity is asymptotic."""
    settle_seconds: int = 0
    """How long after a step's time evidence of its answers may still come."""
    from_weight: int = 0
    """Below this weight (percent) it says more of the weight than of the version."""
    needs: str = ""
    """What must be there so that anything is measured; for people."""
    exported: bool = True
    """By the gateways of this release. An objective on what is not is refused: see `not_measured`."""

    @property
    def by_age(self) -> bool:
        """Stratified by the age of the answer that is judged: it counts only if it was given after the exposure."""
        return "age" in self.strata

    @property
    def by_cache(self) -> bool:
        """Stratified by whether the provider had the prompt in its cache."""
        return "cache" in self.strata

    @property
    def shard_counters(self) -> Counters:
        """Of `n` and `total` (or `spared`), each with a label `shard`."""
        if self.shards is not None:
            return self.shards
        divided = ("n", "total", "spared")
        return tuple((role, counter.sharded) for role, counter in self.counters if role in divided)


def _part(total: str, n: str) -> Counters:
    return ("n", Counter(n)), ("total", Counter(total))


def _of_requests(total: str) -> Counters:
    return _part(total, names.METRIC_REQUESTS)


def _per_action(total: str) -> Counters:
    return _part(total, names.METRIC_ACTIONS)


def _moments(metric: str, *labels: tuple[str, str]) -> Counters:
    return (
        ("n", Counter(f"{metric}_count", labels)),
        ("total", Counter(f"{metric}_sum", labels)),
        ("total_squared", Counter(f"{metric}_sumsq", labels)),
    )


def _slow(metric: str) -> Counters:
    """The bucket at the objective's edge holds the quick ones."""
    return ("n", Counter(f"{metric}_count")), ("spared", Counter(f"{metric}_bucket", (("le", "{edge}"),)))


_DIMENSION = ("dimension", "{dimension}")
_NEGATIVE = ("rating", "negative")
_TOOLS = "tools in the prompt, and callers that send tool results back through the gateway"

SIGNALS: dict[str, Signal] = {
    "ErrorRate": Signal("rate", "share", "error rate", _of_requests(names.METRIC_ERRORS)),
    "ContractFailureRate": Signal(
        "rate",
        "share",
        "contract failure rate",
        _part(names.METRIC_CONTRACT_FAILURES, names.METRIC_CONTRACT_CHECKS),
        needs="outputSchema in the prompt",
    ),
    "RefusalRate": Signal("rate", "share", "refusal rate", _of_requests(names.METRIC_REFUSALS)),
    "TruncationRate": Signal("rate", "share", "truncation rate", _of_requests(names.METRIC_TRUNCATED)),
    "EmptyAnswerRate": Signal("rate", "share", "rate of empty answers", _of_requests(names.METRIC_EMPTY_ANSWERS)),
    "GuardrailViolationRate": Signal(
        "rate",
        "share",
        "guardrail violation rate",
        _part(names.METRIC_GUARDRAIL_VIOLATIONS, names.METRIC_GUARDRAIL_CHECKS),
        needs="guardrails in the prompt",
        exported=False,
    ),
    "FallbackRate": Signal(
        "rate",
        "share",
        "fallback rate",
        _of_requests(names.METRIC_FALLBACKS),
        needs="fallbacks in the prompt",
    ),
    "AbandonmentRate": Signal("rate", "share", "rate of abandoned requests", _of_requests(names.METRIC_ABANDONED)),
    "NegativeFeedbackRate": Signal(
        "rate",
        "share",
        "share of negative feedback",
        (("n", Counter(names.METRIC_FEEDBACK)), ("total", Counter(names.METRIC_FEEDBACK, (_NEGATIVE,)))),
        strata=("age",),
        settle_seconds=3_600,
        needs="feedback posted to the gateway",
    ),
    # within a minute: of what comes later, a young canary cannot have had as much as stable
    "FeedbackRate": Signal(
        "rate",
        "share",
        "share of answers with feedback within a minute",
        (("n", Counter(names.METRIC_REQUESTS)), ("total", Counter(names.METRIC_FEEDBACK, (("age", "1m"),)))),
        settle_seconds=60,
        needs="feedback posted to the gateway",
    ),
    "ToolFailureRate": Signal(
        "rate",
        "share",
        "tool failure rate",
        _part(names.METRIC_TOOL_FAILURES, names.METRIC_TOOL_CALLS),
        needs=_TOOLS,
        exported=False,
    ),
    "JudgeScore": Signal(
        "mean",
        "points",
        "judge score",
        (
            *(
                (str(points), Counter(f"{names.METRIC_JUDGE_SCORE}_bucket", (_DIMENSION, ("le", str(points)))))
                for points in range(1, 6)
            ),
            ("missing", Counter(names.METRIC_JUDGE_FAILURES, (_DIMENSION,))),
        ),
        optional=("missing",),
        direction="less_is_worse",
        shards=(
            ("n", Counter(f"{names.METRIC_JUDGE_SCORE}_count", (_DIMENSION,)).sharded),
            ("total", Counter(f"{names.METRIC_JUDGE_SCORE}_sum", (_DIMENSION,)).sharded),
        ),
        strata=("judge", "age"),
        margin="0.10",
        gate=50,
        settle_seconds=600,
        needs="a judge that scores this dimension",
        exported=False,
    ),
    "Score": Signal(
        "mean",
        "number",
        "score",
        _moments(names.METRIC_SCORE, ("score", "{score}")),
        direction="less_is_worse",
        strata=("age",),
        gate=50,
        settle_seconds=3_600,
        needs="scores of this name posted to the gateway, none of them negative",
    ),
    "CostPerRequest": Signal(
        "mean",
        "usd",
        "cost per request",
        (
            *_moments(names.METRIC_COST_SUM.removesuffix("_sum")),
            ("input_usd", Counter(names.METRIC_COST_INPUT_SUM)),
            ("saved_usd", Counter(names.METRIC_COST_SAVED_SUM)),
        ),
        optional=("input_usd", "saved_usd"),
        needs="a price for the model in the ModelProvider",
    ),
    # ratios of sums: squares per action are not exported, so their variance comes from the shards
    "CostPerAction": Signal(
        "mean",
        "usd",
        "cost per action",
        _per_action(names.METRIC_ACTION_COST),
        needs=_TOOLS,
        exported=False,
    ),
    "CallsPerAction": Signal(
        "mean",
        "calls",
        "calls per action",
        _per_action(names.METRIC_ACTION_CALLS),
        needs=_TOOLS,
        exported=False,
    ),
    "ErrorsPerAction": Signal(
        "mean",
        "number",
        "errors per action",
        _per_action(names.METRIC_ACTION_ERRORS),
        needs=_TOOLS,
        exported=False,
    ),
    "TokensPerRequest": Signal(
        "mean", "tokens", "tokens per request", _moments(names.METRIC_TOKENS_SUM.removesuffix("_sum"))
    ),
    "Latency": Signal(
        "rate",
        "share",
        "share of slow requests",
        _slow(names.METRIC_LATENCY),
        shards=(
            ("n", Counter(names.METRIC_REQUESTS).sharded),
            ("total", Counter(names.METRIC_SHARD_LATENCY_SLOW, (("le", "{edge}"),))),
        ),
    ),
    "TimeToFirstToken": Signal(
        "rate",
        "share",
        "share of answers slow to begin",
        _slow(names.METRIC_FIRST_TOKEN),
        shards=(
            ("n", Counter(f"{names.METRIC_FIRST_TOKEN}_count").sharded),
            ("total", Counter(names.METRIC_SHARD_FIRST_TOKEN_SLOW, (("le", "{edge}"),))),
        ),
        strata=("cache",),
        needs="streaming requests",
    ),
    # weighted by tokens: a ratio of sums, too
    "CacheHitRate": Signal(
        "mean",
        "share",
        "share of input tokens from the cache",
        _part(names.METRIC_CACHED_INPUT_TOKENS, names.METRIC_INPUT_TOKENS),
        direction="less_is_worse",
        margin="0.10",
        gate=100_000,  # tokens, as all of its samples
        from_weight=50,
        needs="a provider that says how many input tokens came from its cache",
    ),
}

CUSTOM: dict[str, Signal] = {
    "ratio": Signal("rate", "share", "share of bad ones"),
    "mean": Signal("mean", "number", "mean"),
    "value": Signal("mean", "number", "value", gate=30),
}
"""Signal `Custom`, by what is given. Its series are the objective's own: see `operator/evidence/requests.py`."""


@lru_cache(maxsize=4096)
def signal_of(objective: Objective) -> Signal:
    """The table's line, with what the objective itself says: its series' labels, its direction.

    ValueError, with the field and the fix, if the objective does not set what its signal needs.
    """
    custom = objective.custom
    if custom is None and objective.signal == "Custom":
        raise ValueError("custom is missing: add ratio, mean or value")
    found = CUSTOM[custom.form] if custom is not None else SIGNALS[objective.signal]
    if objective.direction is not None:
        found = replace(found, direction=_DIRECTIONS[objective.direction])
    if custom is not None:
        for field, query in custom.fields.items():
            if wrong := query_template.problem(query):
                raise ValueError(f"{field}: {wrong}")
        return replace(found, noun=f"{found.noun} ({objective.name})")
    values = {
        name: value
        for name, value in (
            ("dimension", objective.dimension),
            ("score", objective.score),
            ("edge", edge_seconds(objective)),
        )
        if value is not None
    }
    name = objective.dimension or objective.score
    if not any(counter.labels for _, counter in (*found.counters, *found.shard_counters)):
        return found
    return replace(
        found,
        noun=f"{found.noun} ({name})" if name else found.noun,
        counters=_with(found.counters, values),
        shards=_with(found.shard_counters, values),
    )


def not_measured(objective: Objective) -> str:
    """Why this objective cannot be measured, and what to do; empty if it can. A rollout would wait for it for ever.

    Not of `make_test`: a canary that began under another release is judged by its own objectives to its end.
    """
    signal = SIGNALS.get(objective.signal)
    if signal is None or signal.exported:
        return ""
    return (
        f"objective {objective.name}: gateways of this release do not export {objective.signal}: remove it, or export "
        "your own metrics and use signal Custom"
    )


_DIRECTIONS: dict[str, Direction] = {"HigherIsBetter": "less_is_worse", "LowerIsBetter": "more_is_worse"}


def _with(counters: Counters, values: Mapping[str, str]) -> Counters:
    return tuple((role, counter.of(values)) for role, counter in counters)


def edge_seconds(objective: Objective) -> str | None:
    """Where the histogram is cut: the threshold, or with `quantile` the bound itself. None for signals without one."""
    return objective.threshold_seconds if objective.quantile is None else objective.max


def maximum_of(objective: Objective) -> float | None:
    """`max` in the unit of the test: "95 % within 3 s" is "at most 5 % slower than 3 s", so 0.05."""
    if objective.quantile is not None:
        return float(1 - Decimal(objective.quantile))
    return None if objective.max is None else float(objective.max)


def own_series(objective: Objective) -> dict[str, str]:
    """What beside signal and edge says which series are read, and which way is worse: other ones are other evidence."""
    found = {"dimension": objective.dimension, "score": objective.score, "direction": objective.direction}
    return {name: value for name, value in found.items() if value} | (
        objective.custom.queries if objective.custom is not None else {}
    )
