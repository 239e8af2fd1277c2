"""The seam between the state machine and the tests: counts in, judgement out."""

from dataclasses import dataclass
from typing import Any, Protocol

from promptrollout.engine.evidence import Counts


@dataclass(frozen=True, slots=True)
class Levels:
    """Error levels that apply at this look.

    `breach`: this objective's share of the family-wise level (α/K), split by the test among its own bounds.
    `promote`: chance of passing a canary that lies at the margin; stricter for the n-th attempt.
    """

    breach: float
    promote: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a test says of its state at one look.

    `breach`: a bound is crossed with 1 - level confidence, valid at any time. `non_inferior`: shown to be within every
    bound's promotion margin. Both False is no evidence either way. `absolute_only`: the breach rests on `max` alone.
    `common_cause`: stable violates `max` as well, so the absolute test is suspended.
    """

    breach: bool
    non_inferior: bool
    canary_samples: int
    stable_samples: int
    canary: str
    """Value for people, for example `3.1 %` or `$0.0041`; empty without samples."""
    stable: str
    difference: str
    """Anytime-valid interval for people, for example `+0.4 to +2.1 points`; empty without samples."""
    message: str
    """One sentence for people: values, samples, bound, confidence; for a pass also the smallest regression that could
    have been seen; for no evidence what is missing."""
    absolute_only: bool = False
    common_cause: bool = False


class ObjectiveTest(Protocol):
    """One objective's test: immutable parameters, explicit state. One small module per kind."""

    def start(self) -> Any:
        """State before any evidence."""

    def observe(self, state: Any, counts: Counts, *, promotable: bool) -> Any:
        """State after one interval. Breach sums take every interval; promotion sums only those with `promotable` (the
        step was acknowledged before the interval began)."""

    def judge(self, state: Any, levels: Levels) -> Judgement: ...

    def encode(self, state: Any) -> str:
        """At most 1,024 characters; `decode(encode(s)) == s` exactly, to the last bit."""

    def decode(self, text: str) -> Any:
        """Raises ValueError if the text is not a state of this test."""
