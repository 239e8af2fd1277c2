"""A scenario: what users, models and metrics do while a version is rolled out. Input of the simulator, as YAML.

Numbers may be written as numbers or as decimal strings. `start`, `end` and `onset` count intervals from the canary's
first exposure; whatever has no onset also holds before it, when stable is alone.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from promptrollout.api.invalid import problems
from promptrollout.simulation import bounded_yaml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Multiple = Annotated[float, Field(ge=0, le=1_000)]
"""Multiple of stable's value; 1 is no difference."""
Onset = Annotated[int, Field(ge=0, le=100_000)]
"""First interval in which the canary differs."""


class Strict(BaseModel):
    """camelCase outside, immutable, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


class Window(Strict):
    """Intervals from `start` up to and without `end`."""

    start: Annotated[int, Field(ge=-60, le=100_000)]
    end: Annotated[int, Field(le=100_000)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end ({self.end}) must be after start ({self.start})")
        return self


class Spike(Window):
    multiple: Multiple = 1
    """Of each arm's own rate."""
    added: Share = 0
    """Share of requests that fail in both arms alike, on top of that: a provider's trouble."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.multiple == 1 and self.added == 0:
            raise ValueError("multiple and added change nothing: set one of them")
        return self


class Cycle(Strict):
    """A daily wave: the value times 1 + amplitude * sin."""

    amplitude: Share
    period_seconds: Positive = 86_400
    peak_second: Annotated[float, Field(ge=0)] = 43_200
    """After the canary's first exposure."""


class DailyRequests(Cycle):
    mean: Positive
    """Requests a minute, over the whole period."""


class SomeUsers(Strict):
    """Users whom the canary serves worse than others."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Of all users, chosen by chance."""
    multiple: Multiple
    """Of what they would meet on stable."""


class Errors(Strict):
    rate: Share = 0.02
    """Of stable's requests; 0 is spotless."""
    canary_multiple: Multiple = 1
    onset: Onset = 0
    some_users: SomeUsers | None = None
    """On the canary, from `onset` on. Needs `users`."""
    failing_user: Annotated[int, Field(ge=1)] | None = None
    """All requests of the user with this rank of activity fail on both arms; 1 is the most active one. Needs `users`.
    """
    common_spike: Spike | None = None
    """Affects both arms."""
    cycle: Cycle | None = None
    """Of both arms' rate."""
    shocks: Annotated[float, Field(ge=0, lt=1)] = 0
    """Correlation of two requests of one arm in one interval: each arm draws its rate anew, from a
    Beta distribution. Before the exposure too."""
    shock_intervals: Annotated[int, Field(ge=1, le=1_000)] = 1
    """How many intervals a shock lasts. When the first one begins is drawn for each arm."""


class Users(Strict):
    """Users who stay on their arm, each with own habits. Absent: requests are independent."""

    count: Annotated[int, Field(ge=1, le=1_000_000)]
    zipf_exponent: Annotated[float, Field(ge=0, le=5)] = 0.8
    """The r-th most active user sends requests in proportion to r to the minus this."""
    intra_user_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Of two requests of one user."""
    rate_exponent: Annotated[float, Field(ge=0, le=2)] = 0
    """A user's errors go with their activity to this power; 0: heavy users fail as often as others, 1: a user who asks
    twice as often fails twice as often."""


class Latency(Strict):
    slow_share: Share = 0.05
    """Stable's share of requests above the objective's threshold."""
    canary_multiple: Multiple = 1
    onset: Onset = 0


class Cache(Strict):
    """The provider's prefix cache, cold for a new prompt. Comes on top of `cost.meanUsd`."""

    input_usd: Positive
    """What a request's input costs without a hit."""
    discount: Share = 0.75
    """Of the input's cost, saved by a hit."""
    stable_hit_share: Share = 0.9
    canary_hit_share: Share = 0.2
    """When the canary is first exposed."""
    warm_up_seconds: Positive | None = None
    """Time constant of the canary's approach to stable's share. Absent: it stays cold."""


