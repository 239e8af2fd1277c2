"""Problems of this pod beyond one rollout: missing caller keys, forbidden token reviews, providers that are down.

They are logged, and reported to the operator, which turns them into conditions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from promptrollout.api.conditions import ConditionReason
from promptrollout.api.delivery import PodProblem
from promptrollout.api.text import first_few
from promptrollout.gateway.auth.authenticate import Authenticator
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.load_errors import KeyNotBound, ProviderAddressRefused
from promptrollout.gateway.rollouts.load_problems import LoadProblem

logger = logging.getLogger(__name__)

DOWN_AFTER_SECONDS: Final = 20.0
"""A provider that is down for less is not reported: the condition would flap."""
SHOWN: Final = 5
"""So many rollouts of a provider are named in the log."""
MAX_PROBLEMS: Final = 16
_CONFIGURED: Final = {
    ConditionReason.PROVIDER_KEY_NOT_BOUND: "provider %s gets no requests: "
    "`hosts` in its key's Secret does not name the host of its baseURL",
    ConditionReason.PROVIDER_ADDRESS_REFUSED: "provider %s gets no requests: gateways may not connect to its address",
    ConditionReason.PROVIDER_KEY_UNBOUND: "the key of provider %s may be sent to any host: "
    "name its hosts in `hosts` of its Secret; a later release will require that",
}
"""In the order of the report; beyond MAX_PROBLEMS the last ones are left out."""


class PodProblems:
    """Updated every second; `current` are the problems for the report."""

    def __init__(self, authenticator: Authenticator, clock: Callable[[], float]) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._down_since: dict[str, float] = {}
        self._configured: set[tuple[ConditionReason, str]] = set()

    def update(self, rollouts: Iterable[LiveRollout], not_loaded: Iterable[LoadProblem] = ()) -> None:
        """Find the providers that are down (unreachable for an arm, or its circuit is open), those that may get no
        requests, and those whose key may be sent to any host."""
        rollouts = list(rollouts)
        configured = _configured(rollouts, not_loaded)
        for reason, name in sorted(configured - self._configured):
            logger.warning(_CONFIGURED[reason], name)
        self._configured = configured
        down: dict[str, set[str]] = {}
        used: set[str] = set()
        for rollout in rollouts:
            for of, circuit in rollout.circuits:
                used.add(of["provider"])
                if circuit.unreachable or not circuit.closed:
                    down.setdefault(of["provider"], set()).add(rollout.configuration.name)
        now = self._clock()
        for name in down.keys() - self._down_since.keys():
            self._down_since[name] = now
            logger.warning("provider %s is down: rollouts %s", name, first_few(down[name], SHOWN))
        for name in self._down_since.keys() - down.keys():
            seconds = now - self._down_since.pop(name)
            if name in used:
                logger.info("provider %s is up again after %.0f s", name, seconds)
            else:
                logger.info("provider %s is not used any more; it was down for %.0f s", name, seconds)

    def down(self) -> list[str]:
        """Names of the providers that are down, for however short a time."""
        return sorted(self._down_since)

    def current(self) -> list[PodProblem]:
        """The problems now, in a fixed order."""
        problems = [PodProblem(reason=reason, message=text) for reason, text in self._authenticator.problems()]
        now = self._clock()
        # they get no requests, so they are not down
        refused = {name for reason, name in self._configured if reason != ConditionReason.PROVIDER_KEY_UNBOUND}
        for name, since in sorted(self._down_since.items()):
            if now - since >= DOWN_AFTER_SECONDS and name not in refused:
                problems.append(PodProblem(reason=ConditionReason.PROVIDER_DOWN, message=name))
        for reason in _CONFIGURED:
            names = sorted(name for each, name in self._configured if each == reason)
            problems += [PodProblem(reason=reason, message=name) for name in names]
        return problems[:MAX_PROBLEMS]


def _configured(rollouts: Iterable[LiveRollout], not_loaded: Iterable[LoadProblem]) -> set[tuple[ConditionReason, str]]:
    """Reason and name of each provider with a problem in its configuration."""
    problems: set[tuple[ConditionReason, str]] = set()
    for problem in not_loaded:
        if isinstance(problem.error, KeyNotBound):
            problems.add((ConditionReason.PROVIDER_KEY_NOT_BOUND, problem.error.provider))
        elif isinstance(problem.error, ProviderAddressRefused):
            problems.add((ConditionReason.PROVIDER_ADDRESS_REFUSED, problem.error.provider))
    for endpoint in (endpoint for rollout in rollouts for endpoint in rollout.endpoints):
        if endpoint.key_not_bound:
            problems.add((ConditionReason.PROVIDER_KEY_NOT_BOUND, endpoint.name))
        elif endpoint.key_unbound:
            problems.add((ConditionReason.PROVIDER_KEY_UNBOUND, endpoint.name))
        if endpoint.refused_at is not None:
            problems.add((ConditionReason.PROVIDER_ADDRESS_REFUSED, endpoint.name))
    return problems
