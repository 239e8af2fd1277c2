"""Deliveries that this pod could not load, and whether it should wait for a key before it becomes ready."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from promptrollout.gateway.rollouts.load_errors import KeyMissing, LoadError

logger = logging.getLogger(__name__)

KEY_PATIENCE_SECONDS: Final = 60.0
"""A new pod stays unready for so long if it lacks a key for what other pods serve: the key's file may still come."""


@dataclass(frozen=True, slots=True)
class LoadProblem:
    """A delivery that could not be loaded, or only without its canary."""

    sequence: int
    message: str
    raw: dict[str, Any]
    waits_for_key: bool
    error: LoadError | None = None


class LoadProblems:
    """The problem of each rollout's newest delivery."""

    def __init__(self, refused: Counter[str], clock: Callable[[], float]) -> None:
        """`refused`: counts deliveries by the reason's label."""
        self._refused = refused
        self._clock = clock
        self._problems: dict[str, LoadProblem] = {}
        self._awaited: set[str] = set()
        """Rollouts whose key this pod waits for before it becomes ready."""
        self._awaited_until = 0.0
        self.confirmed: set[str] = set()
        """Rollouts that other pods serve, by the status of their deliveries."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __contains__(self, name: object) -> bool:
        return name in self._problems

    def get(self, name: str) -> LoadProblem | None:
        return self._problems.get(name)

    def items(self) -> Iterable[tuple[str, LoadProblem]]:
        return self._problems.items()

    def values(self) -> Iterable[LoadProblem]:
        return self._problems.values()

    def record_error(self, name: str, sequence: int, raw: dict[str, Any], error: LoadError, message: str = "") -> None:
        """The delivery cannot be loaded. `message`: what to say instead of the error's own text."""
        reason = "key_missing" if isinstance(error, KeyMissing) else "invalid"
        self.record(name, sequence, raw, reason, message or str(error), error)

    def record(
        self,
        name: str,
        sequence: int,
        raw: dict[str, Any],
        reason: str,
        message: str,
        error: LoadError | None = None,
    ) -> None:
        """The delivery is not put in service; logged and counted once."""
        known = self._problems.get(name)
        if known is None or known.message != message or known.sequence != sequence:
            logger.error("rollout %s: sequence %d is not put in service: %s", name, sequence, message)
            self._refused[reason] += 1
        self._problems[name] = LoadProblem(sequence, message, raw, reason == "key_missing", error)

    def clear(self, name: str) -> None:
        self._problems.pop(name, None)

    def await_keys(self, served: Container[str]) -> None:
        """The first list of deliveries was loaded: from now on, wait for the keys of what other pods serve."""
        self._awaited = {name for name, problem in self._problems.items() if self._is_awaited(name, problem, served)}
        self._awaited_until = self._clock() + KEY_PATIENCE_SECONDS
        if self._awaited:
            logger.warning(
                "not ready for up to %d s: other pods serve these rollouts, and a provider's key is missing here: %s",
                KEY_PATIENCE_SECONDS,
                ", ".join(sorted(self._awaited)),
            )

    def waits_for_keys(self, served: Container[str]) -> bool:
        """Whether this new pod would answer 404 where the pods that it replaces answer: they should stay until the key
        is here. Not for ever, or one broken rollout would keep the gateway from ever being replaced; and not for what
        waiting does not solve."""
        if self._clock() >= self._awaited_until:
            return False
        return any(
            (problem := self._problems.get(name)) is not None and self._is_awaited(name, problem, served)
            for name in self._awaited
        )

    def _is_awaited(self, name: str, problem: LoadProblem, served: Container[str]) -> bool:
        """Only a key is missing to serve the rollout here, and it was in service before."""
        memory = problem.raw.get("memory")
        served_before = problem.sequence > 1 and isinstance(memory, dict) and bool(memory.get("stable"))
        served_before = served_before or name in self.confirmed
        return problem.waits_for_key and served_before and name not in served
