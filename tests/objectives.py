"""Objectives that are taken and that are refused, by the API server and by `lint` alike."""

from typing import Any

Fields = dict[str, Any]
ARM = '{version="{{ version }}",variant="{{variant}}"}'
RATIO: Fields = {"ratio": {"bad": f"bad_total{ARM}", "total": f"all_total{ARM}"}}
MEAN: Fields = {"mean": {"sum": f"s{ARM}", "count": f"c{ARM}", "sumsq": f"q{ARM}"}}
VALUE: Fields = {"value": f"max(depth{ARM}) or vector(0)"}
PERCENT: Fields = {"versusStable": {"maxIncreasePercent": 10}}
DECREASE: Fields = {"versusStable": {"maxDecrease": "0.2", "rollbackAboveDecrease": "0.1"}}


def objective(signal: str, **fields: Any) -> Fields:
    return {"name": "it", "signal": signal, **fields}


TAKEN: dict[str, Fields] = {
    **{
        signal: objective(signal, max="0.5", **PERCENT)
        for signal in (
            *("ErrorRate", "ContractFailureRate", "RefusalRate", "TruncationRate", "EmptyAnswerRate", "FallbackRate"),
            *("GuardrailViolationRate", "AbandonmentRate", "NegativeFeedbackRate", "FeedbackRate", "ToolFailureRate"),
            *("CostPerRequest", "CostPerAction", "CallsPerAction", "ErrorsPerAction", "TokensPerRequest"),
        )
    },
    "tokens above 1": objective("TokensPerRequest", max="4000"),
    "a threshold": objective("Latency", thresholdSeconds="2.5", max="0.1"),
    "a quantile": objective("TimeToFirstToken", quantile="0.95", max="3", **PERCENT),
    "a judge's dimension": objective("JudgeScore", dimension="helpful", min="3.5", **DECREASE),
    "a judge's default margin": objective("JudgeScore", dimension="helpful", versusStable={}),
    "a cache to keep warm": objective("CacheHitRate", min="0.5", **DECREASE),
    "a posted score": objective("Score", score="answered", min="0.5", **DECREASE),
    "a score to keep low": objective("Score", score="complaints", direction="LowerIsBetter", max="20", **PERCENT),
    "a ratio": objective("Custom", custom=RATIO, max="0.5", **PERCENT),
    "a mean": objective("Custom", custom=MEAN, max="50"),
    "a mean to keep high": objective("Custom", custom=MEAN, direction="HigherIsBetter", min="50", **DECREASE),
    "a value": objective("Custom", custom=VALUE, max="20"),
    "braces and quotes inside a label": objective(
        "Custom", custom={"ratio": {"bad": rf'a{{x="\"}}", {ARM[1:]}', "total": f"b{ARM}"}}, max="0.1"
    ),
}

_SECONDS = "Latency and TimeToFirstToken need exactly one of thresholdSeconds and quantile"
_ARM = "each query must select one arm: put {{ version }} and {{ variant }} into its label matchers"
_SHARE = "max of a rate is a share between 0 and 1"

