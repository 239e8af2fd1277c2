"""What is read for one rollout: its arms, its objectives, and their queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from promptrollout.api import names, query_template
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.signals import Counter, Signal, signal_of

Arm = Literal["canary", "stable"]


class Query(NamedTuple):
    """One query to a source.

    `metric`: raw series of a metric of the gateways, for many rollouts at once. `selector`: raw series of a selector of
    signal Custom, for one arm. `value`: the value of a Custom expression at the ends of the intervals, for one arm.
    """

    form: Literal["metric", "selector", "value"]
    text: str
    namespace: str = ""
    """Of the rollout; for Custom queries only."""
    variant: str = ""


LabelFilter = Mapping[str, frozenset[str]]
"""The values that are needed of a metric's labels; of other labels all values are needed."""


class SeriesSelector(NamedTuple):
    """Selects the series of one role."""

    role: str
    divided: bool
    """By shards."""
    query: Query
    edge: float | None
    """Of a histogram's bucket."""
    labels: tuple[tuple[str, str], ...]
    """Other labels that the series must have."""
    counter: Counter


def _selector(role: str, counter: Counter, *, divided: bool) -> SeriesSelector:
    edge = next((float(value) for name, value in counter.labels if name == "le"), None)
    others = tuple((name, value) for name, value in counter.labels if name != "le")
    return SeriesSelector(role, divided, Query("metric", counter.metric), edge, others, counter)


@dataclass(frozen=True)
class ObjectiveQueries:
    """One objective: its signal, and its queries if the signal is Custom."""

    name: str
    signal: Signal
    own: tuple[tuple[str, str], ...] = ()
    """Templates by role, of signal `Custom`."""

    @classmethod
    def of(cls, objective: Objective) -> ObjectiveQueries:
        custom = objective.custom
        return cls(objective.name, signal_of(objective), tuple(custom.queries.items()) if custom else ())

    @property
    def is_value(self) -> bool:
        return self.own[:1] != () and self.own[0][0] == "value"

    @cached_property
    def required(self) -> frozenset[str]:
        """Roles that a scrape must have. An application's counter of failures is not there before the first one."""
        if self.own:
            return frozenset({"n"} if self.signal.kind == "rate" else dict(self.own))
        return frozenset(role for role, _ in self.signal.counters if role not in self.signal.optional)

    @property
    def born_at_zero(self) -> bool:
        """A series that appears beside others of the same target began at zero just now."""
        return bool(self.own)

    @cached_property
    def selectors(self) -> tuple[SeriesSelector, ...]:
        whole = tuple(_selector(role, counter, divided=False) for role, counter in self.signal.counters)
        return whole + tuple(_selector(role, counter, divided=True) for role, counter in self.signal.shard_counters)


@dataclass(frozen=True)
class EvidenceRequest:
    """What is read for one rollout. Another request starts without increments."""

    uid: str
    source: str
    interval_seconds: int
    stable_version: str
    canary_version: str
    objectives: tuple[ObjectiveQueries, ...]
    alone: bool = False
    """A first version: its only arm is stable, and it is judged like a canary without anything to compare with."""
    exposed_at: int = 0
    """When the canary first met users. Intervals before it have stable's counts only."""
    rollout: str = ""
    namespace: str = ""

    @property
    def arms(self) -> Iterator[tuple[Arm, str, str]]:
        """Each arm with its variant and version: other series are of other traffic, or of another revision."""
        if self.alone:
            yield "canary", "stable", self.stable_version
        else:
            yield "canary", "canary", self.canary_version
            yield "stable", "stable", self.stable_version

    def own_queries(self, objective: ObjectiveQueries) -> Iterator[tuple[str, Arm, Query]]:
        """Role, arm, query: of signal `Custom`."""
        for arm, variant, version in self.arms:
            values = {
                "namespace": self.namespace,
                "rollout": self.rollout,
                "rollout_uid": self.uid,
                "variant": variant,
                "version": version,
            }
            for role, template in objective.own:
                form: Literal["selector", "value"] = "value" if objective.is_value else "selector"
                yield role, arm, Query(form, query_template.rendered(template, values), self.namespace, variant)

    def failing(self, failed: Mapping[Query, str]) -> dict[str, str]:
        """Objectives whose Custom query failed, and why."""
        found: dict[str, str] = {}
        for objective in self.objectives:
            for _, _, query in self.own_queries(objective):
                if query in failed:
                    found.setdefault(objective.name, failed[query])
        return found

    @cached_property
    def queries(self) -> dict[Query, LabelFilter]:
        """All queries of this rollout, with their label filters."""
        counters: dict[Query, list[Counter]] = defaultdict(list)
        found: dict[Query, LabelFilter] = {}
        for objective in self.objectives:
            for selector in objective.selectors:
                counters[selector.query].append(selector.counter)
            found |= {query: {} for _, _, query in self.own_queries(objective)}
        return found | {query: _label_filter(each) for query, each in counters.items()}


def _label_filter(counters: list[Counter]) -> LabelFilter:
    return union_of_filters({name: frozenset({value}) for name, value in counter.labels} for counter in counters)


def union_of_filters(filters: Iterable[LabelFilter]) -> LabelFilter:
    """A filter for several needs: the labels that all of them filter by, with all their values."""
    first, *others = filters
    found = dict(first)
    for other in others:
        found = {name: values | other[name] for name, values in found.items() if name in other}
    return found


SHARD_NUMBERS = {str(number): number for number in range(names.SHARDS)}
