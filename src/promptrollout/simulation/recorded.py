"""Recorded metrics: interval counts as JSON lines, written once and replayed against other rules.

What a line holds is in docs/how-to/simulate.md. Counts are those of the weight at which they were recorded. What
another weight would have shown is unknown, so they are never scaled: a replay that wants another weight uses them as
they are, and `differences` says where it did.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promptrollout.api.invalid import first_problem
from promptrollout.api.names import SHARDS
from promptrollout.engine.statistics.evidence import Arm, Counts, Interval
from promptrollout.simulation.traffic import Strata

MOST_INTERVALS = 100_000
"""From the first exposure on."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordedArm(_Line):
    """As `engine.evidence.Arm`."""

    n: Amount
    total: Amount
    total_squared: Amount = 0.0
    shards: tuple[tuple[Amount, Amount], ...] = ()
    input_usd: Amount = 0.0
    saved_usd: Amount = 0.0
    missing: Amount = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.shards) not in (0, SHARDS):
            raise ValueError(f"{len(self.shards)} shards: give all {SHARDS} in the order of their numbers, or none")
        return self

    def arm(self) -> Arm:
        return Arm(self.n, self.total, self.total_squared, self.shards, self.input_usd, self.saved_usd, self.missing)


class RecordedCounts(_Line):
    canary: RecordedArm
    stable: RecordedArm


class RecordedInterval(_Line):
    """One line: [start, end) in seconds since the epoch."""

    start: Annotated[int, Field(ge=0)]
    end: int
    weight: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of users on the canary then; absent where it is not known."""
    available: bool = True
    """False: the metrics source did not answer when the interval was over."""
    provider: Literal["up", "canary-down"] = "up"
    counts: dict[str, tuple[RecordedCounts, ...]] = {}
    """By objective: strata."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end ({self.end}) must be after start ({self.start})")
        if self.start % (self.end - self.start):
            raise ValueError(f"start ({self.start}) must be a multiple of the interval ({self.end - self.start} s)")
        return self

    def strata(self) -> Strata:
        return {
            name: tuple(Counts(part.canary.arm(), part.stable.arm()) for part in parts)
            for name, parts in self.counts.items()
        }

    @property
    def exposed(self) -> bool:
        """Whether the canary served anybody."""
        if self.weight is not None:
            return self.weight > 0
        return any(part.canary.n > 0 for parts in self.counts.values() for part in parts)


class TooLong(ValueError):
    """`line` is the first that is too late."""

    def __init__(self, line: RecordedInterval, exposed_at: int) -> None:
        super().__init__(
            f"starts at {line.start}, more than {MOST_INTERVALS:,} intervals after the canary's first exposure at "
            f"{exposed_at}: keep one rollout in a file, and correct wrong times"
        )
        self.line = line


class Recorded:
    """Recorded intervals as traffic. `exposed_at` is the start of the first in which the canary served anybody."""

    def __init__(self, lines: Sequence[RecordedInterval]) -> None:
        """ValueError if they are of several lengths, twice the same, without any canary, or too far apart."""
        if not lines:
            raise ValueError("the recording is empty: it has no interval")
        lengths = sorted({line.end - line.start for line in lines})
        if len(lengths) > 1:
            raise ValueError(f"intervals of {lengths[0]} s and of {lengths[1]} s: record all with the same length")
        self.interval_seconds = lengths[0]
        first = next((line for line in sorted(lines, key=lambda line: line.start) if line.exposed), None)
        if first is None:
            raise ValueError("the canary served no users: its weight or its counts are 0 in every interval")
        self.exposed_at = first.start
        if late := next((x for x in lines if x.start - first.start >= MOST_INTERVALS * self.interval_seconds), None):
            raise TooLong(late, first.start)
        self._lines = {(line.start - first.start) // self.interval_seconds: line for line in lines}
        if len(self._lines) < len(lines):
            raise ValueError("an interval is recorded twice: keep one line for each start")
        self.intervals = max(self._lines) + 1
        self.objectives = sorted({name for line in lines for name in line.counts})
        self.missing = self.intervals - sum(k >= 0 for k in self._lines)
        """Intervals without a line: nothing was measured in them."""
        self.differences: dict[int, tuple[int, int]] = {}
        """By interval: the weight that the rules wanted, and the one that was recorded."""

    def counts(self, k: int, weight: int) -> Strata:
        line = self._lines.get(k)
        if line is None:
            return {}
        if line.weight is not None and line.weight != weight:
            self.differences[k] = (weight, line.weight)
        return line.strata()

    def available(self, k: int) -> bool:
        return k not in self._lines or self._lines[k].available

    def unreachable(self, k: int) -> bool:
        return k in self._lines and self._lines[k].provider == "canary-down"

    def warnings(self, objectives: Iterable[str]) -> Iterator[str]:
        """After a replay: warnings for its reader. `objectives`: those of the rules."""
        wanted = set(objectives)
        for name in sorted(wanted.difference(self.objectives)):
            yield f"the objective {name} was not recorded: it has no evidence"
        for name in sorted(set(self.objectives) - wanted):
            yield f"{name} was recorded, but the rollout has no such objective: it is ignored"
        if self.missing:
            yield f"{self.missing} of {self.intervals} intervals have no line: nothing was measured in them"
        if any(line.weight is None for line in self._lines.values()):
            yield "the recording has no weights: the counts are used unscaled"
        if self.differences:
            k = min(self.differences)
            weight, recorded = self.differences[k]
            yield (
                f"from {k * self.interval_seconds} s on the rollout would be at {weight} %, but {recorded} % is "
                f"recorded ({len(self.differences)} intervals in all): the recorded counts are used unscaled"
            )


def read(path: Path) -> Recorded:
    """The file. ValueError with file, line and field if a line is not of the format."""
    lines: dict[int, RecordedInterval] = {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            lines[number] = RecordedInterval.model_validate_json(line)
        except ValidationError as error:
            raise ValueError(f"{path}:{number}: {first_problem(error)}") from error
    try:
        return Recorded(list(lines.values()))
    except TooLong as error:
        number = next(number for number, line in lines.items() if line is error.line)
        raise ValueError(f"{path}:{number}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def line_of(interval: Interval, weight: int | None) -> RecordedInterval:
    """What the engine was given, as a line."""
    counts = {
        name: tuple(RecordedCounts(canary=_recorded(c.canary), stable=_recorded(c.stable)) for c in strata)
        for name, strata in interval.counts.items()
    }
    return RecordedInterval(start=interval.start, end=interval.end, weight=weight, counts=counts)


def write(path: Path, lines: Iterable[RecordedInterval]) -> None:
    """One line each; what has its default is left out."""
    path.write_text("".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines), "utf-8")


def _recorded(arm: Arm) -> RecordedArm:
    return RecordedArm(
        n=arm.n,
        total=arm.total,
        total_squared=arm.total_squared,
        shards=arm.shards,
        input_usd=arm.input_usd,
        saved_usd=arm.saved_usd,
        missing=arm.missing,
    )
