"""The rollouts that this pod serves: swaps whole configurations, refuses older ones, keeps the last good copy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

from promptrollout.gateway.assignment.response_id import parse
from promptrollout.gateway.auth.caller_keys import CALLER
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.metrics.unreported_renders import UnreportedRenders
from promptrollout.gateway.rollouts.configuration import Configuration
from promptrollout.gateway.rollouts.last_good import Store
from promptrollout.gateway.rollouts.live_rollout import LiveRollout, served_content
from promptrollout.gateway.rollouts.load_errors import KeyMissing, LoadError
from promptrollout.gateway.rollouts.load_problems import LoadProblem, LoadProblems
from promptrollout.gateway.rollouts.loader import Loader
from promptrollout.gateway.rollouts.signing_keys import SigningKeys
from promptrollout.llm.errors import CallerError

logger = logging.getLogger(__name__)

RETIREMENT_SECONDS: Final = 300.0
"""A deleted rollout is served for so long, so that its callers can be changed first."""


class Registry:
    """All rollouts of this gateway. Used in the event loop's thread; a request reads it without waiting."""

    def __init__(
        self,
        loader: Loader,
        store: Store,
        counters: Counters,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._store = store
        self._counters = counters
        self._wall_clock = wall_clock
        self._clock = clock
        self._rollouts: dict[str, LiveRollout] = {}
        self._overrides: set[str] = set()
        self._lock = asyncio.Lock()
        self.problems = LoadProblems(counters.refused, clock)
        self.renders = UnreportedRenders(clock)
        self.signing = SigningKeys(store)
        self.loaded = False
        """The first list of deliveries is complete."""

    # ------------------------------------------------------------------------------------ questions

    def find(self, name: str) -> LiveRollout | None:
        """The rollout, if it is served and the caller may use it."""
        rollout = self._rollouts.get(name)
        if (
            rollout is None
            or not CALLER.get().may_use(name)
            or (rollout.gone_at is not None and self._wall_clock() >= rollout.gone_at)
        ):
            return None
        return rollout

    def refusal(self, name: str) -> CallerError | None:
        """The caller's answer if `find` has no rollout because its configuration could not be loaded. None: there is no
        such rollout, or it is not this caller's."""
        if name not in self.problems or not CALLER.get().may_use(name):
            return None
        rollout = self._rollouts.get(name)
        if rollout is not None and rollout.gone_at is not None:
            return None
        message = f"this pod could not load rollout {name}: see the condition Ready of PromptRollout {name}"
        error = CallerError(503, "rollout_not_loaded", message, "model")
        error.headers["retry-after"] = "5"
        return error

    def find_by_response_id(self, response_id: str) -> list[LiveRollout]:
        """The rollouts that may have given this response id: several only if their tags collide. Raises ValueError for
        what is not a response id."""
        parsed = parse(response_id)
        if parsed is None:
            raise ValueError("not a response id of a gateway")
        return [
            rollout
            for name, rollout in self._rollouts.items()
            if rollout.response_ids is not None
            and rollout.response_ids.tag == parsed.tag
            and self.find(name) is not None
        ]

    def not_loaded(self) -> Iterable[LoadProblem]:
        """Deliveries that could not be loaded, or only without their canary."""
        return self.problems.values()

    def names(self) -> list[str]:
        """The rollouts that this caller may use."""
        return sorted(name for name in self._rollouts if self.find(name) is not None)

    def known_names(self) -> set[str]:
        """All rollouts, those that could not be loaded included."""
        return set(self._rollouts) | set(self.problems)

    def all(self) -> Iterable[LiveRollout]:
        return self._rollouts.values()

    @property
    def waits_for_keys(self) -> bool:
        """This new pod should not become ready yet; see LoadProblems."""
        return self.problems.waits_for_keys(self._rollouts)

    # ------------------------------------------------------------------------------------ deliveries

    async def load_from_disk(self) -> int:
        """Put the last good configurations in service; returns how many there are."""
        self._overrides = await asyncio.to_thread(self._store.load_overrides)
        await asyncio.to_thread(self.signing.load)
        deliveries = await asyncio.to_thread(self._store.load)
        for name, raw in deliveries.items():
            await self.apply(name, raw, from_disk=True)
        return len(self._rollouts)

    async def apply(self, name: str, raw: dict[str, Any], *, from_disk: bool = False) -> None:
        """Put a delivery's spec in service, or record why not: an older sequence, or one that cannot be loaded."""
        async with self._lock:
            current, sequence = self._rollouts.get(name), _sequence(raw)
            if current is not None and not self._is_newer(name, sequence, raw, current):
                return
            if self._is_retired(raw):
                if from_disk:  # the previous process ended before it deleted it
                    await asyncio.to_thread(self._store.forget, name)
                return
            configuration = await self._load(name, sequence, raw, current)
            if configuration is None:
                return
            problem = configuration.canary_problem
            if problem is None:
                self.problems.clear(name)
            else:
                message = f"canary not loaded, stable serves alone: {problem}"
                self.problems.record_error(name, sequence, raw, problem, message)
                if current is not None and sequence == current.sequence and served_content(raw) == current.served:
                    self._retire_or_revive(current, raw.get("retiredAt"))
                    return
            self._put_in_service(configuration)
            if not from_disk:
                await asyncio.to_thread(self._store.save, name, raw)

    def _is_newer(self, name: str, sequence: int, raw: dict[str, Any], current: LiveRollout) -> bool:
        """Whether this delivery is to be loaded. One without its canary here was not acknowledged: it is loaded again,
        and its content may still change."""
        if sequence < current.sequence:
            message = f"sequence {sequence} is older than {current.sequence}, which is in service"
            self.problems.record(name, sequence, raw, "older_sequence", message)
            return False
        if sequence > current.sequence or current.configuration.canary_problem is not None:
            return True
        if served_content(raw) != current.served:
            message = f"sequence {sequence} is in service with other content: a change needs a higher sequence"
            self.problems.record(name, sequence, raw, "changed_content", message)
            return False
        self.problems.clear(name)
        self._retire_or_revive(current, raw.get("retiredAt"))
        return False

    async def _load(
        self, name: str, sequence: int, raw: dict[str, Any], current: LiveRollout | None
    ) -> Configuration | None:
        """The compiled delivery. None: it cannot be loaded, which was recorded."""
        try:
            return await self._loader.load(name, raw, current.configuration if current else None)
        except LoadError as error:
            self.problems.record_error(name, sequence, raw, error)
        except Exception as error:
            # an error of ours in one delivery must not keep the others from being loaded
            logger.exception("rollout %s: loading sequence %d failed", name, sequence)
            self.problems.record(name, sequence, raw, "invalid", f"{type(error).__name__}: {error}")
        return None

    def _put_in_service(self, configuration: Configuration) -> None:
        name, spec = configuration.name, configuration.spec
        current = self._rollouts.get(name)  # read now: the sweep may have forgotten it while this one was loaded
        if current is not None and current.uid != spec.rollout_uid:
            self._counters.rollout_gone(current.uid, name)
        rollout = LiveRollout.succeeding(
            current,
            configuration,
            self._counters,
            overridden=name in self._overrides,
            signing_key=self.signing.get(name),
            wall_now=self._wall_clock(),
            now=self._clock(),
        )
        self._retire_or_revive(rollout, spec.retired_at)
        self._rollouts[name] = rollout
        self._counters.swaps += 1
        logger.info("rollout %s: sequence %d in service, weight %d %%", name, spec.sequence, spec.weight)

    def remove(self, name: str) -> None:
        """The delivery was deleted: serve it for a while longer."""
        self.problems.clear(name)
        rollout = self._rollouts.get(name)
        if rollout is not None and rollout.gone_at is None:
            rollout.gone_at = self._wall_clock() + RETIREMENT_SECONDS
            logger.info("rollout %s was deleted: served for %d s more", name, RETIREMENT_SECONDS)

    def listed(self, names: set[str]) -> None:
        """A complete list of the deliveries has been applied: what it does not name was deleted."""
        for name in self.known_names():
            if name not in names:
                self.remove(name)
        if not self.loaded:
            self.problems.await_keys(self._rollouts)
        self.loaded = True

    # ------------------------------------------------------------------------------------ keys, overrides, time

    async def set_signing_key(self, name: str, raw: dict[str, Any]) -> None:
        """Sign a rollout's response ids with the keys of its PromptSigningKey."""
        if (key := self.signing.update(name, raw)) is None:
            return
        if (rollout := self._rollouts.get(name)) is not None:
            rollout.set_signing_key(key)
        await asyncio.to_thread(self._store.save_signing_key, name, raw)

    async def set_overrides(self, rollouts: set[str]) -> None:
        """The emergency overrides in force: these rollouts answer every request from stable."""
        if rollouts == self._overrides:
            return
        for name in rollouts ^ self._overrides:
            logger.warning("emergency override of rollout %s is %s", name, "on" if name in rollouts else "off")
        self._overrides = set(rollouts)
        for name, rollout in self._rollouts.items():
            if rollout.overridden != (name in rollouts):
                rollout.weight_since = self._wall_clock()
            rollout.overridden = name in rollouts
            rollout.routing = rollout.configuration.routing(rollout.overridden)
        await asyncio.to_thread(self._store.save_overrides, self._overrides)

    async def sweep(self) -> None:
        """Forget rollouts whose time is over, load again what waits for a key, count renders without a report."""
        self.renders.settle()
        now = self._wall_clock()
        for name, rollout in list(self._rollouts.items()):
            if rollout.gone_at is not None and now >= rollout.gone_at:
                del self._rollouts[name]
                self._counters.rollout_gone(rollout.uid, name)
                self.signing.forget(name)
                await asyncio.to_thread(self._store.forget, name)
        for name, raw in self._waiting_for_key().items():
            await self.apply(name, raw)

    def _waiting_for_key(self) -> dict[str, dict[str, Any]]:
        """The newest delivery of each rollout that waits for a key, for one of its arms."""
        waiting: dict[str, dict[str, Any]] = {}
        for name, rollout in self._rollouts.items():
            if rollout.gone_at is None and isinstance(rollout.configuration.canary_problem, KeyMissing):
                waiting[name] = rollout.configuration.raw
        for name, problem in self.problems.items():
            if name in self._rollouts and problem.sequence < self._rollouts[name].sequence:
                continue
            if problem.waits_for_key:
                waiting[name] = problem.raw
            else:
                waiting.pop(name, None)
        return waiting

    def _retire_or_revive(self, rollout: LiveRollout, retired_at: Any) -> None:
        at = _timestamp(retired_at)
        rollout.gone_at = None if at is None else at + RETIREMENT_SECONDS

    def _is_retired(self, raw: dict[str, Any]) -> bool:
        at = _timestamp(raw.get("retiredAt"))
        return at is not None and self._wall_clock() >= at + RETIREMENT_SECONDS


def _sequence(raw: dict[str, Any]) -> int:
    sequence = raw.get("sequence")
    return sequence if isinstance(sequence, int) else 0


def _timestamp(text: Any) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None if it is not one."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
