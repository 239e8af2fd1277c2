"""One rollout in service: its configuration, the routing in force, its counters."""

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
    """One rollout in service: its configuration, the routing in force, its counters."""

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
        complete = configuration.canary_problem is None
        self.acknowledged = configuration.spec.sequence if complete else acknowledged_before
        """The last sequence that was put in service completely, with its canary."""
        self.served = served_content(configuration.raw)
        self.overridden = overridden
        self.routing: Routing = configuration.routing(overridden)
        self.stable = configuration.stable
        self.canary = configuration.canary
        self.window = window
        self.weight_since = weight_since
        """Wall clock: since when units are assigned as they are now, as far as this pod knows."""
        self.response_ids = ResponseIds.of(configuration.spec, signing_key)
        """None: the operator is of a release without them, and callers get the provider's ids."""
        self.unreadable_since = unreadable_since
        """On the registry's clock: since when ids are signed with a key that people cannot read."""
        self.heavy = heavy
        self.gone_at: float | None = None
        """Wall clock: when this pod stops serving it."""
        self._counters = counters
        self._in_flight_marks = {
            arm.variant: InFlightMark(counters.in_flight_file, self.uid, arm.digest, arm.variant)
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
        counters.rollout_loaded(self.uid, configuration.name, used, compared)

    @staticmethod
    def succeeding(
        previous: LiveRollout | None,
        configuration: Configuration,
        counters: Counters,
        *,
        overridden: bool,
        signing_key: SigningKeySpec | None,
        wall_now: float,
        now: float,
    ) -> LiveRollout:
        """The rollout with this configuration, and with what the previous one counted that is still true of it."""
        spec = configuration.spec
        acknowledged, window, heavy = 0, ShareWindow(), HeavyUnits(spec.salt)
        weight_since, unreadable_since = wall_now, 0.0
        if previous is not None:
            acknowledged = previous.acknowledged if previous.uid == spec.rollout_uid else 0
            window, unreadable_since = previous.window, previous.unreadable_since
            if previous.heavy.salt == spec.salt:
                heavy = previous.heavy
            if _assignment_rule(previous.configuration) == _assignment_rule(configuration):
                weight_since = previous.weight_since
        was_readable = previous is not None and previous.configuration.spec.response_key is not None
        if was_readable or spec.response_key is not None:
            unreadable_since = now
        return LiveRollout(
            configuration,
            overridden,
            counters,
            window,
            heavy,
            acknowledged,
            weight_since,
            signing_key,
            unreadable_since,
        )

    @property
    def uid(self) -> str:
        return self.configuration.spec.rollout_uid

    @property
    def sequence(self) -> int:
        return self.configuration.spec.sequence

    def _shard_metrics(self, arm: Arm) -> frozenset[str]:
        """The metrics of an arm's shards that objectives need, without those that stay at zero."""
        metrics = frozenset(self.configuration.spec.shard_metrics)
        if arm.prompt.contract is None:
            metrics -= _SHARDS_OF_CONTRACT
        if all(each is None or each.price is None for each in (self.stable, self.canary)):
            metrics -= _SHARDS_OF_COST
        return metrics

    def series(self, arm: Arm, variant: Variant) -> Series:
        """The counters of an arm under a variant."""
        series = self._series.get((arm.version, variant))
        if series is None:
            name = self.configuration.name
            series = self._counters.series(self.uid, name, arm.version, variant, arm.model, self._edges_seconds)
            series.expect_scores(self._scores)
            self._series[arm.version, variant] = series
        return series

    def series_of_vote(self, version: str, variant: Variant) -> Series | None:
        """The counters for a vote on an answer of this version; None if no arm has it any more."""
        arm = self.canary if variant in ("canary", "canary-outside") else self.stable
        return None if arm is None or arm.version != version else self.series(arm, variant)

    def set_signing_key(self, key: SigningKeySpec) -> None:
        """Sign response ids with this key from now on."""
        self.response_ids = ResponseIds.of(self.configuration.spec, key)

    def record_assignment(self, assignment: Assignment) -> None:
        """Count an assigned request: by its unit, and whether it had a stickiness key."""
        self.window.record(assignment.keyless)
        if assignment.unit is not None:
            self.heavy.record(assignment.unit)
        if assignment.keyless:
            self._counters.unassigned[self.configuration.spec.rollout_uid, self.configuration.name] += 1

    def in_flight_mark(self, arm: Arm) -> InFlightMark:
        """Entered while the event loop works on this arm without a pause."""
        return self._in_flight_marks[arm.variant]

    @property
    def canary_provider_unreachable(self) -> bool:
        """The canary's endpoint is unreachable, and stable has another one that is reachable."""
        stable, canary = self.stable, self.canary
        if canary is None or canary.provider.base_url == stable.provider.base_url:
            return False
        return canary.circuit.unreachable and not stable.circuit.unreachable

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of both arms, fallbacks included."""
        return [target.provider for arm in (self.stable, self.canary) if arm is not None for target in arm.targets]

    @property
    def circuits(self) -> list[tuple[dict[str, str], Circuit]]:
        """The circuits of both arms, each with the labels of its arm and provider."""
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
    """The part of a delivery that answers depend on: all but bookkeeping, which may change within a sequence."""
    return {name: value for name, value in raw.items() if name not in ("memory", "retiredAt", "sequence")}


def _assignment_rule(configuration: Configuration) -> tuple[object, ...]:
    """Everything that the assignment of a unit depends on."""
    spec = configuration.spec
    return spec.weight, spec.salt, spec.stickiness, spec.audience, spec.canary and spec.canary.digest
