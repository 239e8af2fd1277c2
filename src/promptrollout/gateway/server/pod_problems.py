"""What is wrong in this pod beyond one rollout: callers' keys that are missing, token reviews that are forbidden,
providers that do not answer. Said in the log, and to the operator, who makes conditions of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from promptrollout.api.delivery import ADDRESS_REFUSED, KEY_NOT_BOUND, KEY_UNBOUND, PodProblem
from promptrollout.api.text import first_few
from promptrollout.gateway.auth.authenticate import Authenticator
from promptrollout.gateway.rollouts.live_rollout import LiveRollout
from promptrollout.gateway.rollouts.load_errors import KeyNotBound, ProviderAddressRefused
from promptrollout.gateway.rollouts.load_problems import LoadProblem

logger = logging.getLogger(__name__)

DOWN_AFTER_SECONDS: Final = 20.0
"""A provider that fails for less is no news: the condition would come and go."""
SHOWN: Final = 5
"""Rollouts of one provider that are named."""
MAX_PROBLEMS: Final = 16
_CONFIGURED: Final = {
    KEY_NOT_BOUND: "provider %s is not asked: `hosts` in the Secret of its key does not name the host of its baseURL",
    ADDRESS_REFUSED: "provider %s is not asked: gateways may not connect to its address",
    KEY_UNBOUND: "the key of provider %s may go to any host: name its hosts in the data key `hosts` of its Secret; "
    "a later release will not send a key without",
}
"""In the order in which they are reported, the last one first to be left out."""


class PodProblems:
    """Looked at every second. `found` says what is wrong, for the report."""

    def __init__(self, authenticator: Authenticator, clock: Callable[[], float]) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._down_since: dict[str, float] = {}
        self._configured: set[tuple[str, str]] = set()

    def look(self, rollouts: Iterable[LiveRollout], not_loaded: Iterable[LoadProblem] = ()) -> None:
        """Note which providers are down: out of reach for an arm, or failing so much that its circuit is open; and
        which are configured so that nothing may be sent to them, or that their key may go anywhere."""
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

    def current(self) -> list[PodProblem]:
        """What is wrong now, in a fixed order."""
        problems = [PodProblem(reason=reason, message=text) for reason, text in self._authenticator.problems()]
        now = self._clock()
        refused = {name for reason, name in self._configured if reason != KEY_UNBOUND}  # not asked, so not down
        for name, since in sorted(self._down_since.items()):
            if now - since >= DOWN_AFTER_SECONDS and name not in refused:
                problems.append(PodProblem(reason="ProviderDown", message=name))
        for reason in _CONFIGURED:
            names = sorted(name for each, name in self._configured if each == reason)
            problems += [PodProblem(reason=reason, message=name) for name in names]
        return problems[:MAX_PROBLEMS]


def _configured(rollouts: Iterable[LiveRollout], not_loaded: Iterable[LoadProblem]) -> set[tuple[str, str]]:
    """Reason and name of each provider whose configuration is at fault."""
    found: set[tuple[str, str]] = set()
    for problem in not_loaded:
        if isinstance(problem.error, KeyNotBound):
            found.add((KEY_NOT_BOUND, problem.error.provider))
        elif isinstance(problem.error, ProviderAddressRefused):
            found.add((ADDRESS_REFUSED, problem.error.provider))
    for endpoint in (endpoint for rollout in rollouts for endpoint in rollout.endpoints):
        if endpoint.key_not_bound:
            found.add((KEY_NOT_BOUND, endpoint.name))
        elif endpoint.key_unbound:
            found.add((KEY_UNBOUND, endpoint.name))
        if endpoint.refused_at is not None:
            found.add((ADDRESS_REFUSED, endpoint.name))
    return found
