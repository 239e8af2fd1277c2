"""The one table of built-in signals: what each measures, from which series, and how it is tested."""

from dataclasses import dataclass
from typing import Literal

from promptrollout.api import names


@dataclass(frozen=True, slots=True)
class Signal:
    """`kind` chooses the test. Rates read (`bad`, `total`), means read (`count`, `sum`, `sumsq`) as metric names of
    monotone counters. `margin_share` is rollbackAbovePercent's default as a share of maxIncreasePercent.
    """

    kind: Literal["rate", "mean"]
    unit: Literal["share", "usd"]
    noun: str
    bad: str = ""
    total: str = ""
    count: str = ""
    sum: str = ""
    sumsq: str = ""
    latency_bucket: bool = False
    """`bad` is `total` minus the bucket at the objective's threshold."""
    margin_share: float = 0.2
    direction: Literal["more_is_worse", "less_is_worse"] = "more_is_worse"
    from_weight: int = 0
    """Below this weight (percent) it says more of the weight than of the version."""


SIGNALS: dict[str, Signal] = {
    "ErrorRate": Signal("rate", "share", "error rate", bad=names.METRIC_ERRORS, total=names.METRIC_REQUESTS),
    "ContractFailureRate": Signal(
        "rate",
        "share",
        "contract failure rate",
        bad=names.METRIC_CONTRACT_FAILURES,
        total=names.METRIC_CONTRACT_CHECKS,
    ),
    "Latency": Signal(
        "rate",
        "share",
        "share of slow requests",
        bad=names.METRIC_LATENCY + "_bucket",
        total=names.METRIC_LATENCY + "_count",
        latency_bucket=True,
    ),
    "CostPerRequest": Signal(
        "mean",
        "usd",
        "cost per request",
        count=names.METRIC_COST_COUNT,
        sum=names.METRIC_COST_SUM,
        sumsq=names.METRIC_COST_SUMSQ,
        margin_share=0.5,
    ),
}
