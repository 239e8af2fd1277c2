"""The canaries of each gateway that have users or wait to be tried alone: which one is next after pods failed."""

from __future__ import annotations

from dataclasses import dataclass

from promptrollout.api.names import LABEL_GATEWAY
from promptrollout.api.rollout import Clock, RolloutStatus
from promptrollout.engine.lifecycle.surroundings import TRIAL_SECONDS
from promptrollout.operator.cluster.store import Store


@dataclass(frozen=True, slots=True)
class _Canary:
    """What other rollouts of the gateway need to know of a canary."""

    suspected_at: int | None
    trial_at: int | None
    raised_at: int | None

    def is_tried(self, now: int) -> bool:
        """It is being tried alone: loaded or raised a moment ago."""
        return self.trial_at is not None and now - max(self.trial_at, self.raised_at or 0) < TRIAL_SECONDS

    def waits(self, now: int) -> bool:
        return self.suspected_at is not None and self.trial_at is None and self.suspected_at <= now


class Canaries:
    """By gateway; read from the rollouts' status at first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], dict[str, _Canary]] | None = None

    def update(self, namespace: str, gateway: str, rollout: str, status: RolloutStatus | None) -> None:
        """`status` None: it is gone."""
        for (space, _), names in self._all().items():
            if space == namespace:
                names.pop(rollout, None)
        if status is not None and (canary := _canary(status)) is not None:
            self._all().setdefault((namespace, gateway), {})[rollout] = canary

    def trial(self, namespace: str, gateway: str, now: int) -> str:
        """The rollout that is tried alone, else the one that has waited longest; empty: none."""
        names = self._all().get((namespace, gateway)) or {}
        tried = [(canary.trial_at or 0, name) for name, canary in names.items() if canary.is_tried(now)]
        waiting = [(canary.suspected_at or 0, name) for name, canary in names.items() if canary.waits(now)]
        return min(tried or waiting or [(0, "")])[1]

    def raised_at(self, namespace: str, gateway: str) -> int | None:
        """When one of them last got its first, or more, users."""
        names = self._all().get((namespace, gateway)) or {}
        return max((each.raised_at for each in names.values() if each.raised_at is not None), default=None)

    def _all(self) -> dict[tuple[str, str], dict[str, _Canary]]:
        if self._known is None:
            self._known = {}
            for item in self._store.all("PromptRollout"):
                metadata, status = item["metadata"], item.get("status") or {}
                clock = Clock.model_validate(status.get("clock") or {})
                if (canary := _canary(RolloutStatus(stage=status.get("stage"), clock=clock))) is not None:
                    gateway = serving_gateway(item, self._store)
                    self._known.setdefault((metadata["namespace"], gateway), {})[metadata["name"]] = canary
        return self._known


def serving_gateway(rollout: dict[str, object], store: Store) -> str:
    """The gateway that serves a rollout now: while a canary runs, not the one that the spec names since then."""
    metadata: dict[str, str] = rollout["metadata"]  # type: ignore[assignment]
    spec: dict[str, dict[str, str]] = rollout.get("spec") or {}  # type: ignore[assignment]
    delivery = store.get("PromptDelivery", metadata["namespace"], metadata["name"])
    labels = (delivery or {}).get("metadata", {}).get("labels") or {}
    return str(labels.get(LABEL_GATEWAY) or spec.get("gatewayRef", {}).get("name", ""))


def _canary(status: RolloutStatus) -> _Canary | None:
    clock = status.clock
    raised = clock.stage_since if status.stage in ("Stepping", "Promoting") else None
    if clock.suspected_at is None and raised is None:
        return None
    return _Canary(clock.suspected_at, clock.trial_at, raised)