class Cost(Strict):
    mean_usd: Positive = 0.004
    """Of one request on stable, without what `cache` adds."""
    coefficient_of_variation: Annotated[float, Field(ge=0, le=100)] = 0.95
    """Lognormal."""
    tail_index: Annotated[float, Field(gt=1, le=100)] | None = None
    """Pareto instead, with this index: below 2 the variance is infinite."""
    canary_multiple: Multiple = 1
    onset: Onset = 0
    cache: Cache | None = None


class Judge(Strict):
    """Scores from 1 to 5, of a sample of answers."""

    sampled_share: Share = 0.2
    mean: Annotated[float, Field(gt=1, lt=5)] = 4
    standard_deviation: Annotated[float, Field(gt=0, lt=2)] = 0.8
    canary_difference: Annotated[float, Field(gt=-4, lt=4)] = 0
    """The canary's mean minus stable's."""
    onset: Onset = 0
    stable_delay_seconds: Annotated[float, Field(ge=0)] = 0
    canary_delay_seconds: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 1 < self.mean + self.canary_difference < 5:
            raise ValueError(
                f"mean + canaryDifference ({self.mean + self.canary_difference:g}) must be between 1 and 5"
            )
        return self


class Feedback(Strict):
    """Thumbs, which arrive with exponential delays."""

    share: Share = 0.05
    """Share of answers that get feedback."""
    negative_share: Share = 0.3
    """Bad share of stable's feedback, once all of it has arrived."""
    canary_multiple: Multiple = 1
    onset: Onset = 0
    bad_delay_seconds: Annotated[float, Field(ge=0)] = 0
    """Mean."""
    good_delay_seconds: Annotated[float, Field(ge=0)] = 0
    """Mean."""


class Actions(Strict):
    """An agent: an action begins with a person's message and takes several requests."""

    calls_per_action: Annotated[float, Field(ge=1, le=1_000)] = 3
    """Stable's mean; geometric."""
    canary_multiple: Multiple = 1
    onset: Onset = 0


class PodRestarts(Strict):
    pods: Annotated[int, Field(ge=1, le=1_000)] = 4
    every_seconds: Positive = 1_800
    """One of the pods restarts. What it counted since its last scrape is lost, for both arms."""


class Gaps(Strict):
    """What is missing of the metrics. Missing intervals are carried to the next one, as the operator's reader does."""

    nan_share: Share = 0
    """Of intervals, for each signal by itself, that cannot be read."""
    prometheus_outages: Annotated[list[Window], Field(max_length=20)] = []
    """Prometheus is down: it answers no query and has no data for these intervals."""
    pod_restarts: PodRestarts | None = None
    canary_provider_outage: Window | None = None
    """The canary's provider alone is down: its requests fail until that is noticed, then stable answers them."""
    noticed_after_seconds: Annotated[float, Field(ge=0)] = 10


class Scenario(Strict):
    """Everything that a run draws from. The defaults are 600 requests a minute and 2 % errors, no difference."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][-a-z0-9.]*$", max_length=63)]
    description: Annotated[str, Field(max_length=1024)] = ""
    requests_per_minute: Positive | DailyRequests = 600
    interval_seconds: Annotated[int, Field(ge=1, le=3_600)] = 60
    intervals: Annotated[int, Field(ge=1, le=100_000)] = 280
    """After the canary's first exposure."""
    errors: Errors = Errors()
    users: Users | None = None
    latency: Latency | None = None
    cost: Cost | None = None
    judge: Judge | None = None
    feedback: Feedback | None = None
    actions: Actions | None = None
    gaps: Gaps = Gaps()
    sample_ratio: Annotated[float, Field(gt=0, le=2)] = 1
    """Units that reach the canary, divided by those that its weight asks for; 1 is no mismatch."""

    @model_validator(mode="after")
    def _has_users(self) -> Self:
        if self.users is None and (self.errors.some_users is not None or self.errors.failing_user is not None):
            raise ValueError("errors.someUsers and errors.failingUser speak of users: set users.count")
        if self.users is not None and (self.errors.failing_user or 1) > self.users.count:
            raise ValueError(f"errors.failingUser is a rank among {self.users.count} users (users.count)")
        return self


def load(path: Path) -> Scenario:
    """The scenario in a YAML file. ValueError with file, field and reason if the file is not one."""
    try:
        return Scenario.model_validate(bounded_yaml.load(path.read_text("utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(problems(error))}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
