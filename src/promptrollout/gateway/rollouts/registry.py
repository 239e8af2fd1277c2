"""What the pod serves now: swaps configurations in whole, refuses older ones, keeps the last good, reports on it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from promptrollout.api.delivery import NO_DIGEST, HeavyUnit, PodProblem, PodReport, RolloutReport
from promptrollout.api.names import FORMAT_VERSION
from promptrollout.gateway.assignment.response_id import parse
from promptrollout.gateway.auth.caller_keys import CALLER
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.metrics.heavy_hitters import HeavyUnits
from promptrollout.gateway.metrics.share_window import ShareWindow
from promptrollout.gateway.metrics.unreported_renders import UnreportedRenders
from promptrollout.gateway.rollouts.configuration import Configuration
from promptrollout.gateway.rollouts.last_good import Store
from promptrollout.gateway.rollouts.live_rollout import LiveRollout, served_content
from promptrollout.gateway.rollouts.load_errors import KeyMissing, LoadError
from promptrollout.gateway.rollouts.loader import Loader
from promptrollout.gateway.rollouts.signing_keys import SigningKeys
from promptrollout.llm.errors import CallerError

logger = logging.getLogger(__name__)

RETIREMENT_SECONDS: Final = 300.0
"""A deleted rollout is served this much longer, so that its callers can go first."""
KEY_PATIENCE_SECONDS: Final = 60.0
"""A new pod is held unready for so long where it cannot serve what others surely do: a key's file may still come."""
HEAVY_UNITS: Final = 4
"""So many are reported to the operator, which adds up what pods say."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A delivery that could not be loaded."""

    sequence: int
    message: str
    raw: dict[str, Any]
    waits_for_key: bool
    error: LoadError | None = None


