"""What is wrong in this pod beyond one rollout: callers' keys that are missing, token reviews that are forbidden,
providers that do not answer. Said in the log, and to the operator, who makes conditions of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from promptrollout.api.delivery import PodProblem
from promptrollout.api.few import first_few
from promptrollout.gateway.authenticate import Authenticator
from promptrollout.gateway.serving import Serving

logger = logging.getLogger(__name__)

DOWN_AFTER_SECONDS: Final = 20.0
"""A provider that fails for less is no news: the condition would come and go."""
SHOWN: Final = 5
"""Rollouts of one provider that are named."""
MAX_PROBLEMS: Final = 16


class PodProblems:
    """Looked at every second. `found` says what is wrong, for the report."""

    def __init__(self, authenticator: Authenticator, clock: Callable[[], float]) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._down_since: dict[str, float] = {}

    def look(self, servings: Iterable[Serving]) -> None:
        """Note which providers are down: out of reach for an arm, or failing so much that its circuit is open."""
        down: dict[str, set[str]] = {}
        used: set[str] = set()
        for serving in servings:
            for of, circuit in serving.circuits:
                used.add(of["provider"])
                if circuit.unreachable or not circuit.closed:
                    down.setdefault(of["provider"], set()).add(serving.configuration.name)
        now = self._clock()
        for name in down.keys() - self._down_since.keys():
            self._down_since[name] = now
            logger.warning("provider %s does not answer as it should: rollouts %s", name, first_few(down[name], SHOWN))
        for name in self._down_since.keys() - down.keys():
            seconds = now - self._down_since.pop(name)
            if name in used:
                logger.info("provider %s answers again, after %.0f s", name, seconds)
            else:
                logger.info("provider %s is not used any more; it did not answer for %.0f s", name, seconds)

    def down(self) -> list[str]:
        """Names of providers, since whenever."""
        return sorted(self._down_since)

    def found(self) -> list[PodProblem]:
        """What is wrong now, in a fixed order."""
        problems = [PodProblem(reason=reason, message=text) for reason, text in self._authenticator.problems()]
        now = self._clock()
        for name, since in sorted(self._down_since.items()):
            if now - since >= DOWN_AFTER_SECONDS:
                problems.append(PodProblem(reason="ProviderDown", message=name))
        return problems[:MAX_PROBLEMS]