REFUSED: dict[str, tuple[Fields, str]] = {
    "no bound": (objective("ErrorRate"), "an objective needs a bound"),
    "an unknown signal": (objective("Vibes", max="1"), "Vibes"),
    "a threshold of errors": (objective("ErrorRate", max="0.1", thresholdSeconds="1"), "belong to the signals Latency"),
    "a quantile of costs": (objective("CostPerRequest", max="1", quantile="0.9"), "belong to the signals Latency"),
    "no threshold": (objective("TimeToFirstToken", max="0.1"), _SECONDS),
    "threshold and quantile": (objective("Latency", max="0.1", thresholdSeconds="1", quantile="0.9"), _SECONDS),
    "a quantile without seconds": (objective("Latency", quantile="0.9", **PERCENT), "quantile needs max, in seconds"),
    "a quantile in percent": (objective("Latency", quantile="95", max="3"), "quantile is a share above 0 and below 1"),
    "a rate above 1": (objective("RefusalRate", max="5"), _SHARE),
    "a ratio above 1": (objective("Custom", custom=RATIO, max="5"), "max of a ratio is a share between 0 and 1"),
    "a max of 0": (objective("CallsPerAction", max="0"), "max must be above 0"),
    "a min of 0": (objective("Score", score="s", min="0.0"), "min must be above 0"),
    "a min of errors": (objective("ErrorRate", min="0.1"), "min is for signals where less is worse"),
    "a min of a low score": (
        objective("Score", score="s", min="1", direction="LowerIsBetter"),
        "min is for signals where less is worse",
    ),
    "a max of a judge": (objective("JudgeScore", dimension="d", max="4"), "the absolute bound is min, not max"),
    "a judge's score of 5": (objective("JudgeScore", dimension="d", min="5"), "min of JudgeScore is from 1 to below 5"),
    "a decrease of errors": (objective("ErrorRate", **DECREASE), "versusStable needs maxIncreasePercent"),
    "an empty comparison of errors": (objective("ErrorRate", versusStable={}), "versusStable needs maxIncreasePercent"),
    "percent of a judge": (objective("JudgeScore", dimension="d", **PERCENT), "versusStable needs maxDecrease"),
    "no margin of a score": (objective("Score", score="s", versusStable={}), "versusStable needs maxDecrease"),
    "both margins": (
        objective("Score", score="s", versusStable={"maxIncreasePercent": 5, "maxDecrease": "1"}),
        "set maxIncreasePercent where more is worse, maxDecrease where less is worse, not both",
    ),
    "a rollback above the margin": (
        objective("ErrorRate", versusStable={"maxIncreasePercent": 5, "rollbackAbovePercent": 6}),
        "rollbackAbovePercent must not exceed maxIncreasePercent",
    ),
    "a rollback above the decrease": (
        objective("Score", score="s", versusStable={"maxDecrease": "1", "rollbackAboveDecrease": "1.5"}),
        "rollbackAboveDecrease must not exceed maxDecrease",
    ),
    "a rollback above the default decrease": (
        objective("JudgeScore", dimension="d", versusStable={"rollbackAboveDecrease": "0.2"}),
        "rollbackAboveDecrease must not exceed maxDecrease",
    ),
    "a decrease of 0": (
        objective("Score", score="s", versusStable={"maxDecrease": "0"}),
        "maxDecrease must be above 0",
    ),
    "a judge without dimension": (objective("JudgeScore", min="3"), "dimension belongs to signal JudgeScore"),
    "a dimension of errors": (
        objective("ErrorRate", max="0.1", dimension="d"),
        "dimension belongs to signal JudgeScore",
    ),
    "a score without name": (objective("Score", min="3"), "score belongs to signal Score, which needs it"),
    "a direction of errors": (objective("ErrorRate", max="0.1", direction="LowerIsBetter"), "direction belongs to"),
    "a direction of a ratio": (
        objective("Custom", custom=RATIO, max="0.1", direction="LowerIsBetter"),
        "direction belongs to",
    ),
    "no queries": (objective("Custom", max="1"), "custom belongs to signal Custom, which needs it"),
    "queries of errors": (objective("ErrorRate", max="0.1", custom=RATIO), "custom belongs to signal Custom"),
    "two forms": (objective("Custom", max="0.1", custom=RATIO | VALUE), "exactly one of ratio, mean and value"),
    "no form": (objective("Custom", max="0.1", custom={}), "exactly one of ratio, mean and value"),
    "a ratio without version": (
        objective("Custom", max="0.1", custom={"ratio": {"bad": f"a{ARM}", "total": 'b{v="{{ variant }}"}'}}),
        _ARM,
    ),
    "a mean without variant": (
        objective("Custom", max="1", custom={"mean": {**MEAN["mean"], "sumsq": 'b{v="{{ version }}"}'}}),
        _ARM,
    ),
    "a value without arm": (objective("Custom", max="1", custom={"value": "up"}), "value must select one arm"),
    "a function of a counter": (
        objective("Custom", max="0.1", custom={"ratio": {"bad": f"rate(a{ARM}[5m])", "total": f"b{ARM}"}}),
        "custom.ratio.bad",
    ),
    "a second selector": (
        objective("Custom", max="0.1", custom={"ratio": {"bad": f"a{ARM} or b{ARM}", "total": f"b{ARM}"}}),
        "custom.ratio.bad",
    ),
    "a query without end": (
        objective("Custom", max="1", custom={"value": VALUE["value"] + " " * 1024}),
        "custom.value",
    ),
    "a dimension with braces": (objective("JudgeScore", min="3", dimension="{x}"), "dimension"),
}
