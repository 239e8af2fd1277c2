"""The seam between the state machine and the tests: counts in, judgement out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from promptrollout.engine.objectives import wording
from promptrollout.engine.statistics.evidence import Counts

_OPEN = "no breach, not shown to be "


@dataclass(frozen=True, slots=True)
class Levels:
    """Error levels that apply at this look.

    `breach`: this objective's share of the family-wise level (α/K), split by the test among its own bounds.
    `promote`: chance of passing a canary that lies at the margin; stricter for the n-th attempt.
    """

    breach: float
    promote: float


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one bound at one look. Both False: no evidence either way."""

    breached: bool
    """Crossed with 1 - level confidence, valid at any time."""
    kept: bool
    """Shown to be within the bound's promotion margin."""
    breach_text: str
    """`worse by more than 10 % (promotion margin 50 %)`: both numbers stand wherever either does."""
    kept_text: str
    """`worse by less than 50 % (rollback above 10 %)`."""
    open_text: str
    """After "not shown to be": `within 50 % of stable (rollback above 10 %)`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a test says of its state at one look: neither `breach` nor `non_inferior` is no evidence either way."""

    breach: bool
    non_inferior: bool
    """Shown to be within every bound's promotion margin."""
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
    common_cause: bool = False
    """Stable violates `max` as well, so the absolute test is suspended."""
    beyond: str = ""
    """`23 % of 39 in this step, its maximum is 10 %`: what the step's own samples say is beyond a bound, so it cannot
    pass yet. Empty if not."""


class ObjectiveTest(Protocol):
    """One objective's test: immutable parameters, explicit state. One small module per kind."""

    def start(self) -> Any:
        """State before any evidence."""

    def observe(self, state: Any, strata: Sequence[Counts], *, promotable: bool, outage: bool = False) -> Any:
        """State after one interval. Breach sums take every interval; promotion sums only those with `promotable` (the
        step was acknowledged before the interval began) and no `outage`, which does not count as fluctuation either."""

    def new_step(self, state: Any) -> Any:
        """State at the start of a step: what promotes it is shown in it, or a regression that begins there would pass
        on what was before. Breach sums go on."""

    def breached(self, state: Any, levels: Levels) -> bool:
        """`judge(...).breach`, without its sentences."""

    def passed(self, state: Any, levels: Levels) -> bool:
        """`judge(...).non_inferior` without a common cause, without its sentences."""

    def judge(self, state: Any, levels: Levels) -> Judgement: ...

    def difference(self, state: Any) -> tuple[float, float] | None:
        """95 % interval, valid at any time, for canary minus stable in the signal's unit; None without samples of
        both."""

    def encode(self, state: Any) -> str:
        """At most 2,560 characters, 1,280 once the baseline is judged; `decode(encode(s)) == s` exactly, to the last
        bit."""

    def decode(self, text: str) -> Any:
        """Raises ValueError if the text is not a state of this test."""


def enough_without_proof(message: str) -> str:
    """The message of a judgement without proof, where a step needs none: its verdict is a pass."""
    return message.replace(_OPEN, "no breach, which is enough for this step; not shown to be ")


def verdict_text(findings: Sequence[Finding], levels: Levels, remarks: Sequence[str]) -> str:
    """All findings as one clause after the values: what was crossed, or what was shown, or what is still open."""
    level = levels.breach / max(1, len(findings))
    said = [f"{f.breach_text} with {wording.confidence(level)}" for f in findings if f.breached]
    if findings and not said and all(f.kept for f in findings):
        kept = " and ".join(f.kept_text for f in findings)
        said.append(f"{kept} with {wording.confidence(levels.promote)}")
    if findings and not said:
        said.append(_OPEN + " and ".join(f.open_text for f in findings if not f.kept))
    return "; ".join([*said, *remarks])
