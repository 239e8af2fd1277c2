"""How the simulated model behaves: the rules a person writes, checked, with errors that name the field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

_NORMAL = NormalDist()
_Z99 = _NORMAL.inv_cdf(0.99)

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0.0, le=3_600_000.0, allow_inf_nan=False)]
ErrorStatus = Annotated[int, Field(ge=400, le=599)]


class BehaviourError(ValueError):
    """A list of behaviours that cannot be used; `path` names the first field at fault."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Outcome(StrEnum):
    """What one request meets. Exactly one per request."""

    GOOD = "good"
    TIMEOUT = "timeout"
    ERROR = "error"
    DISCONNECT = "disconnect"
    GARBAGE = "garbage"
    REFUSAL = "refusal"
    EMPTY = "empty"
    TRUNCATION = "truncation"
    CONTRACT_BREAK = "contractBreak"


class BreakKind(StrEnum):
    """The ways in which an answer can miss its output schema."""

    PROSE = "Prose"
    CUT_JSON = "CutJson"
    WRONG_SHAPE = "WrongShape"


class _Settings(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Match(_Settings):
    """Which requests a rule is for: all parts that are set must match. Empty: all requests."""

    prompt_contains: Annotated[str, Field(min_length=1)] | None = None
    prompt_regex: Annotated[str, Field(min_length=1)] | None = None
    model: str | None = None
    header: dict[str, str] = {}

    @model_validator(mode="after")
    def _regex_compiles(self) -> Match:
        if self.prompt_regex is not None:
            try:
                re.compile(self.prompt_regex)
            except re.error as error:
                raise ValueError(f"promptRegex is not a regular expression: {error}") from error
        return self

    @cached_property
    def _regex(self) -> re.Pattern[str] | None:
        return re.compile(self.prompt_regex) if self.prompt_regex is not None else None

    @cached_property
    def _headers(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self.header.items())

    def fits(self, instructions: str, model: str, headers: Mapping[str, str]) -> bool:
        """Whether a request fits; `instructions` are its system and developer messages, joined."""
        if self.model is not None and self.model != model:
            return False
        if self.prompt_contains is not None and self.prompt_contains not in instructions:
            return False
        if self._regex is not None and not self._regex.search(instructions):
            return False
        return all(headers.get(name) == value for name, value in self._headers)


class ErrorKind(_Settings):
    """One kind of provider error; `share` is of all requests of the rule."""

    status: ErrorStatus
    share: Share
    retry_after_seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None


class Latency(_Settings):
    """Time to the whole answer: lognormal through median and p99, or fixed."""

    fixed_ms: Milliseconds | None = None
    median_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    first_token_share: Share = 0.3

    @model_validator(mode="after")
    def _one_shape(self) -> Latency:
        if self.fixed_ms is not None:
            if self.median_ms is not None or self.p99_ms is not None:
                raise ValueError("give either fixedMs or medianMs with p99Ms, not both")
        elif self.median_ms is None or self.p99_ms is None:
            raise ValueError("give fixedMs, or medianMs together with p99Ms")
        elif not 0 < self.median_ms <= self.p99_ms:
            raise ValueError("medianMs must be above 0 and not above p99Ms")
        return self

    def seconds(self, uniform: float) -> float:
        """The latency at quantile `uniform` (0..1)."""
        if self.fixed_ms is not None:
            return self.fixed_ms / 1000
        assert self.median_ms is not None
        assert self.p99_ms is not None
        sigma = math.log(self.p99_ms / self.median_ms) / _Z99
        return self.median_ms * math.exp(sigma * normal(uniform)) / 1000


class Tokens(_Settings):
    """What the usage block says. Without `prompt` or `completionMean`: a quarter of the text's characters."""

    prompt: Annotated[int, Field(ge=0)] | None = None
    completion_mean: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = None
    completion_spread: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    cached_share: Share = 0.0

    @model_validator(mode="after")
    def _spread_has_mean(self) -> Tokens:
        if self.completion_spread and self.completion_mean is None:
            raise ValueError("completionSpread (a standard deviation, in tokens) needs completionMean")
        return self


class Quality(_Settings):
    """How good the answers are, 0 to 5: a mean and a standard deviation."""

    mean: Annotated[float, Field(ge=0.0, le=5.0, allow_inf_nan=False)] = 4.0
    spread: Annotated[float, Field(ge=0.0, le=5.0, allow_inf_nan=False)] = 0.5


class ToolCall(_Settings):
    """A call of a function that the request offers."""

    name: Annotated[str, Field(min_length=1)]
    arguments: dict[str, Any] = {}


class Behaviour(_Settings):
    """One rule. Every rate is a share of all requests the rule answers, so together they stay within 1."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    match: Match = Match()
    error_rate: Share = 0.0
    error_status: ErrorStatus = 500
    error_kinds: list[ErrorKind] = []
    timeout_rate: Share = 0.0
    disconnect_rate: Share = 0.0
    garbage_rate: Share = 0.0
    refusal_rate: Share = 0.0
    empty_rate: Share = 0.0
    truncation_rate: Share = 0.0
    contract_break_rate: Share = 0.0
    contract_break_kinds: Annotated[list[BreakKind], Field(min_length=1)] = list(BreakKind)
    answer: dict[str, Any] | str | None = None
    tool_call: ToolCall | None = None
    latency: Latency = Latency(fixed_ms=2)
    tokens: Tokens = Tokens()
    quality: Quality = Quality()

    @model_validator(mode="after")
    def _rates_fit_together(self) -> Behaviour:
        if self.error_rate and self.error_kinds:
            raise ValueError("give either errorRate with errorStatus or errorKinds, not both")
        total = self.outcome_bounds[-1][0] if self.outcome_bounds else 0.0
        if total > 1 + 1e-9:
            raise ValueError(f"the rates add up to {total:g}; together they must not be above 1")
        return self

    @cached_property
    def outcome_bounds(self) -> tuple[tuple[float, Outcome, ErrorKind | None], ...]:
        """Upper bounds on the unit interval; a uniform draw falls into the first it is below, else GOOD."""
        kinds = self.error_kinds or [ErrorKind(status=self.error_status, share=self.error_rate)]
        shares: list[tuple[float, Outcome, ErrorKind | None]] = [
            (self.timeout_rate, Outcome.TIMEOUT, None),
            *((kind.share, Outcome.ERROR, kind) for kind in kinds),
            (self.disconnect_rate, Outcome.DISCONNECT, None),
            (self.garbage_rate, Outcome.GARBAGE, None),
            (self.refusal_rate, Outcome.REFUSAL, None),
            (self.empty_rate, Outcome.EMPTY, None),
            (self.truncation_rate, Outcome.TRUNCATION, None),
            (self.contract_break_rate, Outcome.CONTRACT_BREAK, None),
        ]
        bounds: list[tuple[float, Outcome, ErrorKind | None]] = []
        upper = 0.0
        for share, outcome, kind in shares:
            if share > 0:
                upper += share
                bounds.append((upper, outcome, kind))
        return tuple(bounds)

    def outcome(self, uniform: float) -> tuple[Outcome, ErrorKind | None]:
        """What a request with this draw meets, and for an error which kind."""
        for upper, outcome, kind in self.outcome_bounds:
            if uniform < upper:
                return outcome, kind
        return Outcome.GOOD, None


DEFAULT_BEHAVIOUR = Behaviour(name="default")
_BEHAVIOURS = TypeAdapter(list[Behaviour])


def parse_behaviours(value: object) -> list[Behaviour]:
    """A list of behaviours from plain JSON or YAML values.

    Raises BehaviourError naming the first field at fault, as in `behaviours[0].errorRate`.
    """
    if isinstance(value, dict) and set(value) == {"behaviours"}:
        value = value["behaviours"]
    try:
        behaviours = _BEHAVIOURS.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise BehaviourError(_path(first["loc"]), reason) from error
    seen: set[str] = set()
    for index, behaviour in enumerate(behaviours):
        if behaviour.name in seen:
            reason = f"{behaviour.name!r} is already the name of an earlier rule; names must differ"
            raise BehaviourError(f"behaviours[{index}].name", reason)
        seen.add(behaviour.name)
    return behaviours


def first_fit(behaviours: list[Behaviour], instructions: str, model: str, headers: Mapping[str, str]) -> Behaviour:
    """The first rule whose match fits, else the default: 2 ms, no failures."""
    for behaviour in behaviours:
        if behaviour.match.fits(instructions, model, headers):
            return behaviour
    return DEFAULT_BEHAVIOUR


def normal(uniform: float) -> float:
    """The standard normal quantile; the ends are cut so that 0 and 1 stay finite."""
    return _NORMAL.inv_cdf(min(max(uniform, 1e-12), 1 - 1e-12))


def _path(location: tuple[int | str, ...]) -> str:
    # A union's branches appear in pydantic's location ("str", "dict[str,any]"): they are not part of the input.
    path = "behaviours"
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "[" not in part and part not in {"str"}:
            path += f".{part}"
    return path
