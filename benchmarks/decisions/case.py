"""A case of the benchmark: a scenario, what is true of it, and how the version is rolled out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from promptrollout.api.slo import Objective
from promptrollout.simulation.scenario import Scenario, Strict

ALPHA = 0.05
"""Level of every rule that has one."""

Ramp = tuple[tuple[int, int], ...]
"""Weight in percent and seconds of each step; then 100 %."""

ERRORS = Objective.model_validate({"name": "errors", "signal": "ErrorRate", "versusStable": {"maxIncreasePercent": 50}})


class Case(Strict):
    scenario: Scenario
    truth: Literal["harmless", "harmful", "margin", "unreadable"]
    """Harmless: it should be promoted. Harmful: rolled back. Margin: at the promotion margin, so not promoted.
    Unreadable: the metrics cannot be trusted, so neither."""
    runs: Annotated[int, Field(ge=1)] | None = None
    """Absent: 500 if harmful, else 2,000."""
    ramp: Ramp = ((5, 1800), (10, 1800), (25, 1800), (50, 9000))
    objectives: Annotated[list[dict[str, object]], Field(min_length=1)] = [ERRORS.dump()]
    """As a PromptRollout declares them, each with a name."""
    judged: str = "ErrorRate"
    """The signal that the truth is about."""
    promised: bool = True
    """A goal is made of it. Otherwise it shows where the promise ends."""
    most_rolled_back: Annotated[float, Field(gt=0, lt=1)] = ALPHA
    """Goal, where a rollback is false."""
    most_requests: Annotated[int, Field(ge=1)] | None = None
    """Goal, where it is right: the canary's requests until then (median)."""
    has_traffic: bool = True
    """Enough requests to be promoted in the steps' own time."""
    lost_seconds: Annotated[int, Field(ge=0)] = 0
    """Of the steps' time, without metrics."""
    decides_nothing: bool = False
    """Metrics are missing or mislead for a while: nothing may be decided on that."""
    compares_with_oracle: bool = False
    """Our rule runs with rollbackAbovePercent 0 as well."""
    requests_at_most: Annotated[int, Field(ge=1)] | None = None
    """Goal of the median number of canary requests from the onset until rollback."""
    as_quick_as: str | None = None
    """Name of a case: nine tenths of the runs are promoted within 1.3 times its time."""
    times_two_arm_oracle: Annotated[float, Field(gt=1)] | None = None
    """Goal of the median requests until rollback, as a multiple of those of somebody who knows both rates, and tests
    the same null at the same level and weights."""

    @property
    def name(self) -> str:
        return self.scenario.name

    @property
    def signals(self) -> list[str]:
        return [str(objective["signal"]) for objective in self.objectives]

    @property
    def onset(self) -> int:
        """First interval in which the canary is what the truth says."""
        s = self.scenario
        of: Any = {"ErrorRate": s.errors, "Latency": s.latency, "CostPerRequest": s.cost, "JudgeScore": s.judge}.get(
            self.judged
        )
        return 0 if of is None else of.onset

    @property
    def planned_seconds(self) -> int:
        """What the steps take at least; time without metrics does not count."""
        return sum(seconds for _, seconds in self.ramp) + self.lost_seconds


def read_cases(path: Path = Path(__file__).parent / "cases.yaml") -> dict[str, Case]:
    cases: Sequence[Case] = [Case.model_validate(entry) for entry in yaml.safe_load(path.read_text())]
    found = {case.name: case for case in cases}
    if len(found) < len(cases):
        raise ValueError(f"{path}: names of scenarios must be unique")
    return found