class Registry:
    """All rollouts of this gateway. Lives in the event loop's thread; a request reads it without waiting."""

    def __init__(
        self,
        pod: str,
        loader: Loader,
        store: Store,
        counters: Counters,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pod = pod
        self._loader = loader
        self._store = store
        self._counters = counters
        self._wall_clock = wall_clock
        self._clock = clock
        self._held: set[str] = set()
        self._held_until = 0.0
        self._rollouts: dict[str, LiveRollout] = {}
        self._problems: dict[str, Problem] = {}
        self._overrides: set[str] = set()
        self._lock = asyncio.Lock()
        self.problems: Callable[[], list[PodProblem]] = list
        """What is wrong beyond one rollout."""
        self.renders = UnreportedRenders(clock)
        self.signing = SigningKeys(store)
        self.confirmed: set[str] = set()
        """Rollouts that pods have put in service, by the status of their deliveries."""
        self.loaded = False
        """The first list of deliveries is complete."""

    def find(self, name: str) -> LiveRollout | None:
        """The rollout, if it is served, and the caller may use it: otherwise it is one that nobody has."""
        rollout = self._rollouts.get(name)
        if (
            rollout is None
            or not CALLER.get().may_use(name)
            or (rollout.gone_at is not None and self._wall_clock() >= rollout.gone_at)
        ):
            return None
        return rollout

    def refusal(self, name: str) -> CallerError | None:
        """What a caller is told of a rollout that `find` does not have though it is there: its configuration cannot be
        loaded. None: nobody has it, or it is not this caller's."""
        if name not in self._problems or not CALLER.get().may_use(name):
            return None
        rollout = self._rollouts.get(name)
        if rollout is not None and rollout.gone_at is not None:
            return None
        message = f"rollout {name} cannot be served by this pod: see the condition Ready of PromptRollout {name}"
        error = CallerError(503, "rollout_not_loaded", message, "model")
        error.headers["retry-after"] = "5"
        return error

    def that_gave(self, response_id: str) -> list[LiveRollout]:
        """Whose response id it may be; several only where their tags collide. Raises ValueError: nobody's."""
        found = parse(response_id)
        if found is None:
            raise ValueError("no response id of a gateway")
        return [
            rollout
            for name, rollout in self._rollouts.items()
            if rollout.response_ids is not None
            and rollout.response_ids.tag == found.tag
            and self.find(name) is not None
        ]

    def not_loaded(self) -> Iterable[Problem]:
        """Deliveries that could not be loaded, or only without their canary."""
        return self._problems.values()

    def names(self) -> list[str]:
        return sorted(name for name in self._rollouts if self.find(name) is not None)

    def all(self) -> Iterable[LiveRollout]:
        return self._rollouts.values()

    async def load_from_disk(self) -> int:
        """Put the last good configurations in service; how many there were."""
        self._overrides = await asyncio.to_thread(self._store.load_overrides)
        await asyncio.to_thread(self.signing.load)
        found = await asyncio.to_thread(self._store.load)
        for name, raw in found.items():
            await self.apply(name, raw, from_disk=True)
        return len(self._rollouts)

    async def apply(self, name: str, raw: dict[str, Any], *, from_disk: bool = False) -> None:
        """Put a delivery's spec in service, or note why not: an older sequence, or one that does not compile."""
        async with self._lock:
            current = self._rollouts.get(name)
            sequence = raw.get("sequence") if isinstance(raw.get("sequence"), int) else 0
            assert isinstance(sequence, int)
            now_serving = current.configuration.spec.sequence if current else 0
            same = current is not None and sequence == now_serving and served_content(raw) == current.served
            # what has no canary here was not acknowledged: it is tried again, and its content may still change
            if current and sequence == now_serving and current.configuration.canary_problem is None:
                if not same:
                    message = f"sequence {sequence} is in service with other content: a change needs a larger one"
                    self._refuse(name, "changed_content", message, sequence, raw)
                    return
                self._problems.pop(name, None)
                self._retire_or_revive(current, raw)
                return
            if sequence < now_serving:
                self._refuse(name, "older_sequence", f"sequence {sequence} is older than {now_serving}", sequence, raw)
                return
            if self._retired(raw):
                if from_disk:  # the pod ended before it forgot it
                    await asyncio.to_thread(self._store.forget, name)
                return
            try:
                configuration = await self._loader.load(name, raw, current.configuration if current else None)
            except LoadError as error:
                self._refuse(name, _reason(error), str(error), sequence, raw, error)
                return
            except Exception as error:
                # a fault of ours in one delivery must not keep the others from being loaded
                logger.exception("rollout %s: sequence %d", name, sequence)
                self._refuse(name, "invalid", f"{type(error).__name__}: {error}", sequence, raw)
                return
            problem = configuration.canary_problem
            if problem is None:
                self._problems.pop(name, None)
            else:
                message = f"canary not loaded, stable serves alone: {problem}"
                self._refuse(name, _reason(problem), message, sequence, raw, problem)
                if current and same:
                    self._retire_or_revive(current, raw)
                    return
            self._swap(configuration)
            if not from_disk:
                await asyncio.to_thread(self._store.save, name, raw)

    async def sign(self, name: str, raw: dict[str, Any]) -> None:
        """Take over the keys of a rollout's response ids: of its PromptSigningKey."""
        if (found := self.signing.take(name, raw)) is None:
            return
        if (rollout := self._rollouts.get(name)) is not None:
            rollout.sign_with(found)
        await asyncio.to_thread(self._store.save_signing_key, name, raw)

    def remove(self, name: str) -> None:
        """The delivery is gone: serve it for a while longer."""
        self._problems.pop(name, None)
        rollout = self._rollouts.get(name)
        if rollout is not None and rollout.gone_at is None:
            rollout.gone_at = self._wall_clock() + RETIREMENT_SECONDS
            logger.info("rollout %s was deleted: served for %d s more", name, RETIREMENT_SECONDS)

    def listed(self, names: set[str]) -> None:
        """A complete list of the deliveries has been applied: what it does not name is gone."""
        for name in set(self._rollouts) | set(self._problems):
            if name not in names:
                self.remove(name)
        if not self.loaded:
            self._held = {name for name, problem in self._problems.items() if self._held_by(name, problem)}
            self._held_until = self._clock() + KEY_PATIENCE_SECONDS
            if self._held:
                logger.warning(
                    "not ready for up to %d s: rollouts in service elsewhere wait for a provider's key here: %s",
                    KEY_PATIENCE_SECONDS,
                    ", ".join(sorted(self._held)),
                )
        self.loaded = True

    @property
    def waits_for_keys(self) -> bool:
        """This pod has just begun, and would answer 404 where the pods that it replaces answer: they should stay until
        the key is here. Not for ever, or one broken rollout would keep the gateway from ever being replaced; and not
        for what waiting does not cure."""
        if self._clock() >= self._held_until:
            return False
        return any(name in self._problems and self._held_by(name, self._problems[name]) for name in self._held)

    def _held_by(self, name: str, problem: Problem) -> bool:
        """The rollout is not served here at all for want of a key, and was in service before."""
        memory = problem.raw.get("memory")
        served_before = problem.sequence > 1 and isinstance(memory, dict) and bool(memory.get("stable"))
        served_before = served_before or name in self.confirmed
        return problem.waits_for_key and served_before and name not in self._rollouts

    async def set_overrides(self, rollouts: set[str]) -> None:
        """The emergency overrides in force: these rollouts answer everybody from stable."""
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
        """Forget what is served no more; try again what waited for a key; settle what was rendered."""
        self.renders.settle()
        now = self._wall_clock()
        for name, rollout in list(self._rollouts.items()):
            if rollout.gone_at is not None and now >= rollout.gone_at:
                del self._rollouts[name]
                self._counters.rollout_gone(rollout.configuration.spec.rollout_uid, name)
                self.signing.forget(name)
                await asyncio.to_thread(self._store.forget, name)
        for name, raw in self._waiting_for_key().items():
            await self.apply(name, raw)

    def _waiting_for_key(self) -> dict[str, dict[str, Any]]:
        """The newest delivery of each rollout that waits for a key, for one of its arms."""
        found: dict[str, dict[str, Any]] = {}
        for name, rollout in self._rollouts.items():
            if rollout.gone_at is None and isinstance(rollout.configuration.canary_problem, KeyMissing):
                found[name] = rollout.configuration.raw
        for name, problem in self._problems.items():
            if name in self._rollouts and problem.sequence < self._rollouts[name].configuration.spec.sequence:
                continue
            if problem.waits_for_key:
                found[name] = problem.raw
            else:
                found.pop(name, None)
        return found

    def report(self, names: Iterable[str] | None = None) -> PodReport:
        """What this pod says of itself, for the operator."""
        wanted = set(names) if names is not None else set(self._rollouts) | set(self._problems)
        reports = [self._report(name) for name in sorted(wanted)]
        return PodReport(
            pod=self._pod,
            format_versions=[FORMAT_VERSION],
            loaded=self.loaded,
            rollouts=[report for report in reports if report is not None],
            problems=self.problems(),
            died_in=self._counters.in_flight_file.died_in,
        )

    def _report(self, name: str) -> RolloutReport | None:
        rollout, problem = self.find(name), self._problems.get(name)
        message, problem_sequence = (problem.message[:256], problem.sequence) if problem else (None, None)
        if rollout is None:
            if problem is None:
                return None
            return RolloutReport(
                name=name,
                rolloutUID=str(problem.raw.get("rolloutUID", "")),
                sequence=0,  # not served at all: below every real one
                weight=0,
                stable=NO_DIGEST,
                problem=message,
                problem_sequence=problem_sequence,
            )
        spec = rollout.configuration.spec
        circuits = {f"{of['arm']}/{of['provider']}/{of['model']}": circuit for of, circuit in rollout.circuits}
        return RolloutReport(
            name=name,
            rolloutUID=spec.rollout_uid,
            sequence=rollout.acknowledged,
            weight=spec.weight if rollout.configuration.canary_problem is None else 0,
            stable=spec.stable.digest,
            canary=rollout.canary.digest if rollout.canary else None,
            overridden=rollout.overridden,
            problem=message,
            problem_sequence=problem_sequence,
            canary_provider_unreachable=rollout.canary_provider_unreachable,
            unassigned_share_percent=rollout.window.share_percent(),
            circuits={name: circuit.state for name, circuit in circuits.items()},
            circuit_failures={name: circuit.failure for name, circuit in circuits.items() if circuit.failure},
            assigned_requests=rollout.heavy.total(),
            heavy_units=[HeavyUnit(unit=unit, requests=n) for unit, n in rollout.heavy.heaviest(HEAVY_UNITS)],
            signing_key=self.signing.is_here(name),
            shards_withheld=(spec.rollout_uid, name) in self._counters.withheld,
        )

    def _swap(self, configuration: Configuration) -> None:
        name = configuration.name
        current = self._rollouts.get(name)
        acknowledged = current.acknowledged if current else 0
        if current and current.configuration.spec.rollout_uid != configuration.spec.rollout_uid:
            self._counters.rollout_gone(current.configuration.spec.rollout_uid, name)
            acknowledged = 0
        window = current.window if current else ShareWindow()
        salt = configuration.spec.salt
        heavy = current.heavy if current and current.heavy.salt == salt else HeavyUnits(salt)
        since = self._wall_clock()
        if current and _assigning(current.configuration) == _assigning(configuration):
            since = current.weight_since
        readable = configuration.spec.response_key is not None
        was_readable = current is not None and current.configuration.spec.response_key is not None
        unreadable_since = self._clock() if readable or was_readable else current.unreadable_since if current else 0.0
        rollout = LiveRollout(
            configuration,
            name in self._overrides,
            self._counters,
            window,
            heavy,
            acknowledged,
            since,
            self.signing.get(name),
            unreadable_since,
        )
        self._retire_or_revive(rollout, {"retiredAt": configuration.spec.retired_at})
        self._rollouts[name] = rollout
        self._counters.swaps += 1
        logger.info(
            "rollout %s: sequence %d, weight %d %%", name, configuration.spec.sequence, configuration.spec.weight
        )

    def _refuse(
        self,
        name: str,
        reason: str,
        message: str,
        sequence: int,
        raw: dict[str, Any],
        error: LoadError | None = None,
    ) -> None:
        known = self._problems.get(name)
        if known is None or known.message != message or known.sequence != sequence:
            logger.error("rollout %s: sequence %d is not put in service: %s", name, sequence, message)
            self._counters.refused[reason] += 1
        self._problems[name] = Problem(sequence, message, raw, reason == "key_missing", error)

    def _retire_or_revive(self, rollout: LiveRollout, raw: dict[str, Any]) -> None:
        retired_at = _timestamp(raw.get("retiredAt"))
        rollout.gone_at = None if retired_at is None else retired_at + RETIREMENT_SECONDS

    def _retired(self, raw: dict[str, Any]) -> bool:
        retired_at = _timestamp(raw.get("retiredAt"))
        return retired_at is not None and self._wall_clock() >= retired_at + RETIREMENT_SECONDS


def _assigning(configuration: Configuration) -> tuple[object, ...]:
    """What an arm is assigned by."""
    spec = configuration.spec
    return spec.weight, spec.salt, spec.stickiness, spec.audience, spec.canary and spec.canary.digest


def _reason(error: LoadError) -> str:
    """As the label of a metric."""
    return "key_missing" if isinstance(error, KeyMissing) else "invalid"


def _timestamp(text: Any) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None where there is none."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
