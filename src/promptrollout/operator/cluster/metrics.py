"""The operator's own metrics, in a registry of their own so that tests can have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """Counters and gauges of one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.rollout_info = Gauge(
            "promptrollout_rollout_info",
            "1 for each rollout, by its phase.",
            ["namespace", "rollout", "phase"],
            registry=self.registry,
        )
        self.decisions = Counter(
            "promptrollout_decisions",
            "Decisions, by the reason of their Event.",
            ["reason"],
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "promptrollout_reconcile_duration_seconds",
            "Time of one reconcile.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "promptrollout_reconcile_errors",
            "Reconciles that failed and will be retried.",
            ["kind", "error"],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "promptrollout_queue_depth", "Objects that wait to be reconciled.", registry=self.registry
        )
        self.queue_lag = Gauge(
            "promptrollout_queue_lag_seconds", "How long the oldest object has waited.", registry=self.registry
        )
        self.query_seconds = Histogram(
            "promptrollout_query_duration_seconds",
            "Time of one query to a metrics source.",
            ["source"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.query_errors = Counter(
            "promptrollout_query_errors",
            "Queries to a metrics source that failed.",
            ["source"],
            registry=self.registry,
        )
        self.writes = Counter(
            "promptrollout_writes",
            "Writes to the API server, by kind, verb and result (ok, or the HTTP status).",
            ["kind", "verb", "result"],
            registry=self.registry,
        )
        self.watch_restarts = Counter(
            "promptrollout_watch_restarts",
            "How often watches were restarted.",
            registry=self.registry,
        )
        self.missed_events = Counter(
            "promptrollout_missed_events",
            "Changes that no watch reported; the periodic list found them.",
            ["kind"],
            registry=self.registry,
        )
        self.unwatched = Gauge(
            "promptrollout_rollout_unwatched",
            "1 for each rollout whose canary has users while metrics have been unavailable for too long.",
            ["namespace", "rollout"],
            registry=self.registry,
        )
        self._phases: dict[tuple[str, str], str] = {}
        self._unwatched: set[tuple[str, str]] = set()

    def set_rollout(self, namespace: str, rollout: str, phase: str | None, *, unwatched: bool = False) -> None:
        """`phase` None: the rollout is gone."""
        if unwatched:
            self._unwatched.add((namespace, rollout))
            self.unwatched.labels(namespace, rollout).set(1)
        elif (namespace, rollout) in self._unwatched:
            self._unwatched.discard((namespace, rollout))
            self.unwatched.remove(namespace, rollout)
        before = self._phases.pop((namespace, rollout), None)
        if before is not None and before != phase:
            self.rollout_info.remove(namespace, rollout, before)
        if phase is not None:
            self._phases[namespace, rollout] = phase
            self.rollout_info.labels(namespace, rollout, phase).set(1)
