"""What a pod reports to the operator: which configuration it serves, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from promptrollout.api.delivery import NO_DIGEST, HeavyUnit, PodProblem, PodReport, RolloutReport
from promptrollout.api.names import FORMAT_VERSION
from promptrollout.gateway.metrics.counters import Counters
from promptrollout.gateway.rollouts.load_problems import LoadProblem
from promptrollout.gateway.rollouts.registry import Registry

HEAVY_UNITS: Final = 4
"""The units with the most requests; the operator adds up what the pods report."""
_MESSAGE_CHARACTERS: Final = 256


class PodReporter:
    """Makes the reports of one pod."""

    def __init__(
        self, pod: str, registry: Registry, counters: Counters, problems: Callable[[], list[PodProblem]] = list
    ) -> None:
        """`problems`: what is wrong beyond one rollout."""
        self._pod = pod
        self._registry = registry
        self._counters = counters
        self._problems = problems

    def report(self, names: Iterable[str] | None = None) -> PodReport:
        """The report on these rollouts; by default on all."""
        wanted = self._registry.known_names() if names is None else set(names)
        reports = [self._rollout(name) for name in sorted(wanted)]
        return PodReport(
            pod=self._pod,
            format_versions=[FORMAT_VERSION],
            loaded=self._registry.loaded,
            rollouts=[report for report in reports if report is not None],
            problems=self._problems(),
            died_in=self._counters.in_flight_file.died_in,
        )

    def _rollout(self, name: str) -> RolloutReport | None:
        """None: this pod does not know the rollout."""
        rollout, problem = self._registry.find(name), self._registry.problems.get(name)
        message, sequence = (problem.message[:_MESSAGE_CHARACTERS], problem.sequence) if problem else (None, None)
        if rollout is None:
            return None if problem is None else _not_served(name, problem)
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
            problem_sequence=sequence,
            canary_provider_unreachable=rollout.canary_provider_unreachable,
            unassigned_share_percent=rollout.window.share_percent(),
            circuits={name: circuit.state for name, circuit in circuits.items()},
            circuit_failures={name: circuit.failure for name, circuit in circuits.items() if circuit.failure},
            assigned_requests=rollout.heavy.total(),
            heavy_units=[HeavyUnit(unit=unit, requests=n) for unit, n in rollout.heavy.heaviest(HEAVY_UNITS)],
            signing_key=self._registry.signing.has_key(name),
            shards_withheld=(spec.rollout_uid, name) in self._counters.withheld,
        )


def _not_served(name: str, problem: LoadProblem) -> RolloutReport:
    return RolloutReport(
        name=name,
        rolloutUID=str(problem.raw.get("rolloutUID", "")),
        sequence=0,  # not served at all: lower than every real one
        weight=0,
        stable=NO_DIGEST,
        problem=problem.message[:_MESSAGE_CHARACTERS],
        problem_sequence=problem.sequence,
    )
