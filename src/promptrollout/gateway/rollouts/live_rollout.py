"""One rollout in service: its configuration, the arm rule in force, its counters."""

from __future__ import annotations

from typing import Any, Final

from promptrollout.api.names import (
    METRIC_CONTRACT_CHECKS,
    METRIC_CONTRACT_FAILURES,
    METRIC_COST_COUNT,
    METRIC_COST_SUM,
    shard_metric,
)
from promptrollout.api.signing_key import SigningKeySpec
from promptrollout.gateway.assignment.assign import Assignment, Routing, Variant
from promptrollout.gateway.assignment.response_id import ResponseIds
from promptrollout.gateway.metrics.counters import Compared, Counters
from promptrollout.gateway.metrics.heavy_hitters import HeavyUnits
from promptrollout.gateway.metrics.in_flight import InFlightMark
from promptrollout.gateway.metrics.series import Series
from promptrollout.gateway.metrics.share_window import ShareWindow
from promptrollout.gateway.rollouts.configuration import Arm, Configuration
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.endpoint import Endpoint

_SHARDS_OF_CONTRACT: Final = frozenset(map(shard_metric, (METRIC_CONTRACT_CHECKS, METRIC_CONTRACT_FAILURES)))
_SHARDS_OF_COST: Final = frozenset(map(shard_metric, (METRIC_COST_COUNT, METRIC_COST_SUM)))


class LiveRollout:
    """One rollout in service: its configuration, the arm rule in force, its counters."""

    def __init__(
        self,
        configuration: Configuration,
        overridden: bool,
        counters: Counters,
        window: ShareWindow,
        heavy: HeavyUnits,
        acknowledged_before: int = 0,
        weight_since: float = 0.0,
        signing_key: SigningKeySpec | None = None,
        unreadable_since: float = 0.0,
    ) -> None:
        self.configuration = configuration
        whole = configuration.canary_problem is None
        self.acknowledged = configuration.spec.sequence if whole else acknowledged_before
        """The last sequence that was put in service as a whole, canary included."""
        self.served = served_content(configuration.raw)
        self.overridden = overridden
        self.routing: Routing = configuration.routing(overridden)
        self.stable = configuration.stable
        self.canary = configuration.canary
        self.window = window
        self.weight_since = weight_since
        """Wall clock: since when units are assigned as they are now, as far as this pod knows."""
        self.response_ids = ResponseIds.of(configuration.spec, signing_key)
        """None: of an operator that does not know them yet; callers get the provider's ids."""
        self.unreadable_since = unreadable_since
        """On the registry's clock: since when the key that signs is one that people cannot read."""
        self.heavy = heavy
        self.gone_at: float | None = None
        """Wall clock: from then on it is not served."""
        self._counters = counters
        uid = configuration.spec.rollout_uid
        self._in_flight_marks = {
            arm.variant: InFlightMark(counters.in_flight_file, uid, arm.digest, arm.variant)
            for arm in (self.stable, self.canary)
            if arm is not None
        }
        self._series: dict[tuple[str, Variant], Series] = {}
        self._edges_seconds = [float(edge) for edge in configuration.spec.latency_edges_seconds]
        self._scores = configuration.spec.scores
        used = [self.series(self.stable, "stable")]
        compared: list[Compared] = []
        if self.canary is not None:
            used.append(self.series(self.canary, "canary"))
            compared = [
                Compared(series, self._edges_seconds, self._shard_metrics(arm))
                for arm, series in zip((self.stable, self.canary), used, strict=True)
            ]
        counters.rollout_loaded(configuration.spec.rollout_uid, configuration.name, used, compared)

    def _shard_metrics(self, arm: Arm) -> frozenset[str]:
        """What objectives need of an arm's shards, without what cannot move."""
        found = frozenset(self.configuration.spec.shard_metrics)
        if arm.prompt.contract is None:
            found -= _SHARDS_OF_CONTRACT
        if all(each is None or each.price is None for each in (self.stable, self.canary)):
            found -= _SHARDS_OF_COST
        return found

    def series(self, arm: Arm, variant: Variant) -> Series:
        """The counters of an arm under a variant."""
        found = self._series.get((arm.version, variant))
        if found is None:
            spec, name = self.configuration.spec, self.configuration.name
            found = self._counters.series(spec.rollout_uid, name, arm.version, variant, arm.model, self._edges_seconds)
            found.expect_scores(self._scores)
            self._series[arm.version, variant] = found
        return found

    def voted(self, version: str, variant: Variant) -> Series | None:
        """The counters for a vote on an answer of this version; None if they are of the past."""
        arm = self.canary if variant in ("canary", "canary-outside") else self.stable
        return None if arm is None or arm.version != version else self.series(arm, variant)

    def sign_with(self, key: SigningKeySpec) -> None:
        """Its keys are here, or were changed."""
        self.response_ids = ResponseIds.of(self.configuration.spec, key)

    def record_assignment(self, assignment: Assignment) -> None:
        """Note whose request was assigned how."""
        self.window.note(assignment.keyless)
        if assignment.unit is not None:
            self.heavy.note(assignment.unit)
        if assignment.keyless:
            self._counters.unassigned[self.configuration.spec.rollout_uid, self.configuration.name] += 1

    def in_flight_mark(self, arm: Arm) -> InFlightMark:
        """Entered while the event loop works on this arm without a pause."""
        return self._in_flight_marks[arm.variant]

    @property
    def canary_provider_unreachable(self) -> bool:
        """The canary's endpoint cannot be reached, and stable's is another one that can."""
        stable, canary = self.stable, self.canary
        if canary is None or canary.provider.base_url == stable.provider.base_url:
            return False
        return canary.circuit.unreachable and not stable.circuit.unreachable

    @property
    def endpoints(self) -> list[Endpoint]:
        """Of both arms, fallbacks included."""
        return [target.provider for arm in (self.stable, self.canary) if arm is not None for target in arm.targets]

    @property
    def circuits(self) -> list[tuple[dict[str, str], Circuit]]:
        """With what each is of, as labels."""
        return [
            (
                {
                    "arm": arm.variant,
                    "version": arm.version,
                    "provider": target.provider.name,
                    "model": target.model,
                },
                target.circuit,
            )
            for arm in (self.stable, self.canary)
            if arm is not None
            for target in arm.targets
        ]


def served_content(raw: dict[str, Any]) -> dict[str, Any]:
    """What requests are answered from: all but bookkeeping that may change without a new sequence."""
    return {name: value for name, value in raw.items() if name not in ("memory", "retiredAt", "sequence")}
